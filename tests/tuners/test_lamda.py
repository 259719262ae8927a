"""LamdaConfig and its callback: spectral starts, ranks by energy, columns of B that freeze."""

from types import SimpleNamespace

import pytest
import torch
from callback_runs import assert_same_weights, losses, trainer
from conftest import TINY, assert_close, assert_same_gradients
from folders import refused
from peft import LoraConfig, PeftModel, get_peft_model
from stacks import assert_loads, batch, lmam, logits, moved
from torch import nn
from transformers import TrainerCallback

from lorada import LamdaConfig, LoradaConfig
from lorada.methods.callbacks.lamda_schedule import LamdaCallback
from lorada.tuners.lamda import LamdaLayer, ranks_by_energy

pytestmark = pytest.mark.fp64


def layers(model: nn.Module) -> list[LamdaLayer]:
    return [layer for layer in model.modules() if isinstance(layer, LamdaLayer)]


def matrix(*singular_values: float, rows: int = 12, columns: int = 10) -> torch.Tensor:
    """A matrix with these singular values, and directions at random."""
    left, _ = torch.linalg.qr(torch.randn(rows, len(singular_values)))
    right, _ = torch.linalg.qr(torch.randn(columns, len(singular_values)))
    return left @ torch.diag(torch.tensor(singular_values)) @ right.T


# The maths.


def test_layer_is_its_formula_over_the_residual_weight_in_values_and_gradients():
    linear = nn.Linear(6, 5)
    layer = LamdaLayer(linear)
    layer.update_layer("default", LamdaConfig(rank=3, scale=0.7), linear, "")
    layer.set_adapter("default")
    residual = linear.weight.detach().clone()
    left, values, right = torch.linalg.svd(residual, full_matrices=False)
    residual -= 0.7 * left[:, :3] @ torch.diag(values[:3]) @ right[:3]
    with torch.no_grad():
        layer.lora_B["default"].add_(torch.randn(5, 3))
        layer.lora_M["default"].add_(torch.randn(3, 3))
    a, m, b = (getattr(layer, f"lora_{name}")["default"] for name in "AMB")
    x, x2 = (torch.randn(2, 4, 6).requires_grad_() for _ in range(2))
    x2.data = x.data.clone()

    expected = x2 @ (residual + 0.7 * b @ m @ a).T + linear.bias
    assert_same_gradients(layer(x), expected, [x, m, b], [x2, m, b], more_than=0.01)


@pytest.mark.fp64(False)
@pytest.mark.parametrize(("name", "dtype"), [("llama", torch.bfloat16), ("roberta", torch.float32)])
def test_start_is_exactly_the_identity(name, dtype):
    inputs, base = batch(name), TINY[name]().to(dtype)
    expected = logits(base, inputs)
    for scale in (1.0, 0.7):
        model = get_peft_model(base, LamdaConfig(rank=3, scale=scale)).eval()
        assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
        assert torch.equal(logits(model, inputs), expected)
        with torch.autocast("cpu", torch.bfloat16):
            actual = logits(model, inputs)
            assert torch.equal(actual, logits(model.unload(), inputs))


def test_small_change_of_b_is_not_lost_in_autocast():
    linear = nn.Linear(32, 32, bias=False)
    layer = LamdaLayer(linear)
    layer.update_layer("default", LamdaConfig(rank=4), linear, "")
    layer.set_adapter("default")
    with torch.no_grad():
        layer.lora_B["default"].mul_(1 + 1e-3)  # bfloat16 has steps of 1/256
        x = torch.randn(8, 32)
        exact = x @ (layer.left_factor("default") @ layer.lora_A["default"]).T
        with torch.autocast("cpu", torch.bfloat16):
            term = layer.term("default", x, x @ linear.weight.T).float()
    assert (term - exact).norm() < 0.02 * exact.norm()


def test_spectral_start_is_the_leading_part_of_the_weight():
    weight = torch.randn(40, 60)
    left, values, right = torch.linalg.svd(weight)
    linear = nn.Linear(60, 40, bias=False)
    linear.weight.data = weight
    layer = LamdaLayer(linear)
    layer.update_layer("default", LamdaConfig(rank=4), linear, "")

    a, m, b = (getattr(layer, f"lora_{name}")["default"].detach() for name in "AMB")
    assert torch.equal(m, torch.diag(m.diagonal()))
    torch.testing.assert_close(m.diagonal(), values[:4], rtol=1e-3, atol=0)
    assert_close(a @ a.T, torch.eye(4))
    assert_close(b.T @ b, torch.eye(4))
    start = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
    assert (b @ m @ a - start).norm() < 0.05 * start.norm()


# LaMDA++.


def test_flat_spectra_get_more_rank_and_steep_ones_less_at_the_same_mean():
    steepness = {"a": 0.3, "b": 0.99, "c": 0.6, "d": 0.5, "e": 0.9, "f": 0.7}
    weights = {n: matrix(*(q**i for i in range(8))) for n, q in steepness.items()}
    ranks = ranks_by_energy(weights, 2)
    # A third of 4s, 2s and 1s has the mean 7/3: the first class gives one weight to the second.
    assert ranks == {"b": 4, "e": 2, "f": 2, "c": 2, "d": 1, "a": 1}


@pytest.mark.parametrize(("number", "mean"), [(1, 8), (2, 3), (3, 1), (7, 2), (12, 39), (224, 8)])
def test_mean_rank_is_never_exceeded_and_met_where_classes_allow(number, mean, monkeypatch):
    monkeypatch.setattr("lorada.tuners.lamda.energy", lambda weight, rank: float(weight[0, 0]))
    weights = {str(i): torch.full((100, 100), float(i)) for i in range(number)}
    ranks = list(ranks_by_energy(weights, mean).values())
    assert sum(ranks) <= mean * number
    assert set(ranks) <= {2 * mean, mean, max(1, mean // 2)}
    assert ranks == sorted(ranks, reverse=True)
    if mean % 2 == 0:
        assert sum(ranks) == mean * number


def test_an_adapter_that_is_loaded_has_its_ranks_and_nothing_is_decomposed(tmp_path, monkeypatch):
    model = moved(TINY["llama"](), LamdaConfig(rank=4, ranks="energy"))
    pattern = model.peft_config["default"].rank_pattern
    assert len(pattern) == 14
    assert len(set(pattern.values())) == 3
    assert sum(pattern.values()) == 4 * 14
    monkeypatch.delattr("lorada.tuners.lamda.ranks_by_energy")
    monkeypatch.delattr("lorada.tuners.lamda.leading")
    assert_loads(model, TINY["llama"](), tmp_path, batch("llama"))


@pytest.mark.parametrize("targets", [None, "all-linear", ["q_proj", "o_proj", "down_proj"]])
def test_every_way_to_name_targets_can_have_ranks_by_energy(targets):
    config = LamdaConfig(rank=4, ranks="energy", target_modules=targets)
    for wrapped in (config, LoradaConfig(parts=[LoraConfig(target_modules=["q_proj"]), config])):
        model = get_peft_model(TINY["llama"](), wrapped)
        ranks = [layer.lora_M["default"].shape[0] for layer in layers(model)]
        assert len(ranks) == (6 if isinstance(targets, list) else 14)
        assert sum(ranks) / len(ranks) == 4
        assert max(ranks) == 8
        assert min(ranks) == 2


# Training.


class Watch(TrainerCallback):
    """Keeps the first B and its gradient, and the norm of all gradients of M, of each step."""

    def __init__(self) -> None:
        self.values, self.gradients, self.norms = [], [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.matrix = layers(kwargs["model"])[0].lora_B["default"]
        self.values.append(self.matrix.detach().clone())

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.gradients.append(self.matrix.grad.clone())
        middle = [layer.lora_M["default"].grad for layer in layers(kwargs["model"])]
        self.norms.append(torch.nn.utils.get_total_norm(middle))

    def on_step_end(self, args, state, control, **kwargs):
        self.values.append(self.matrix.detach().clone())


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_columns_of_b_freeze_in_order_and_do_not_drift(tmp_path, optim):
    # Half of 12 steps for 4 columns: 2/3 of a column freezes with each step.
    watch, callback = Watch(), LamdaCallback(eta=0.5)
    extra = {"optim_args": "momentum=0.9"} if optim == "sgd" else {}
    run = trainer(
        LamdaConfig(rank=4), tmp_path, callback, watch, weight_decay=0.1, optim=optim,
        lr_scheduler_type="constant", **extra,
    )  # fmt: skip
    middle = layers(run.model)[0].lora_M["default"].detach().clone()
    run.train()
    frozen = [0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 4, 4]
    for step, number in enumerate(frozen):
        before, after = watch.values[step], watch.values[step + 1]
        assert torch.equal(after[:, :number], before[:, :number]), step
        assert (after != before)[:, number:].any(dim=0).all(), step
        gradient = watch.gradients[step]
        assert not gradient[:, :number].any()
        assert gradient[:, number:].any(dim=0).all()
    assert (layers(run.model)[0].lora_M["default"] != middle).all()
    assert losses(run)[-1] < losses(run)[0]


def test_run_that_resumes_is_the_run_that_did_not(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "weight_decay": 0.1}
    config = LamdaConfig(rank=4)
    whole = trainer(config, tmp_path / "whole", LamdaCallback(eta=0.5), **options)
    whole.train()
    again = trainer(config, tmp_path / "again", LamdaCallback(eta=0.5), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_same_weights(again.model, whole.model)
    assert losses(again) == losses(whole)


def test_training_without_lamda_matrices_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no LaMDA matrices train here"):
        trainer(lmam(), tmp_path, LamdaCallback()).train()


def test_a_quantised_base_has_no_spectral_start_but_loads_one(tmp_path):
    class Quantised(nn.Linear):
        """As a library for quantisation leaves a layer: whole numbers for weights."""

        def forward(self, x):
            return x @ self.weight.to(x.dtype).T

    base = TINY["llama"]()
    whole = Quantised(32, 32, bias=False)
    whole.weight = nn.Parameter(torch.randint(-8, 8, (32, 32)), requires_grad=False)
    base.model.layers[0].self_attn.q_proj = whole
    start = LamdaConfig(rank=3, target_modules=["q_proj"])
    refused("which LaMDA does not support", lambda: get_peft_model(base, start))
    ranks = LamdaConfig(rank=3, ranks="energy")
    refused('which ranks="energy" does not support', lambda: get_peft_model(base, ranks))

    get_peft_model(TINY["llama"](), start).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert logits(loaded, batch("llama")).isfinite().all()
    with pytest.raises(ValueError, match="Quantised is quantised, which merging does not"):
        loaded.merge_and_unload()


def test_clipping_does_not_see_the_gradients_of_frozen_columns(tmp_path):
    watch, callback = Watch(), LamdaCallback(eta=1e-6)
    trainer(LamdaConfig(rank=4), tmp_path, callback, watch, max_grad_norm=1e-3).train()
    # From the second step on, M alone is what the clipping measures.
    assert watch.norms[0] < 0.99e-3
    # torch divides by the norm plus 1e-6.
    assert all(0.999e-3 < norm <= 1e-3 for norm in watch.norms[1:])


@pytest.mark.parametrize("steps", [7, 10, 100])
def test_as_many_columns_are_frozen_as_steps_are_done_of_as_many_whatever_is_rounded(steps):
    callback, matrix = LamdaCallback(eta=1.0), torch.zeros(3, steps)
    for step in range(steps + 1):
        callback.on_step_begin(None, SimpleNamespace(global_step=step, max_steps=steps), None)
        assert callback._frozen(matrix) == step
