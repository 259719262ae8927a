"""The map by distance inside whole models: kernels, hooks, precision, training."""

import copy

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import DECODERS, ENCODERS, TINY, assert_close
from peft import PeftModel, get_peft_model
from stacks import batch, logits
from test_attention_models import SAMPLES, alone
from test_prefix_kernels import flash_kernels  # noqa: F401  # a fixture
from transformers import DynamicCache

from lorada import LmamConfig, explain
from lorada.attention.observation import observe

pytestmark = pytest.mark.fp64

OPTIONS = {"form": "distance", "taps": 5}


def adapted(name: str, implementation: str = "sdpa", **options) -> PeftModel:
    """A tiny model with a random map; the same weights and map for the same arguments."""
    base = TINY[name](attn_implementation=implementation)
    options = {"inverse_scale": 2.0, "init_weights": False, **OPTIONS, **options}
    return get_peft_model(base, LmamConfig(**options)).eval()


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_a_map_changes_the_logits_of_every_token_however_long_the_sequence_is(name):
    model, sample = adapted(name), torch.arange(50) * 7 % 83 + 5
    with_map = alone(model, sample)
    with model.disable_adapter():
        without = alone(model, sample)
    assert ((with_map - without).abs().amax(-1) > 0.02).all()


def under_flash(model: PeftModel) -> PeftModel:
    """The same model, whose attention calls flash kernels."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if hasattr(module, "config") and hasattr(module.config, "_attn_implementation_internal"):
            module.config._attn_implementation_internal = "flash_attention_2"
    return other


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_flash_kernels_give_what_sdpa_gives(name, padding, flash_kernels):  # noqa: F811
    sdpa = adapted(name)
    given = batch(name)
    if padding is None:
        del given["attention_mask"]
    elif padding == "left":
        given = {key: value.flip(1) for key, value in given.items()}
    real = given.get("attention_mask", torch.ones(3, 8)).bool()
    expected = logits(sdpa, given)
    assert_close(logits(under_flash(sdpa), given)[real], expected[real])


def test_flash_kernels_give_what_sdpa_gives_in_chunks_and_steps(flash_kernels):  # noqa: F811
    sdpa = adapted("llama")
    tokens = torch.randint(5, 90, (2, 9))
    other, expected = under_flash(sdpa), logits(sdpa, {"input_ids": tokens})
    cache, found = DynamicCache(config=other.config), []
    for chunk in tokens.split([4, 3, 1, 1], 1):
        found.append(logits(other, {"input_ids": chunk}, past_key_values=cache, use_cache=True))
    assert_close(torch.cat(found, 1), expected)


def test_baking_leaves_a_map_that_depends_on_the_batch_as_it_is():
    model = adapted("llama")
    expected = alone(model, SAMPLES[1])
    model.base_model.bake()
    assert_close(alone(model, SAMPLES[1]), expected)


def test_explain_shows_the_map_that_is_multiplied_with_the_values():
    model, seen = adapted("llama"), []
    given = batch("llama")
    with observe(seen.append):
        layers = explain(model, given)
    real = given["attention_mask"].bool()
    for layer, one in zip(layers, seen, strict=True):
        values = one.call.value.repeat_interleave(2, 1)
        assert_close((layer.map @ values).transpose(1, 2)[real], one.term[real])
        assert_close((layer.fused @ values).transpose(1, 2)[real], (one.output + one.term)[real])
        assert layer.effect_size > 0
        assert (layer.map_negative > 0).any()


# Models that compute attention themselves.


@pytest.mark.parametrize("name", ["falcon", "bloom"])
def test_decoding_behind_hooks_equals_the_full_forward(name):
    options = {"inverse_scale": 2.0, "init_weights": False, **OPTIONS}
    model = get_peft_model(ARCHITECTURES[name](), LmamConfig(**options)).eval()
    tokens = torch.randint(5, 90, (2, 9))
    expected = logits(model, {"input_ids": tokens, "use_cache": False})
    cache, found = DynamicCache(config=model.config), []
    for chunk in tokens.split([4, 1, 1, 1, 1, 1], 1):
        found.append(logits(model, {"input_ids": chunk}, past_key_values=cache, use_cache=True))
    assert_close(torch.cat(found, 1), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_forward_compiles_to_one_graph():
    torch._dynamo.reset()
    model = adapted("llama")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for given in (batch("llama"), {"input_ids": torch.randint(5, 90, (2, 11))}):
            assert_close(compiled(**given).logits, model(**given).logits)
