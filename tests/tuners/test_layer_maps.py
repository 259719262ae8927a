"""Effect size, negative ratio and the maps of a model on a batch."""

import gc
import logging

import pytest
import torch
from conftest import TINY, VOCAB, assert_close
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from lorada import EffectSize, LmamConfig, LoradaConfig
from lorada.attention import observation
from lorada.tuners.layer_maps import layer_maps

pytestmark = pytest.mark.fp64

IDS = torch.arange(3, 13)[None]


def adapted(name="llama", **settings):
    config = LmamConfig(**{"length": 6, "init_weights": False, **settings})
    return get_peft_model(TINY[name](attn_implementation="eager"), config).eval()


def attentions(model):
    """Softmax maps and values of the first layer, from the eager model itself."""
    with model.disable_adapter(), torch.no_grad():
        return model(IDS, output_attentions=True).attentions[0]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_softmax_map_is_the_models_own(name):
    model = adapted(name)
    first = layer_maps(model, {"input_ids": IDS})[0]
    assert_close(first.softmax, attentions(model))
    assert_close(first.fused, first.softmax + first.map)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_negative_ratio_counts_visible_pairs_within_the_map(name):
    model = adapted(name)
    first = layer_maps(model, {"input_ids": IDS})[0]
    pairs = torch.ones(6, 6, dtype=torch.bool)
    if name == "llama":
        pairs = pairs.tril()
    for ratio, values in (
        (first.negative_ratio, first.fused),
        (first.map_negative_ratio, first.map),
    ):
        inside = values[0, :, :6, :6]
        expected = torch.stack([(head[pairs] < 0).float().mean() for head in inside])
        assert_close(ratio, expected)


def test_padding_changes_neither_ratio_nor_effect_size():
    model = adapted()
    alone = layer_maps(model, {"input_ids": IDS})
    padded = {
        "input_ids": torch.cat([torch.zeros(1, 5, dtype=torch.long), IDS], 1),
        "attention_mask": torch.cat([torch.zeros(1, 5), torch.ones(1, 10)], 1).long(),
    }
    for one, other in zip(alone, layer_maps(model, padded), strict=True):
        assert_close(one.negative_ratio, other.negative_ratio)
        assert one.effect_size == pytest.approx(other.effect_size, rel=1e-4)


def test_the_effect_size_is_the_ratio_of_the_two_terms():
    model = adapted()
    seen = layer_maps(model, {"input_ids": IDS})[0]
    captured = {}
    attention = model.base_model.model.model.layers[0].self_attn
    attention.v_proj.register_forward_hook(lambda m, a, out: captured.update(value=out))
    model(IDS)
    value = captured["value"].view(1, 10, 2, 8).transpose(1, 2).repeat_interleave(2, 1)
    expected = (seen.map @ value).norm() / (seen.softmax @ value).norm()
    assert seen.effect_size == pytest.approx(float(expected), rel=1e-4)


def test_explain_needs_a_map():
    with pytest.raises(ValueError, match="no active map"):
        layer_maps(TINY["llama"](), {"input_ids": IDS})


def rows(count=8):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB, (count, 9), generator=generator)
    return [{"input_ids": i, "labels": i} for i in ids]


def trained(tmp_path, config, *, reference=False):
    effect = EffectSize()
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, logging_steps=2, report_to=[], save_strategy="no",
        per_device_train_batch_size=4, disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    model = get_peft_model(TINY["llama"](), config)
    trainer = Trainer(model=model, args=args, train_dataset=rows(), callbacks=[effect])
    trainer.train()
    return effect, trainer.state.log_history


def test_every_log_line_of_a_plain_trainer_has_the_effect_size(tmp_path):
    stack = LoradaConfig(parts=[LmamConfig(length=6), LoraConfig(target_modules=["q_proj"])])
    effect, history = trained(tmp_path, stack)
    lines = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in lines] == [2, 4]
    assert all(entry["effect_size"] > 1e-4 for entry in lines)
    assert len(effect.by_layer) == 2
    assert lines[-1]["effect_size"] == pytest.approx(effect.mean)


def test_a_map_that_does_nothing_is_said_to(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="lorada.runs.training.effect_size"):
        trained(tmp_path, LmamConfig(length=6, inverse_scale=4096 * 600))
    assert "numerically nothing" in caplog.text


def test_a_map_that_works_is_not_warned_about(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="lorada.runs.training.effect_size"):
        trained(tmp_path, LmamConfig(length=6))
    assert not caplog.text


def test_a_training_that_was_given_up_is_not_observed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(observation, "observers", [])

    def fails(*args, **kwargs):
        raise RuntimeError("given up")

    monkeypatch.setattr(Trainer, "compute_loss", fails)
    with pytest.raises(RuntimeError, match="given up"):
        trained(tmp_path, LmamConfig(length=6))
    gc.collect()
    assert observation.observers == []


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_no_negative_map_sits_inside_the_softmax_and_has_an_effect_size(name):
    model = adapted(name, ablation="no_negative")
    seen = layer_maps(model, {"input_ids": IDS})[0]
    with torch.no_grad():
        inside = model(IDS, output_attentions=True).attentions[0]
    assert_close(seen.fused, inside)
    assert seen.effect_size > 1e-3
    assert (seen.fused >= 0).all()
    assert (seen.negative_ratio == 0).all()
