"""Every placement of BottleneckConfig against a model with plain modules in the same positions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, inputs, logits
from conftest import assert_close
from folders import refused
from peft import LNTuningConfig, PeftModel, get_peft_model
from placements import (
    KINDS,
    LINEARS,
    ON_LAYERS,
    Adapter,
    Twin,
    Twins,
    adapted,
    fill,
    layers_of,
    made,
    of_linears,
    parts_of,
    twin_of,
    twins_of,
)
from stacks import bottleneck, moved
from torch import nn
from transformers import LlamaConfig

from lorada import BottleneckConfig, LoradaConfig
from lorada.tuners.bottleneck.bottleneck import BottleneckLayer

pytestmark = pytest.mark.fp64

GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
CASES = [
    *((name, placement, {}) for name in KINDS for placement in ON_LAYERS),
    *((name, "ffn", {"adapter_input": "normed"}) for name in KINDS),
    *((name, placement, {}) for name in GATED for placement in LINEARS),
    ("phi3", "series", {}),
    # Options that say otherwise than the placement.
    ("roberta", "houlsby", {"layer_norm": True}),
    ("roberta", "pfeiffer", {"layer_norm": True, "use_bias": False}),
    ("roberta", "pa_attn", {"layer_norm": False, "scale": 2.0}),
    ("roberta", "pa_attn", {"activation": "gelu"}),
    *(("llama", "ffn", options) for options in (
        {"scale": 2.0}, {"activation": "tanh"}, {"use_bias": False}, {"layer_norm": True},
        {"init": "bert"},
    )),
]  # fmt: skip
# Linears that are not the ones of LLM-Adapters: a Conv1D, tokens in one row, ones LLaMA lacks. In
# RoBERTa the attention's output projection ends in output.dense, too.
OTHER_LINEARS = {
    ("gpt2", "c_fc"): ["mlp.c_fc"],
    ("opt", "fc2"): ["fc2"],
    ("roberta", "output.dense"): ["output.dense", "attention.output.dense"],
}


def assert_twins(model: PeftModel, name: str, twins: Twins) -> None:
    """Outputs and gradients of a model are those of its twin."""
    architecture, _ = KINDS[name].base or (name, {})
    batch, twin = inputs(architecture), twin_of(model, name, twins)
    outputs = [m(**batch).logits for m in (model, twin)]
    for output in outputs:
        output.square().mean().backward()

    assert (outputs[1] - logits(made(name), **batch)).abs().max() > 0.1
    assert_close(outputs[0], outputs[1])
    for module in twin.modules():
        if isinstance(module, Twin):
            assert any(weight.grad.any() for weight in module.adapter.weights.values())
            for key, weight in module.adapter.weights.items():
                assert_close(getattr(module.part[0], key)["default"].grad, weight.grad)


@pytest.mark.parametrize(("name", "placement", "options"), CASES, ids=str)
def test_placement_is_what_it_says_with_its_gradients(name, placement, options):
    assert_twins(adapted(name, placement, **options), name, twins_of(name, placement))


@pytest.mark.parametrize(("name", "linear"), OTHER_LINEARS)
@pytest.mark.parametrize("placement", LINEARS)
def test_linears_of_any_kind_can_be_named(name, linear, placement):
    model = adapted(name, placement, target_modules=[linear])
    assert_twins(model, name, of_linears(placement, *OTHER_LINEARS[name, linear]))


DROPOUTS = dict.fromkeys(
    ("hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "dropout", "dropout_rate"), 0.5
)
WITHOUT_DROPOUT = (*GATED, "modernbert")


@pytest.mark.parametrize("name", [name for name in KINDS if name not in WITHOUT_DROPOUT])
def test_the_adapter_beside_an_ffn_is_added_behind_the_dropout_of_the_ffn(name):
    model = get_peft_model(made(name, **DROPOUTS), bottleneck(dropout=0.0)).eval()
    for part in parts_of(model).values():  # A(x) is s everywhere
        nn.init.zeros_(part.lora_up["default"])
        nn.init.ones_(part.lora_up_bias["default"])
    base, calls = model.get_base_model(), []
    path = next(key for key in layers_of(base) if hasattr(base.get_submodule(f"{key}"), "bneck")
                or f"{key}.{KINDS[name].held}.bneck" in parts_of(model))  # fmt: skip
    layer = base.get_submodule(path)
    handle = layer.register_forward_pre_hook(
        lambda module, *given: calls.append(given), with_kwargs=True
    )
    logits(model, **inputs((KINDS[name].base or (name,))[0]))
    handle.remove()
    if KINDS[name].norm:
        layer.get_submodule(KINDS[name].norm).forward = lambda x: x
    args, kwargs = calls[0]

    def run():
        torch.manual_seed(1)
        with torch.no_grad():
            output = layer(*args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    with model.disable_adapter():
        still = run()
        layer.train()
        without = run()
    assert (without - still).abs().max() > 0.1
    assert_close(run() - without, torch.full_like(without, 4.0))


UNDEFINED = [(name, placement) for placement, names in {
    "series": {*GATED, "phi3"}, "parallel": GATED,
}.items() for name in ARCHITECTURES.keys() - names]  # fmt: skip


def test_placements_of_a_layer_need_a_layer_that_is_known():
    class Odd(nn.Module):
        """A model whose layer is like none in the table."""

        def __init__(self):
            super().__init__()
            self.config = LlamaConfig(hidden_size=8, num_attention_heads=2)
            self.layers = nn.ModuleList([nn.ModuleDict({"mix": nn.Linear(8, 8)})])

    for placement in ("pfeiffer", "ffn", "houlsby", "pa_attn"):
        with pytest.raises(ValueError, match=f"'{placement}' does not know the layers of Odd"):
            get_peft_model(Odd(), bottleneck(placement=placement))


@pytest.mark.parametrize(("name", "placement"), sorted(UNDEFINED))
def test_placement_is_refused_by_name_where_it_is_not_defined(name, placement):
    config, model = bottleneck(placement=placement), ARCHITECTURES[name]()
    said = r"(is for .*down_proj: give target_modules; this model has \w|does not know the layers)"
    refused(f"^placement='{placement}' {said}", lambda: get_peft_model(model, config))
    assert not any(isinstance(module, BottleneckLayer) for module in model.modules())


def test_houlsbys_adapter_lies_before_the_dropout_of_attention_and_after_that_of_the_ffn():
    model = adapted("roberta", "houlsby")
    layer = model.get_base_model().roberta.encoder.layer[0]
    for module in (layer.attention.output, layer.output):
        # A dropout whose position shows; the module, and with it its hooks, stays.
        module.dropout.forward = lambda y: F.threshold(y, 0.05, 0.0)
    x, heads = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    drop = layer.output.dropout.forward

    with torch.no_grad():
        actual = layer.attention.output(heads, x), layer.feed_forward_chunk(x)
        with model.disable_adapter():
            dense = layer.attention.output.dense(heads)
            dropped = drop(layer.output.dense(layer.intermediate(x)))
        first = Adapter(layer.attention.output.bneck_houlsby_dense)(dense)
        second = Adapter(layer.intermediate.bneck_houlsby)(dropped)
        assert_close(actual[0], layer.attention.output.LayerNorm(drop(dense + first) + x))
        assert_close(actual[1], layer.output.LayerNorm(dropped + second + x))


@pytest.mark.parametrize("name", ["mbart", "llama", "bart"])
def test_pfeiffers_adapter_reads_the_ffn_alone_whichever_part_came_first(name):
    batch, beside = inputs(name), bottleneck(scale=2.0)
    outputs = []
    for parts in ([bottleneck(placement="pfeiffer"), beside],
                  [beside, bottleneck(placement="pfeiffer")]):  # fmt: skip
        stack = LoradaConfig(parts=parts)
        model = get_peft_model(ARCHITECTURES[name](use_cache=False), stack).eval()
        fill(model)
        outputs.append(logits(model, **batch))
        # Both are at the end of mBART's layers, which is within their checkpoint.
        model.train()
        for dropout in [m for m in model.modules() if hasattr(m, "dropout")]:
            if isinstance(dropout.dropout, float):
                dropout.dropout = 0.0
        for part in parts_of(model).values():
            part.dropouts["default"] = 0.0
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert_close(model(**batch).logits.detach(), outputs[-1])
    assert_close(outputs[1], outputs[0])


@pytest.mark.parametrize("name", ["bart", "mbart"])
def test_houlsbys_adapter_sees_the_ffn_after_a_dropout_that_is_no_module(name):
    plain = ARCHITECTURES[name](use_cache=False, dropout=0.5)
    config = bottleneck(placement="houlsby", dropout=0.0, target_modules=["final_layer_norm"])
    model = moved(copy.deepcopy(plain), config)
    layer, base = model.get_base_model().model.encoder.layers[0], plain.model.encoder.layers[0]
    if name == "bart":
        layer.final_layer_norm.forward = base.final_layer_norm.forward = lambda h: h
    silent = copy.deepcopy(base)
    nn.init.zeros_(silent.fc2.weight)
    x, outputs = torch.randn(2, 5, 32), []
    with torch.no_grad():
        for each in (layer.train(), base.train(), silent.train()):
            torch.manual_seed(1)  # dropouts
            outputs.append(each(x, attention_mask=None))
        actual, without, residual = outputs
        y = without - residual

        assert (y == 0).float().mean() > 0.3
        assert_close(actual, without + Adapter(layer.final_layer_norm.bneck_houlsby)(y))


def test_final_layer_norm_of_a_layer_is_chosen_without_its_namesakes():
    # OPT and mBART have one behind all layers as well.
    options = {"target_modules": ["final_layer_norm"], "layers_to_transform": [1]}
    for name, stacks in (("opt", ["decoder"]), ("whisper", ["encoder", "decoder"])):
        held = [key.rpartition(".")[0] for key in parts_of(adapted(name, **options))]
        assert held == [f"model.{stack}.layers.1.final_layer_norm" for stack in stacks]


# What is refused.


def test_houlsby_is_not_placed_by_half_where_the_attention_is_unknown():
    model = ARCHITECTURES["llama"]()
    for layer in model.model.layers:
        layer.self_attn.projected = layer.self_attn.o_proj
        del layer.self_attn.o_proj
    with pytest.raises(ValueError, match="'houlsby' does not know the layers of LlamaForCausal"):
        get_peft_model(model, bottleneck(placement="houlsby"))


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("ffn", ("relu", True, False, "lora", 4.0, None)),
        ("houlsby", ("relu", True, False, "bert", 1.0, None)),
        ("pfeiffer", ("relu", True, False, "bert", 1.0, None)),
        ("pa_attn", ("relu", True, True, "bert", 1.0, None)),
        ("series", ("tanh", False, False, "bert", 1.0, 0.0)),
        ("parallel", ("tanh", False, False, "bert", 1.0, 0.0)),
    ],
)
def test_each_placement_brings_its_own_settings(placement, expected):
    config = BottleneckConfig(placement=placement)
    names = ("activation", "use_bias", "layer_norm", "init", "scale", "dropout")

    assert tuple(getattr(config, name) for name in names) == expected


@pytest.mark.parametrize(
    ("name", "norm"), [("llama", "post_attention_layernorm"), ("bart", "final_layer_norm")]
)
def test_norms_that_are_tuned_as_well_do_not_hide_the_ffn(name, norm):
    batch, source = inputs(name), dict(adapted(name).named_parameters())
    for reverse in (False, True):
        parts = [LNTuningConfig(target_modules=[norm]), bottleneck()]
        config = LoradaConfig(parts=parts[::-1] if reverse else parts)
        model = get_peft_model(made(name), config).eval()
        for key, parameter in model.named_parameters():
            if ".bneck." in key:
                parameter.data = source[key.replace(".base_layer", "")].data
        alone = get_peft_model(made(name), bottleneck()).eval()
        for key, parameter in alone.named_parameters():
            parameter.data = source[key].data
        expected = logits(alone, **batch)  # a fresh LN tuning is the identity
        assert_close(logits(model, **batch), expected)
        assert_close(logits(model.merge_weights(), **batch), expected)
