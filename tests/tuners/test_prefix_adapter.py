"""A prefix as an adapter: its start, where it goes, saved, folded, beside others, refused."""

import json

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import TINY, assert_close, assert_same_gradients
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from stacks import assert_loads, batch, logits, lora, moved, randomise
from torch import Tensor, nn

from lorada import LmamConfig, LoradaConfig, PrefixConfig
from lorada.tuners.prefix import PrefixLayer, PrefixNetwork

pytestmark = pytest.mark.fp64

LENGTH, WIDTH = 3, 5  # of the prefix in tokens, of the network that it comes out of
PREFIXES = {"flat": {}, "network": {"projection": WIDTH}}


def config_of(prefix: str, part: str, name: str, **options):
    config = PrefixConfig(length=LENGTH, **PREFIXES[prefix], **options)
    if part == "alone":
        return config
    return LoradaConfig(parts=[config, LmamConfig(rank=2, length=6), lora(name)])


def trained(prefix: str, part: str = "alone", name: str = "llama", **options) -> PeftModel:
    """A tiny model whose prefix has moved from its start."""
    return moved(TINY[name](), config_of(prefix, part, name, **options))


def layers(model: nn.Module) -> list[PrefixLayer]:
    return [m for m in model.modules() if isinstance(m, PrefixLayer)]


def networks(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, PrefixNetwork)]


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


every_part = pytest.mark.parametrize("part", ["alone", "in a stack"])


def test_encoder_decoders_have_three_networks():
    model = get_peft_model(ARCHITECTURES["bart"](), config_of("network", "alone", "bart"))
    assert networks(model.get_base_model()) == ["prefix_encoder", "prefix_decoder", "prefix_cross"]
    shared = {
        id(layer.network[0].host.get_submodule(f"prefix_{kind}")): id(layer.network[0])
        for kind, layer in zip(
            ["encoder"] * 2 + ["decoder", "cross"] * 2, layers(model), strict=True
        )
    }
    assert all(found == expected for found, expected in shared.items())
    assert len(shared) == 3


# The start.


@pytest.mark.parametrize(("options", "std"), [({}, 0.02), ({"initial_std": 1.0}, 1.0)])
def test_a_prefix_starts_from_its_normal_distribution_and_is_not_the_identity(options, std):
    torch.manual_seed(0)
    model = get_peft_model(TINY["llama"](), PrefixConfig(length=100, **options)).eval()
    for layer in layers(model):
        for start in (layer.lora_key["default"], layer.lora_value["default"]):
            assert start.std().item() == pytest.approx(std, rel=0.1)
            assert abs(start.mean().item()) < 0.1 * std
    inputs = batch("llama")
    with model.disable_adapter():
        plain = logits(model, inputs)
    # It takes its share of each softmax from the first step on.
    assert (logits(model, inputs) - plain).abs().max() > 0.1


def test_a_network_is_the_one_of_the_formula_with_its_gradients():
    base = trained("network").get_base_model()
    network, blocks = base.prefix_self, layers(base)
    embedding, hidden, bias = ours = [
        parameters["default"]
        for parameters in (network.lora_embedding, network.lora_hidden, network.lora_hidden_bias)
    ]
    outs = [layer.lora_out["default"] for layer in blocks]
    out_biases = [layer.lora_out_bias["default"] for layer in blocks]
    inner = torch.tanh(embedding @ hidden.T + bias)
    expected = inner @ torch.cat(outs).T + torch.cat(out_biases)
    found = torch.cat([part for layer in blocks for part in layer.prefix("default")], -1)
    assert found.shape[0] == LENGTH
    assert_same_gradients(found, expected, [*ours, *outs, *out_biases])


# Saving, folding, merging.


@every_part
def test_a_folded_network_is_a_flat_prefix_in_every_way(part, tmp_path):
    model, inputs = trained("network", part), batch("llama")
    expected = logits(model, inputs)
    model.fold()
    assert_close(logits(model, inputs), expected)
    assert networks(model) == []
    flat = trained("flat", part)
    assert set(trainable(model)) == set(trainable(flat))

    assert_loads(model, TINY["llama"](), tmp_path, inputs)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    prefix = config if part == "alone" else config["parts"][0]
    assert prefix["projection"] is None
    saved = load_file(tmp_path / "adapter_model.safetensors")
    own = [key for key in saved if "prefix" in key]
    assert sum(saved[key].numel() for key in own) == 2 * 2 * LENGTH * 16


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


def parts_by_layer(**second) -> LoradaConfig:
    first = {"length": LENGTH, "projection": WIDTH}
    sizes = enumerate((first, first | second))
    return LoradaConfig(parts=[PrefixConfig(**size, layers_to_transform=[i]) for i, size in sizes])


def test_two_parts_share_a_network_if_they_are_of_one_size():
    model = moved(TINY["llama"](), parts_by_layer())
    expected = logits(model, inputs := batch("llama"))
    assert networks(model.get_base_model()) == ["prefix_self"]
    model.fold()
    assert [part.projection for part in model.peft_config["default"].parts] == [None, None]
    assert_close(logits(model, inputs), expected)
    get_peft_model(TINY["llama"](), parts_by_layer(length=2, projection=None))
    with pytest.raises(ValueError, match=r"length=2, projection=5 of .* differ from length=3"):
        get_peft_model(TINY["llama"](), parts_by_layer(length=2))


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"stacks": ["encoder"]}, {"encoder self"}),
        ({"stacks": ["decoder"]}, {"decoder self", "cross"}),
        ({"exclude_modules": ["encoder_attn"]}, {"encoder self", "decoder self"}),
        ({"target_modules": ["encoder_attn"]}, {"cross"}),
        ({}, {"encoder self", "decoder self", "cross"}),
    ],
)
def test_stacks_and_names_choose_the_blocks_of_an_encoder_decoder(options, blocks):
    model = get_peft_model(
        ARCHITECTURES["bart"](), PrefixConfig(length=LENGTH, layers_to_transform=[1], **options)
    )
    found = [n for n, m in model.get_base_model().named_modules() if isinstance(m, PrefixLayer)]
    kinds = {
        "model.encoder.layers.1.self_attn.prefix": "encoder self",
        "model.decoder.layers.1.self_attn.prefix": "decoder self",
        "model.decoder.layers.1.encoder_attn.prefix": "cross",
    }
    assert {kinds[name] for name in found} == blocks


def test_prefixes_of_several_active_adapters_stand_one_behind_the_other():
    model, inputs = trained("flat"), batch("llama")
    model.add_adapter("second", PrefixConfig(length=2))
    randomise(model, "second")
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
