"""A prefix as an adapter: saved, folded, merged, mixed with others, removed, refused."""

import json

import pytest
import torch
from conftest import TINY, assert_close
from peft import PeftModel, get_peft_model
from prefixes import (
    LENGTH,
    WIDTH,
    config_of,
    every_part,
    every_prefix,
    layers,
    networks,
    trainable,
    trained,
)
from safetensors.torch import load_file
from stacks import batch, logits, randomise
from transformers import AutoModelForCausalLM

from lorada import LoradaConfig, PrefixConfig

pytestmark = pytest.mark.fp64

# Saving, folding, merging.


@every_part
@every_prefix
def test_transformers_loads_it_by_itself(prefix, part, tmp_path):
    model, inputs = trained(prefix, part), batch("llama")
    model.get_base_model().name_or_path = str(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    TINY["llama"]().save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert_close(logits(again, inputs), logits(model, inputs))


@every_part
def test_a_folded_network_is_a_flat_prefix_in_every_way(part, tmp_path):
    model, inputs = trained("network", part), batch("llama")
    expected = logits(model, inputs)
    model.fold()
    assert_close(logits(model, inputs), expected)
    assert networks(model) == []
    flat = trained("flat", part)
    assert set(trainable(model)) == set(trainable(flat))

    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    prefix = config if part == "alone" else config["parts"][0]
    assert prefix["projection"] is None
    saved = load_file(tmp_path / "adapter_model.safetensors")
    own = [key for key in saved if "prefix" in key]
    assert sum(saved[key].numel() for key in own) == 2 * 2 * LENGTH * 16
    again = PeftModel.from_pretrained(TINY["llama"](), tmp_path).eval()
    assert_close(logits(again, inputs), expected)


@pytest.mark.fp64(False)
def test_a_network_is_computed_in_fp32_under_autocast():
    model, inputs = trained("network"), batch("llama")
    found = []
    for fold in (False, True):
        if fold:
            model.fold()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(logits(model, inputs))
    assert torch.equal(*found)


def test_folding_one_adapter_leaves_the_network_of_another():
    model, inputs = trained("network"), batch("llama")
    model.add_adapter("second", config_of("network", "alone", "llama"))
    randomise(model, "second")
    first = logits(model, inputs)
    model.set_adapter("second")
    second, trains = logits(model, inputs), set(trainable(model))
    model.fold("default")
    assert torch.equal(logits(model, inputs), second)
    assert set(trainable(model)) == trains
    model.set_adapter("default")
    assert_close(logits(model, inputs), first)
    assert networks(model.get_base_model()) == ["prefix_self"]


# Several adapters.


def two_adapters(prefix: str, name: str = "llama", **options) -> PeftModel:
    model = get_peft_model(TINY[name](**options), config_of(prefix, "alone", name)).eval()
    randomise(model)
    model.add_adapter("second", PrefixConfig(length=2))
    randomise(model, "second")
    return model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", ["llama", "bert"])
@every_prefix
def test_each_sample_of_a_mixed_batch_sees_its_own_prefix(prefix, name, padded, implementation):
    model = two_adapters(prefix, name, attn_implementation=implementation)
    inputs = batch(name)
    if not padded:
        del inputs["attention_mask"]
    mixed = logits(model, inputs, adapter_names=["default", "__base__", "second"])
    expected = []
    for i, adapter in enumerate(["default", None, "second"]):
        own = {key: value[i : i + 1] for key, value in inputs.items()}
        if adapter is None:
            with model.disable_adapter():
                expected.append(logits(model, own))
        else:
            model.set_adapter(adapter)
            expected.append(logits(model, own))
    real = inputs.get("attention_mask", torch.ones(3, 8)).bool()
    assert_close(mixed[real], torch.cat(expected)[real])


def test_prefixes_of_several_active_adapters_stand_one_behind_the_other():
    model, inputs = two_adapters("flat"), batch("llama")
    model.base_model.set_adapter(["default", "second"])
    found = logits(model, inputs)
    joined = get_peft_model(TINY["llama"](), PrefixConfig(length=LENGTH + 2)).eval()
    with torch.no_grad():
        for both, one in zip(layers(model), layers(joined), strict=True):
            for part in ("lora_key", "lora_value"):
                parts = getattr(both, part)
                whole = torch.cat([parts["default"], parts["second"]])
                getattr(one, part)["default"].copy_(whole)
    assert_close(found, logits(joined, inputs))


# What is refused.


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None])
def test_a_length_that_is_no_count_is_refused(value):
    with pytest.raises(ValueError, match=f"length={value!r} must be a whole number above 0"):
        PrefixConfig(length=value)


@pytest.mark.parametrize("value", [0, 2.5, False])
def test_a_projection_that_is_no_width_is_refused(value):
    with pytest.raises(ValueError, match=f"projection={value!r} must be a whole number above 0"):
        PrefixConfig(projection=value)


@pytest.mark.parametrize("value", [0, -0.1, "much", None])
def test_a_start_without_a_spread_is_refused(value):
    with pytest.raises(ValueError, match=f"initial_std={value!r} must be a number above 0"):
        PrefixConfig(initial_std=value)


def test_modules_that_are_no_attention_are_refused():
    with pytest.raises(ValueError, match="mlp, which is not an attention module") as refused:
        get_peft_model(TINY["llama"](), PrefixConfig(target_modules=["mlp"]))
    assert "\n" not in str(refused.value)


def parts_by_layer(**second) -> LoradaConfig:
    first = {"length": LENGTH, "projection": WIDTH}
    options = [{**first, "layers_to_transform": [0]}, {**first, "layers_to_transform": [1]}]
    return LoradaConfig(
        parts=[PrefixConfig(**options[0]), PrefixConfig(**{**options[1], **second})]
    )


def test_two_parts_share_a_network_if_they_are_of_one_size():
    model = get_peft_model(TINY["llama"](), parts_by_layer()).eval()
    randomise(model)
    expected = logits(model, inputs := batch("llama"))
    assert networks(model.get_base_model()) == ["prefix_self"]
    model.fold()
    assert [part.projection for part in model.peft_config["default"].parts] == [None, None]
    assert_close(logits(model, inputs), expected)
    get_peft_model(TINY["llama"](), parts_by_layer(length=2, projection=None))
    with pytest.raises(ValueError, match=r"length=2, projection=5 of .* differ from length=3"):
        get_peft_model(TINY["llama"](), parts_by_layer(length=2))
