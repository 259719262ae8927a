"""Every ordered pair of parts on the same matrices merges to what it computes, or says why not."""

import copy
import functools
import pickle
from collections.abc import Callable

import pytest
import torch
from conftest import TINY, assert_close
from folders import refused
from in_double import in_double
from peft import LoraConfig, PeftConfig, PeftModel, TrainableTokensConfig, get_peft_model
from stacks import bottleneck, lmam, logits, randomise
from torch import nn

from lorada import (
    LamdaConfig,
    LoradaConfig,
    OmoeConfig,
    PrefixConfig,
    QuantaConfig,
    SoraConfig,
    build_method,
    merge_weights,
)
from lorada.methods.lookup import peft_names

TARGETS = {"target_modules": ["gate_proj", "o_proj"]}
BATCH = {"input_ids": torch.arange(5, 19).view(2, 7)}
# What merge_weights() keeps as an adapter, and what keeps the parts beside it from being merged.
ATTACHED = ("bottleneck", "lmam", "prefix", "series")
UNMERGEABLE = ("lily", "omoe")
# What cannot be around another part, and what is said.
IGNORES = "computes with the weight of .* and would ignore the other parts there: put it before"
OUTER = {
    **dict.fromkeys(("frod", "glora", "hra", "ln_tuning", "supertuning"), IGNORES),
    "shira": "SHiRA does not support nested base layers",
}
ONE_OF = (("lora", "dora", "adalora"), ("ia3", "ia3_in"))


@functools.cache
def _weights() -> dict:
    """Of a model of one layer whose every matrix has a bias; in LLaMA none has."""
    base = TINY["llama"](num_hidden_layers=1, attention_bias=True, mlp_bias=True)
    return {
        name: torch.randn(value.shape) if name.endswith("bias") else value
        for name, value in base.state_dict().items()
    }


def base() -> nn.Module:
    model = TINY["llama"](num_hidden_layers=1, attention_bias=True, mlp_bias=True)
    model.load_state_dict(_weights())
    return model


def of_peft(name: str, **options) -> PeftConfig:
    settings = {**TARGETS, **options}
    return build_method(name, TINY["llama"]().config, **{name: settings}).config.parts[0]


PARTS: dict[str, Callable[[], PeftConfig]] = {
    **{name: functools.partial(of_peft, name) for name in peft_names()},
    "ia3": functools.partial(of_peft, "ia3", feedforward_modules=[]),
    "ia3_in": functools.partial(of_peft, "ia3", feedforward_modules=TARGETS["target_modules"]),
    "dora": lambda: LoraConfig(r=2, use_dora=True, **TARGETS),
    "quanta": lambda: QuantaConfig(**TARGETS),
    "sora": lambda: SoraConfig(rank=2, **TARGETS),
    "lamda": lambda: LamdaConfig(rank=2, **TARGETS),
    "omoe": lambda: OmoeConfig(rank=2, **TARGETS),
    "lmam": lmam,
    "prefix": lambda: PrefixConfig(length=3),
    "bottleneck": bottleneck,
    "series": lambda: bottleneck(placement="series"),
}


def placed(*names: str) -> PeftModel:
    """A model with these parts, whose weights have moved from their start; in fp64."""
    torch.manual_seed(0)
    model = get_peft_model(base(), LoradaConfig(parts=[PARTS[name]() for name in names])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.double()


def refusal(inner: str, outer: str) -> str:
    """What is said when two parts cannot be placed in this order; empty if they can."""
    if any(inner in kind and outer in kind for kind in ONE_OF):
        return "both target .*: give them different target_modules"
    return "" if inner in ATTACHED else OUTER.get(outer, "")


def check(*names: str) -> None:
    """Parts merge in place and back, and for good, to what they compute; or it is refused."""
    model = placed(*names)  # not in fp64, which PSOFT does not start in
    with in_double():
        check_merges(model, set(names))


def check_merges(model: PeftModel, names: set[str]) -> None:
    expected = logits(model, BATCH)
    with model.disable_adapter():
        plain = logits(model, BATCH)
    if names & set(UNMERGEABLE):
        for merge in (model.merge_adapter, model.merge_weights, model.merge_and_unload):
            refused("cannot be merged into the weights: keep it as an adapter", merge)
    elif names & set(ATTACHED):
        for merge in (model.merge_adapter, model.merge_and_unload):
            refused("cannot be merged into the weights: merge_weights", merge)
    else:
        model.merge_adapter()
        assert_close(logits(model, BATCH), expected)
        model.unmerge_adapter()
        with model.disable_adapter():
            assert_close(logits(model, BATCH), plain)
    assert_close(logits(model, BATCH), expected)
    if not names & set(UNMERGEABLE):
        assert_close(logits(merge_weights(model), BATCH), expected)


@pytest.mark.more
@pytest.mark.parametrize("outer", PARTS)
def test_two_parts_on_one_matrix_merge_to_what_they_compute(outer):
    for inner in PARTS:
        if inner != outer and (said := refusal(inner, outer)):
            refused(said, lambda inner=inner: placed(inner, outer))
        elif inner != outer:
            check(inner, outer)


@pytest.mark.first
@pytest.mark.parametrize(
    "names",
    [
        # They read the base weight.
        ("lora", "hira"), ("vera", "dora"), ("waveft", "dora"), ("sora", "dora"), ("oft", "peanut"),
        # The inner one changes a bias.
        ("beft", "dora"), ("ia3", "dora"), ("beft", "boft"), ("adamss", "deft"),
        # PEFT cannot undo their merge.
        ("osf",), ("ia3",), ("lora", "osf"),
        ("lora", "ia3"), ("hira", "lora"), ("lora", "lmam"), ("lily", "lora"),
        ("ia3", "sora", "vera", "dora"),
    ],
    ids="+".join,
)  # fmt: skip
def test_parts_that_read_more_than_their_input_merge_to_what_they_compute(names):
    check(*names)


@pytest.mark.first
@pytest.mark.fp64
def test_adapters_merged_one_after_the_other_are_those_merged_at_once():
    model = placed("lora", "ia3")
    model.add_adapter("other", LoradaConfig(parts=[PARTS["lora"](), PARTS["ia3"]()]))
    randomise(model.eval(), "other")
    model.base_model.set_adapter(["default", "other"])
    expected, plain = logits(model, BATCH), logits(base(), BATCH)
    for names in (["default"], ["other"]):
        model.merge_adapter(names)
    assert_close(logits(model, BATCH), expected)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    with copied.disable_adapter():
        assert_close(logits(copied, BATCH), plain)
    model.base_model.set_adapter(["default", "other"])  # unmerges
    assert_close(logits(model, BATCH), expected)
    assert_close(logits(model.merge_and_unload(), BATCH), expected)


@pytest.mark.first
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_large_bias_and_a_narrow_dtype_round_a_merged_weight_once(dtype):
    model = placed("lora", "ia3").float()
    layer = model.base_model.model.model.layers[0].self_attn.o_proj
    linear = layer.get_base_layer()
    linear.bias.data.fill_(300.0)
    exact = copy.deepcopy(model).merge_and_unload().model.layers[0].self_attn.o_proj
    linear.to(dtype)
    merged = model.merge_and_unload().model.layers[0].self_attn.o_proj
    assert merged.weight.dtype == merged.bias.dtype == dtype
    for found, wanted in ((merged.weight, exact.weight), (merged.bias, exact.bias)):
        # The base is rounded, and so is the result.
        assert_close(found.float(), wanted, terms=2, size=wanted.abs().max(), dtype=dtype)


def test_several_parts_on_an_embedding_are_not_merged():
    parts = [LoraConfig(r=2, target_modules=["embed_tokens"]),
             TrainableTokensConfig(token_indices=[1], target_modules=["embed_tokens"])]  # fmt: skip
    model = get_peft_model(base(), LoradaConfig(parts=parts))
    for merge in (model.merge_adapter, model.merge_weights, model.merge_and_unload):
        refused(
            "LoraLayer and TrainableTokensLayer on model.embed_tokens, which is not linear", merge
        )
