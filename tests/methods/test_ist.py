"""IST: which layers train, what their scores do, and that nothing is left changed."""

import math
from types import SimpleNamespace

import pytest
import torch
from callback_runs import LAYERS, ROWS, Watch, layer_of, trainer_for, watched
from conftest import TINY, assert_close
from folders import refused
from method_cases import SMALL
from peft import IA3Config, LoraConfig, get_peft_model, get_peft_model_state_dict

import lorada
from lorada import LoradaConfig
from lorada.methods.callbacks.ist import ISTCallback, adapters_in, scaled_down, updated_scores
from lorada.methods.callbacks.layers import generator_at, layers_of, training_batches
from lorada.support.tuner_names import TUNERS

pytestmark = pytest.mark.fp64

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
PARTS = {
    "lora": LoraConfig(**LORA),
    "dora": LoraConfig(use_dora=True, **LORA),
    **{part: getattr(lorada, name)(**SMALL.get(part, {})) for part, name in TUNERS.items()},
}
IDS = torch.stack([row["input_ids"] for row in ROWS[:8]])
BATCH = {"input_ids": IDS, "labels": IDS}


def adapted(*names, init=True, layers=LAYERS):
    """A tiny Llama of 4 layers with parts; without ``init`` they already do something."""
    base = TINY["llama"](num_hidden_layers=layers)
    parts = [PARTS[name] for name in names or ("lora",)]
    return get_peft_model(base, LoradaConfig(parts=parts, init_weights=init)).eval()


def all_adapters(model):
    return [adapter for layer in layers_of(model).values() for adapter in adapters_in(layer)]


def scoring(model):
    """The callback as it is in a run that has not scored yet."""
    callback = ISTCallback()
    callback.scores = [0.0] * LAYERS
    callback._adapters = [adapters_in(layer) for layer in layers_of(model).values()]
    return callback


@pytest.mark.first
@pytest.mark.parametrize("part", PARTS)
def test_the_adapters_of_a_layer_are_scaled_down_and_back_though_a_forward_fails(part):
    model = adapted(part, init=False)
    with torch.no_grad():
        before = model(IDS).logits
        with model.disable_adapter():
            plain = model(IDS).logits
        with scaled_down(all_adapters(model), 1e-9):
            nothing = model(IDS).logits
        with pytest.raises(ZeroDivisionError), scaled_down(all_adapters(model), 1e-9):
            raise ZeroDivisionError
        after = model(IDS).logits
    assert torch.equal(before, after)
    assert (before - plain).abs().max() > 1e-3
    if part in ("prefix", "dora"):  # a prefix's keys and DoRA's magnitude are no terms to scale
        assert (nothing - before).abs().max() > 1e-3
    else:
        assert (nothing - plain).abs().max() < 1e-4


def test_scores_move_as_the_formula_says():
    scores = torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=torch.float64)
    sets, losses = [[0, 1], [0, 3], [1, 2]], torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    expected = scores.tolist()
    rewards = [math.exp(-loss) for loss in losses.tolist()]
    for chosen, reward in zip(sets, rewards, strict=True):
        for i in chosen:
            sigma = 1 / (1 + math.exp(-scores[i]))
            expected[i] += 10 * (reward - sum(rewards) / 3) * sigma * (1 - sigma)
    assert_close(
        updated_scores(scores, sets, losses, 10.0), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.more
def test_the_score_of_the_layer_that_carries_the_signal_falls_and_nothing_else_changes():
    model = adapted("lora")
    carrier = 2
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and layer_of(name) == carrier)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-2)
    for _ in range(60):
        model(**BATCH).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.set_adapter("default")
    callback, scales = scoring(model), [dict(each.scaling) for each in all_adapters(model)]
    for step in range(20):
        callback.update_scores(model.train(), BATCH, generator_at(0, step))
    assert model.training
    assert [adapter.scaling for adapter in all_adapters(model)] == scales
    assert all(p.grad is None for p in model.parameters())
    others = [score for index, score in enumerate(callback.scores) if index != carrier]
    assert callback.scores[carrier] < -0.1
    assert min(others) > callback.scores[carrier] + 0.2


@pytest.mark.parametrize(
    "parts", [("lora",), ("lmam", "bottleneck"), ("prefix", "dora"), ("lamda", "omoe")], ids=str
)
def test_only_the_drawn_layers_train_and_the_others_keep_their_moments(parts, tmp_path):
    model = adapted(*parts)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    watch, _ = watched(model, tmp_path, callback := ISTCallback(update_frac=0.5, every=2))
    drawn = [{layer_of(name) for name in names} for names in watch.gradients]
    assert all(len(layers) == 2 for layers in drawn)
    assert len({tuple(layers) for layers in drawn}) > 1
    for layers, gradients, moved in zip(drawn, watch.gradients, watch.moved, strict=True):
        assert gradients == {name for name in trainable if layer_of(name) in layers}
        assert moved <= gradients
    for earlier, later in zip(watch.remembered, watch.remembered[1:], strict=False):
        assert earlier <= later
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert any(callback.scores)


def test_a_model_that_ist_cannot_train_is_one_line(tmp_path):
    base = TINY["llama"](num_hidden_layers=LAYERS)
    nowhere = trainer_for(base, tmp_path, ISTCallback())
    refused("needs an adapter in at least two layers.* has 0", nowhere.train)
    one = get_peft_model(base, LoraConfig(layers_to_transform=[1], **LORA))
    refused("has 1: choose a method such as lora", trainer_for(one, tmp_path, ISTCallback()).train)
    ia3 = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    other = get_peft_model(TINY["llama"](num_hidden_layers=LAYERS), ia3)
    refused("ia3.* does not have: use lora", trainer_for(other, tmp_path, ISTCallback()).train)


def test_a_loss_that_is_no_number_leaves_the_scores_alone():
    class Broken(torch.nn.Module):
        def forward(self):
            return SimpleNamespace(loss=torch.tensor(math.nan))

    callback = ISTCallback()
    callback.scores, callback._adapters = [0.5] * LAYERS, [[]] * LAYERS
    callback.update_scores(Broken(), {}, generator_at(0, 0))
    assert callback.scores == [0.5] * LAYERS


@pytest.mark.more
@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
def test_checkpointed_activations_give_the_same_training(reentrant, tmp_path):
    results = []
    for checkpointing in (False, True):
        model = adapted("lora", "lmam")
        settings = {
            "gradient_checkpointing": checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
        }
        watch, _ = watched(model, tmp_path, ISTCallback(every=2), max_steps=5, **settings)
        assert len(watch.gradients) == 5
        assert all(watch.gradients)
        results.append(get_peft_model_state_dict(model))
    for key, expected in results[0].items():
        assert_close(results[1][key], expected)


def test_the_layer_that_cannot_be_spared_is_the_one_that_trains(monkeypatch):
    callback, drawn = ISTCallback(update_frac=0.25), []
    callback.scores = [50.0, -50.0, 50.0, 50.0]
    monkeypatch.setattr(callback, "train_only", drawn.append)
    for step in range(5):
        state = SimpleNamespace(global_step=step)
        callback.on_step_begin(SimpleNamespace(seed=0), state, None)
    assert [list(layers) for layers in drawn] == [[1]] * 5


@pytest.mark.more
def test_another_seed_draws_other_layers_and_the_global_generator_has_no_part_in_it(tmp_path):
    drawn = []
    for seed, noise in ((1, 1), (1, 2), (2, 1)):
        watch = Watch()
        trainer = trainer_for(adapted(), tmp_path, ISTCallback(every=2), watch, seed=seed)
        torch.manual_seed(noise)
        trainer.train()
        drawn.append([sorted({layer_of(name) for name in names}) for names in watch.gradients])
    assert drawn[0] == drawn[1] != drawn[2]


def test_rows_to_score_on_are_so_many_and_leave_the_global_generator_alone():
    def plain(rows):
        return {"rows": torch.tensor(rows), "noise": torch.rand(1)}

    loader = SimpleNamespace(dataset=range(9), collate_fn=SimpleNamespace(plain=plain))
    state = torch.get_rng_state()
    found = [*training_batches(loader, 5, 2, generator_at(0, 0), torch.device("cpu"))]
    assert torch.equal(torch.get_rng_state(), state)
    rows = [batch["rows"].tolist() for batch in found]
    assert [len(each) for each in rows] == [2, 2, 1]
    assert len({row for each in rows for row in each}) == 5
