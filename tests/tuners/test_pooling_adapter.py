"""Pooling as a part: what the last layer of a head reads, beside the twin that reads it by hand."""

import copy

import pytest
import torch
from conftest import SIZES, assert_all_close, assert_close, gradients
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from stacks import assert_loads, logits
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lorada import LmamConfig, LoradaConfig
from lorada.tuners.pooling import PoolingConfig, attach, attached, pool

pytestmark = pytest.mark.fp64

HEADED = {"num_labels": 3, "max_position_embeddings": 64, "pad_token_id": 0}
DEBERTA = {"relative_attention": True, "position_biased_input": False, "type_vocab_size": 0,
           "pos_att_type": ["p2c", "c2p"]}  # fmt: skip
MODELS = {"bert": {}, "roberta": {}, "xlm-roberta": {}, "deberta": DEBERTA, "deberta-v2": DEBERTA}
every_model = pytest.mark.parametrize("name", MODELS)
every_pooling = pytest.mark.parametrize("pooling", ["mean", "cls"])


def headed(name, **changes):
    """A tiny classifier in eval mode, the same weights on every call."""
    sizes = {**SIZES, **HEADED, **MODELS.get(name, {}), **changes}
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(name, **sizes)
    ).eval()


def batch():
    """Three texts; the second is padded, and the third is one token long."""
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:], mask[2, 1:] = 0, 0
    return {"input_ids": torch.randint(5, 90, (3, 9)) * mask, "attention_mask": mask}


def by_hand(backbone, head, inputs, pooling):
    """The logits, text by text, from the hidden states of the backbone and the last linear."""
    hidden, found = backbone(**inputs)[0], []
    for states, mask in zip(hidden, inputs["attention_mask"], strict=True):
        real = [state for state, one in zip(states, mask, strict=True) if one]
        found.append(sum(real) / len(real) if pooling == "mean" else real[0])
    return torch.stack([head(each) for each in found])


def parts_of(model):
    """The backbone and the last linear layer of a plain model or one with an adapter."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(base, base.base_model_prefix), last(base)


def last(base):
    head = base.classifier
    return head.out_proj if hasattr(head, "out_proj") else head


def expected(model, inputs, pooling):
    """By hand, with the pooling switched off, so that the hidden states are the backbone's own."""
    backbone, head = parts_of(model)
    backbone.pooling.enable_adapters(False)
    found = by_hand(backbone, head, inputs, pooling)
    backbone.pooling.enable_adapters(True)
    return found


def stacked(base, pooling, *parts, **options):
    parts = [*parts, PoolingConfig(pooling=pooling)]
    return get_peft_model(base, LoradaConfig(parts=parts, **options)).eval()


# The value and its gradients.


@every_pooling
@every_model
def test_the_last_layer_reads_the_pooled_states_and_nothing_else(name, pooling):
    model, inputs = headed(name), batch()
    own = logits(model, inputs)
    wanted = by_hand(*parts_of(model), inputs, pooling)
    names = {key for key, _ in model.named_parameters()}
    attach(model, pooling)
    found = model(**inputs).logits
    assert_close(found, wanted)
    assert not torch.allclose(found, own, atol=1e-3)
    assert {key for key, _ in model.named_parameters()} == names, "it has no weights"

    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    fast = gradients(model)
    model.zero_grad()
    (expected(model, inputs, pooling) * weight).sum().backward()
    # BERT computes its pooler beside it, which nothing reads.
    assert_all_close(fast, gradients(model))
    assert not any("pooler" in key or key.startswith("classifier.dense") for key in fast)


@every_model
def test_outputs_as_a_tuple_and_a_batch_without_a_mask_are_pooled_too(name):
    model, inputs = headed(name), batch()
    attach(model, "mean")
    whole = {"input_ids": inputs["input_ids"][:1]}
    given = {**whole, "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    assert_close(logits(model, whole), logits(model, given))
    with torch.no_grad():
        assert_close(model(**inputs, return_dict=False)[0], logits(model, inputs))


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(0, 5),
    st.integers(0, 5),
    st.sampled_from(("mean", "cls")),
)
def test_the_pooled_states_do_not_depend_on_padding_on_either_side(lengths, before, after, pooling):
    width = max(lengths) + before + after
    hidden = torch.full((len(lengths), width, 4), float("nan"), dtype=torch.float64)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    texts = [torch.randn(count, 4, dtype=torch.float64) for count in lengths]
    for row, text in enumerate(texts):
        place = slice(before, before + len(text))
        hidden[row, place], mask[row, place] = text, 1
    wanted = torch.stack([text.mean(0) if pooling == "mean" else text[0] for text in texts])
    assert_close(pool(hidden, mask, pooling), wanted)
    assert_close(pool(hidden, mask.bool(), pooling), wanted)


@pytest.mark.fp64(False)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mean_of_half_precision_is_summed_in_full(dtype):
    hidden = torch.full((1, 4096, 2), 60.0, dtype=dtype)  # the sum is past float16's largest
    found = pool(hidden, torch.ones(1, 4096), "mean")
    assert found.dtype == dtype
    assert torch.equal(found, hidden[:, 0])


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"attention_mask of shape \(2, 3\), not \(2, 1, 3, 3\)"):
        pool(torch.zeros(2, 3, 4), torch.ones(2, 1, 3, 3), "mean")


# As a part of an adapter.


@every_model
def test_adapters_with_different_poolings_share_a_model(name):
    base, inputs = headed(name), batch()
    wanted = {"none": logits(base, inputs)}
    for adapter, pooling in (("default", "mean"), ("first", "cls")):
        with attached(base, pooling):
            wanted[adapter] = logits(base, inputs)
    model = stacked(base, "mean", LmamConfig(rank=2, length=4))
    model.add_adapter("first", LoradaConfig(parts=[PoolingConfig(pooling="cls")]))
    model.add_adapter("none", LoradaConfig(parts=[LmamConfig(rank=2, length=4)]))
    for adapter, found in wanted.items():
        model.set_adapter(adapter)
        assert_close(logits(model, inputs), found)
    model.set_adapter("none")
    for gone in ("default", "first"):
        model.delete_adapter(gone)
    assert_close(logits(model, inputs), wanted["none"])


# Models without such a head.


@pytest.mark.parametrize("name", ["gpt2", "distilbert", "electra", "bart", "llama"])
def test_a_head_of_another_kind_is_refused_and_the_model_stays_as_it_was(name):
    config = AutoConfig.for_model(name, vocab_size=96)
    for key in ("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"):
        if hasattr(config, key):
            setattr(config, key, 1)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    modules = [key for key, _ in model.named_modules()]
    for place in (lambda: attach(model, "mean"), lambda: stacked(model, "mean")):
        with pytest.raises(ValueError, match=f"pooling is for the heads of bert, .*not of {name}"):
            place()
    assert [key for key, _ in model.named_modules()] == modules


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForTokenClassification])
@every_model
def test_a_known_type_without_a_head_for_texts_is_refused(name, auto):
    sizes = {**SIZES, **HEADED, **MODELS[name]}
    model = auto.from_config(AutoConfig.for_model(name, **sizes))
    with pytest.raises(ValueError, match=r"has no head for classes or scores .*: load the model"):
        attach(model, "mean")


def test_switched_off_the_head_is_the_models_own_bit_for_bit():
    for name in MODELS:
        model, inputs = headed(name), batch()
        own = logits(model, inputs)
        adapted = stacked(model, "mean", LoraConfig(r=2, target_modules=["query", "in_proj",
                          "query_proj"]), modules_to_save=["classifier"])  # fmt: skip
        with adapted.disable_adapter():
            assert torch.equal(logits(adapted, inputs), own)
        assert not torch.allclose(logits(adapted, inputs), own, atol=1e-3)
        assert torch.equal(logits(adapted.unload(), inputs), own)


def test_it_is_a_peft_adapter_by_itself(tmp_path):
    inputs = batch()
    config = PoolingConfig(pooling="cls", modules_to_save=["classifier"])
    model = get_peft_model(headed("bert"), config).eval()
    assert_close(logits(model, inputs), expected(model, inputs, "cls"))
    assert_loads(model, headed("bert"), tmp_path, inputs)


def test_a_copy_has_a_pooling_of_its_own_and_after_the_block_a_model_is_as_before():
    for name in MODELS:
        model, inputs = headed(name), batch()
        own, modules = logits(model, inputs), [key for key, _ in model.named_modules()]
        with attached(model, "mean"):
            wanted, twin = logits(model, inputs), copy.deepcopy(model)
            assert not torch.allclose(wanted, own, atol=1e-3)
        assert torch.equal(logits(model, inputs), own)
        assert [key for key, _ in model.named_modules()] == modules
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert_close(logits(twin, inputs), wanted)
