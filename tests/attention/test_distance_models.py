"""The map by distance inside whole models: baked, explained, behind hooks, compiled."""

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import DECODERS, ENCODERS, assert_close
from exact_cells import PROMPTS, VARIANTS, adapted, alone
from peft import get_peft_model
from stacks import batch, in_chunks, logits

from lorada import LmamConfig, explain
from lorada.attention.observation import observe

pytestmark = pytest.mark.fp64


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_a_map_changes_the_logits_of_every_token_however_long_the_sequence_is(name):
    model, sample = adapted(name, "distance"), torch.arange(50) * 7 % 83 + 5
    with_map = alone(model, sample)
    with model.disable_adapter():
        without = alone(model, sample)
    assert ((with_map - without).abs().amax(-1) > 0.02).all()


def test_baking_leaves_a_map_that_depends_on_the_batch_as_it_is():
    model = adapted("llama", "distance")
    expected = alone(model, PROMPTS[1])
    model.base_model.bake()
    assert_close(alone(model, PROMPTS[1]), expected)


def test_explain_shows_the_map_that_is_multiplied_with_the_values():
    model, seen = adapted("llama", "distance"), []
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
    config = LmamConfig(**VARIANTS["distance"], inverse_scale=2.0, init_weights=False)
    model = get_peft_model(ARCHITECTURES[name](), config).eval()
    tokens = torch.randint(5, 90, (2, 9))
    expected = logits(model, {"input_ids": tokens, "use_cache": False})
    assert_close(in_chunks(model, tokens, [4, 1, 1, 1, 1, 1]), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_forward_compiles_to_one_graph():
    torch._dynamo.reset()
    model = adapted("llama", "distance")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for given in (batch("llama"), {"input_ids": torch.randint(5, 90, (2, 11))}):
            assert_close(compiled(**given).logits, model(**given).logits)
