"""SoraConfig and its callback: gates, thresholds, penalty, ranks by module."""

from types import SimpleNamespace

import pytest
import torch
from callback_runs import assert_same_weights, losses, trainer
from conftest import TINY, assert_close, assert_same_gradients
from peft import get_peft_model
from stacks import batch, lmam, logits
from torch import nn

from lorada import SoraConfig
from lorada.methods.callbacks.sora_thresholds import SoraCallback
from lorada.tuners.sora import SoraLayer, soft_threshold

pytestmark = pytest.mark.fp64


def layers(model: nn.Module) -> list[SoraLayer]:
    return [layer for layer in model.modules() if isinstance(layer, SoraLayer)]


def zero_gates(model: nn.Module) -> int:
    return sum(int((layer.lora_gate["default"] == 0).sum()) for layer in layers(model))


# The maths.


def test_layer_is_its_formula_in_values_and_gradients():
    linear = nn.Linear(6, 5)
    layer = SoraLayer(linear)
    layer.update_layer("default", SoraConfig(rank=3, alpha=6.0, init_weights=False), linear, "")
    layer.set_adapter("default")
    a, g, b = (getattr(layer, name)["default"] for name in layer.adapter_layer_names)
    x, x2 = (torch.randn(2, 4, 6).requires_grad_() for _ in range(2))
    x2.data = x.data.clone()

    weight = linear.weight + 6.0 / 3 * torch.einsum("or,r,ri->oi", b, g, a)
    expected = x2 @ weight.T + linear.bias
    assert_same_gradients(layer(x), expected, [x, a, g, b], [x2, a, g, b], more_than=0.01)


def test_start_is_the_identity_and_draws_as_the_paper_says():
    inputs = batch("llama")
    model = get_peft_model(TINY["llama"](), SoraConfig(rank=64)).eval()
    assert torch.equal(logits(model, inputs), logits(TINY["llama"](), inputs))

    gates = torch.cat([layer.lora_gate["default"] for layer in layers(model)]).detach()
    assert abs(gates.mean()) < 0.1
    assert 0.9 < gates.std() < 1.1
    first = layers(model)[0]
    bound = 32**-0.5  # Kaiming-uniform with a = √5
    assert 0.9 * bound < first.lora_A["default"].abs().max() <= bound
    assert not any(layer.lora_B["default"].any() for layer in layers(model))


# Training.


@pytest.mark.more
def test_the_penalty_on_all_gates_is_added_once_to_accumulated_batches(tmp_path):
    # B is 0, so that the gates have no gradient of the task.
    run = trainer(
        SoraConfig(rank=4, penalty=10.0), tmp_path, SoraCallback(xi=0.0), max_steps=1, optim="sgd",
        learning_rate=1.0, max_grad_norm=0.0, gradient_accumulation_steps=3,
    )  # fmt: skip
    gates = [layer.lora_gate["default"] for layer in layers(run.model)]
    start = torch.cat([gate.detach().clone() for gate in gates]).requires_grad_()
    (penalty,) = torch.autograd.grad(10.0 * start.abs().mean(), start)
    run.train()
    assert_close((start - torch.cat(gates)).detach(), penalty)


def test_a_penalty_is_scaled_as_the_loss_is_in_half_precision(tmp_path):
    run = trainer(SoraConfig(rank=4, penalty=10.0), tmp_path, SoraCallback())
    number = sum(layer.lora_gate["default"].numel() for layer in layers(run.model))
    optimizer = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: 1024.0))
    SoraCallback().on_step_begin(None, None, None, model=run.model, optimizer=optimizer)
    for layer in layers(run.model):
        gate = layer.lora_gate["default"]
        assert_close(gate.grad, gate.detach().sign() * 1024.0 * 10.0 / number)


@pytest.mark.more
def test_run_that_resumes_is_the_run_that_did_not(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 7, "weight_decay": 0.1}
    norms = {"modules_to_save": ["input_layernorm"]}
    config = SoraConfig(rank=4, dropout=0.1, penalty=0.1, **norms)
    whole = trainer(config, tmp_path / "whole", SoraCallback(xi=0.05), **options)
    whole.train()
    again = trainer(config, tmp_path / "again", SoraCallback(xi=0.05), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert_same_weights(again.model, whole.model)
    assert zero_gates(whole.model) > 0
    for left, right in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.more
def test_training_without_gates_or_with_another_decay_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no SoRA gates train here"):
        trainer(lmam(), tmp_path, SoraCallback()).train()
    with pytest.raises(ValueError, match="would decay SoRA's gates: use optim="):
        trainer(SoraConfig(), tmp_path, SoraCallback(), weight_decay=0.1, optim="sgd").train()
    run = trainer(SoraConfig(penalty=1.0), tmp_path, SoraCallback())
    run.args.deepspeed = "zero2.json"
    with pytest.raises(ValueError, match="DeepSpeed gives no access to them: use penalty=0"):
        run.callback_handler.on_train_begin(run.args, run.state, run.control)


@pytest.mark.more
def test_gates_reach_exact_zeros(tmp_path):
    run = trainer(SoraConfig(rank=4), tmp_path, SoraCallback(xi=0.1))
    run.train()
    assert 0 < zero_gates(run.model) < 4 * len(layers(run.model))
    assert losses(run)[-1] < 0.9 * losses(run)[0]


def test_a_gate_moves_towards_zero_from_either_side_and_stays_there():
    gates = torch.tensor([-1.0, -0.05, 0.0, 0.05, 0.5])
    assert_close(soft_threshold(gates, 0.25), torch.tensor([-0.75, 0.0, 0.0, 0.0, 0.25]))
