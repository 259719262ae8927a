"""A map inside whole models: implementations, padding, caches, generation, precision, training."""

import copy
import pickle
from functools import partial
from itertools import product

import exact_cells
import pytest
import torch
from architectures import ARCHITECTURES, inputs
from conftest import DECODERS, ENCODERS, TINY, assert_all_close, assert_close, gradients
from covering_cases import covering
from exact_cells import LENGTH, PAD, alone
from exact_cells import PROMPTS as SAMPLES
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MarkupLMConfig,
    MarkupLMForTokenClassification,
)

from lorada import LmamConfig, PrefixConfig
from lorada.attention.hooks import DebertaHooks
from lorada.attention.observation import observe
from lorada.tuners.lmam import LmamLayer

pytestmark = pytest.mark.fp64

ABLATIONS = (None, "no_negative", "softmax", "full_rank")
adapted = partial(exact_cells.adapted, variant="map")


DTYPES = list(product(["llama", "mistral", "bert"], ABLATIONS, [torch.bfloat16, torch.float16]))


SMALLEST = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize("kind", ["Mpt", "Bloom"])
def test_model_that_neither_dispatches_its_attention_nor_has_hooks_is_an_error(kind):
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.lower(), **SMALLEST))
    said = rf"no self-attention .* {kind}ForCausalLM dispatches .* found {kind}Attention$"
    with pytest.raises(ValueError, match=said):
        get_peft_model(base, LmamConfig(length=LENGTH))


def test_padding_is_known_under_masks_that_hide_with_minus_ten_thousand():
    config = MarkupLMConfig(**SMALLEST, intermediate_size=48, pad_token_id=PAD)
    base = MarkupLMForTokenClassification(config)
    model = get_peft_model(base, LmamConfig(length=LENGTH, init_weights=False)).eval()
    ids, mask = exact_cells.pad(SAMPLES, "left")
    padded = model(input_ids=ids, attention_mask=mask).logits
    for row, sample in zip(exact_cells.own_rows(padded, mask), SAMPLES, strict=True):
        assert_close(row, model(sample[None]).logits[0])


@pytest.mark.fp64(False)
@pytest.mark.parametrize(("name", "ablation", "dtype"), covering(DTYPES, 2))
def test_map_stays_in_fp32_on_a_half_precision_base(name, ablation, dtype):
    base = TINY[name]().to(dtype)
    config = LmamConfig(inverse_scale=2.0, init_weights=False, length=LENGTH, ablation=ablation)
    model = get_peft_model(base, config)
    terms = []
    with observe(lambda call: terms.append(call.term)):
        plain = model(SAMPLES[1][None]).logits  # no mask: another path than that of the batch
        ids, mask = exact_cells.pad(SAMPLES, "right")
        logits = model(input_ids=ids, attention_mask=mask).logits
    assert plain.dtype == logits.dtype == dtype
    assert plain.isfinite().all()
    assert logits[mask.bool()].isfinite().all()
    assert all(term.dtype == torch.float32 for term in terms)
    assert len(terms) == 4  # two calls of two layers
    logits.float().sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in trained)


@pytest.mark.first
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_baked_maps_give_the_same_logits_until_others_are_trained_or_loaded(name, ablation):
    model = adapted(name, ablation=ablation)
    expected = alone(model, SAMPLES[1])
    model.base_model.bake()
    assert_close(alone(model, SAMPLES[1]), expected)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert_close(alone(model, SAMPLES[1]), expected)  # what was baked
    model.train()
    changed = alone(model.eval(), SAMPLES[1])
    assert not torch.allclose(changed, expected, atol=0.05)

    other = adapted(name, ablation=ablation)
    other.bake()
    set_peft_model_state_dict(other, get_peft_model_state_dict(model))  # which it then uses
    assert_close(alone(other, SAMPLES[1]), changed)


PARTS = {
    "map": partial(LmamConfig, rank=2, length=6, inverse_scale=1.0),
    "prefix": partial(PrefixConfig, length=3),
}


@pytest.mark.parametrize(("name", "part"), [("deberta", "map"), *product(["deberta_v2"], PARTS)])
def test_copies_and_pickles_of_a_model_with_hooks_have_parts_of_their_own(name, part):
    model = get_peft_model(ARCHITECTURES[name](), PARTS[part](init_weights=False)).eval()
    inputs = {"input_ids": torch.randint(5, 90, (2, 7)), "attention_mask": torch.ones(2, 7).long()}
    with torch.no_grad():
        expected = model(**inputs).logits  # the hooks sit where they follow LoRA only after a call

        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(other(**inputs).logits, expected, atol=0, rtol=0)
            for key, parameter in other.named_parameters():
                if any(own in key for own in ("lora_w_b", "lora_key")):
                    parameter.add_(1)
            assert not torch.allclose(other(**inputs).logits, expected, atol=1e-3)
            torch.testing.assert_close(model(**inputs).logits, expected, atol=0, rtol=0)


def test_baked_maps_follow_a_model_that_moves():
    model = adapted("llama")
    model.base_model.bake()
    model.to("meta")
    maps = model.base_model.model.model.layers[0].self_attn.lmam.maps()
    assert maps[0].baked.is_meta


def test_hooks_keep_nothing_of_a_batch():
    model = get_peft_model(ARCHITECTURES["deberta_v2"](), LmamConfig(length=LENGTH))
    model(**inputs("deberta_v2"))
    layers = [m for m in model.modules() if isinstance(m, LmamLayer)]
    hooks = [h for layer in layers for h in layer._handles if isinstance(h, DebertaHooks)]
    assert [(own._value, own._mask) for own in hooks] == [(None, None)] * 2


@pytest.mark.parametrize("name", [*DECODERS, "roberta"])  # BERT itself depends on the side
def test_gradients_do_not_depend_on_the_padding_side(name):
    model, found = adapted(name), []
    for side in ("left", "right"):
        model.zero_grad()
        ids, mask = exact_cells.pad(SAMPLES, side)
        cache = {} if name in ENCODERS else {"use_cache": False}
        logits = model(input_ids=ids, attention_mask=mask, **cache).logits
        (logits.log_softmax(-1)[..., 7] * mask).sum().backward()
        found.append(gradients(model))
    assert_all_close(*found)
