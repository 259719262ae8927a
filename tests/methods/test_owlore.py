"""OwLore: which layers train and are remembered, and OWL's ratio by hand."""

import pytest
import torch
from callback_runs import LAYERS, ROWS, layer_of, watched
from conftest import TINY
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lorada.methods.callbacks.layers import layers_of
from lorada.methods.callbacks.owlore import OwLoreCallback, outlier_ratios
from lorada.methods.galore import galore

pytestmark = pytest.mark.fp64

OPTIMIZERS = {"owlore": lambda model, args: galore(model, args, rank=4), "owlore_full": None}
EVERY = pytest.mark.parametrize("method", OPTIMIZERS)


def tiny():
    return TINY["llama"](num_hidden_layers=LAYERS)


def run(model, output, callback, method="owlore_full", **settings):
    return watched(model, output, callback, optimizer=OPTIMIZERS[method], **settings)


@EVERY
def test_so_many_layers_train_at_a_time_and_the_rest_stays_as_it_was(method, tmp_path):
    model = tiny()
    callback = OwLoreCallback(layers=2, every=3, weights=[1, 2, 3, 4])
    watch, _ = run(model, tmp_path, callback, method, max_steps=12)
    names = {name for name, _ in model.named_parameters()}
    outside = {name for name in names if layer_of(name) is None}
    assert len(outside) == 3  # embeddings, last norm, head
    periods = []
    for step, (gradients, moved) in enumerate(zip(watch.gradients, watch.moved, strict=True)):
        active = {layer_of(name) for name in gradients} - {None}
        assert len(active) == 2
        assert gradients == outside | {name for name in names if layer_of(name) in active}
        assert moved <= gradients
        assert outside <= moved
        assert {layer_of(name) for name in moved} - {None} == active
        if step % 3 == 0:
            periods.append(active)
        assert active == periods[-1]
    assert len({tuple(active) for active in periods}) > 1
    assert all(p.requires_grad for p in model.parameters())


@EVERY
def test_the_optimizer_forgets_the_layers_that_are_frozen(method, tmp_path):
    callback = OwLoreCallback(layers=1, every=2, weights=[1, 1, 1, 1])
    watch, trainer = run(tiny(), tmp_path, callback, method, max_steps=8)
    for gradients, remembered in zip(watch.gradients, watch.remembered, strict=True):
        assert remembered == gradients
    assert len({frozenset(gradients) for gradients in watch.gradients}) > 1
    known = {name for name, p in trainer.model.named_parameters() if trainer.optimizer.state.get(p)}
    assert known == watch.gradients[-1]


@pytest.mark.more
def test_a_run_resumed_within_a_period_ends_bit_for_bit_where_the_whole_one_does(tmp_path):
    settings = {"method": "owlore", "save_strategy": "steps", "save_steps": 4, "max_steps": 11}
    whole, part = (OwLoreCallback(layers=2, every=3, threshold=2.0) for _ in range(2))
    run(model := tiny(), tmp_path, whole, **settings)
    checkpoint = str(tmp_path / "checkpoint-4")
    run(resumed := tiny(), tmp_path, part, resume=checkpoint, **settings)
    assert part.weights == whole.weights
    for (name, expected), actual in zip(
        model.named_parameters(), resumed.parameters(), strict=True
    ):
        assert torch.equal(actual, expected), name


def test_seed_and_period_decide_which_layers_are_drawn(monkeypatch):
    callback, drawn = OwLoreCallback(layers=3, every=2, weights=[1.0] * 16), []
    monkeypatch.setattr(callback, "train_only", lambda layers: drawn.append(sorted(layers)))
    for seed, step in ((1, 0), (1, 1), (1, 2), (2, 0)):
        callback._activate(seed, step, None)
    assert drawn[0] == drawn[1]
    assert drawn[2] != drawn[0] != drawn[3]


def test_layers_without_outliers_are_drawn_after_those_that_have_some(tmp_path):
    callback = OwLoreCallback(layers=2, every=1, weights=[0, 0, 3, 0])
    watch, _ = run(tiny(), tmp_path, callback, max_steps=12)
    drawn = [{layer_of(n) for n in g} - {None} for g in watch.gradients]
    assert all(2 in layers for layers in drawn)
    assert len({tuple(layers) for layers in drawn}) > 1


def test_outlier_ratios_are_those_of_the_formula():
    model = tiny()
    layers = layers_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.pow_(3)  # some stand out
    batches = [
        {"input_ids": torch.stack([row["input_ids"] for row in ROWS[at : at + 4]])} for at in (0, 4)
    ]
    inputs = {  # of every linear map of every layer
        name: {linear: [] for linear in layer.modules() if isinstance(linear, nn.Linear)}
        for name, layer in layers.items()
    }
    handles = [
        linear.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        for linears in inputs.values()
        for linear, seen in linears.items()
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    expected = []
    for seen in inputs.values():  # D of a layer: all entries of its linear maps at once
        norms = {linear: torch.cat(each).flatten(0, 1).norm(dim=0) for linear, each in seen.items()}
        entries = torch.cat([(m.weight.abs() * norm).flatten() for m, norm in norms.items()])
        expected.append(100 * (entries > 3.0 * entries.mean()).double().mean().item())
    for handle in handles:
        handle.remove()
    assert min(expected) > 0
    assert outlier_ratios(model, layers, batches, 3.0) == pytest.approx(expected)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_pads_do_not_count_in_the_outlier_ratio():
    model = tiny()
    layers = layers_of(model)
    ids = ROWS[0]["input_ids"][None]
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1)
    mask = (torch.arange(17) < 12).long()[None]
    plain = outlier_ratios(model, layers, [{"input_ids": ids}], 3.0)
    masked = outlier_ratios(model, layers, [{"input_ids": padded, "attention_mask": mask}], 3.0)
    assert masked == pytest.approx(plain)


def test_weights_of_another_model_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="3 weights for 4 layers"):
        run(tiny(), tmp_path, OwLoreCallback(layers=1, weights=[1, 2, 3]))


def test_a_model_of_fewer_layers_than_it_trains_by_default_trains_all(tmp_path, caplog):
    watch, _ = run(model := tiny(), tmp_path, OwLoreCallback(every=2, weights=[1, 1, 1, 1]))
    names = {name for name, _ in model.named_parameters()}
    assert all(gradients == names for gradients in watch.gradients)
    assert "OwLore trains 5 layers at a time and LlamaForCausalLM has 4: taking all" in caplog.text


def test_the_outlier_ratio_reads_transposed_weights():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=96, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    model = GPT2LMHeadModel(config).eval()
    layers = layers_of(model)
    assert list(layers) == ["transformer.h.0", "transformer.h.1"]
    with torch.no_grad():  # one input feature of one map of layer 1
        model.transformer.h[1].mlp.c_fc.weight[3] *= 1e3
    ratios = outlier_ratios(model, layers, [{"input_ids": ROWS[0]["input_ids"][None]}])
    entries = sum(p.numel() for p in model.transformer.h[1].parameters() if p.dim() == 2)
    assert ratios[0] < ratios[1] <= 100 * 64 / entries
    assert ratios[1] > 50 * 64 / entries
