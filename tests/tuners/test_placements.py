"""Every placement of BottleneckConfig against a model with plain modules in the same positions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, inputs, logits
from conftest import assert_close
from peft import PeftModel, get_peft_model
from placements import (
    BERT,
    TWINS,
    Adapter,
    After,
    AfterSum,
    AfterSumOfGemma2,
    Before,
    Beside,
    BesideHeadsWithin,
    BetweenNorms,
    Twin,
    adapted,
    cases,
    parts_of,
    twin_of,
)
from stacks import bottleneck, randomise
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
)

from lorada import BottleneckConfig, LoradaConfig
from lorada.tuners.bottleneck.adapter import BottleneckLayer

pytestmark = pytest.mark.fp64

# Architecture -> attentions with their output projections, FFN (all before a dropout, of which
# there is none in eval mode), and where the part of the FFN is held.
LAYERS = {
    "phi": ({"self_attn": "dense"}, "mlp", "mlp"),
    "gpt2": ({"attn": "c_proj"}, "mlp", "mlp"),
    "gptj": ({"attn": "out_proj"}, "mlp", "mlp"),
    "gpt_neox": ({"attention": "dense"}, "mlp", "mlp"),
    **dict.fromkeys(("falcon", "falcon_alibi"), ({"self_attention": "dense"}, "mlp", "mlp")),
    # Its mlp returns the sum with the residual stream.
    "bloom": ({"self_attention": "dense"}, "mlp.dense_4h_to_h", "mlp"),
    "distilbert": ({"attention": "out_lin"}, "ffn", "ffn"),
    "modernbert": ({"attn": "Wo"}, "mlp", "mlp"),
    "t5": ({"SelfAttention": "o", "EncDecAttention": "o"}, "DenseReluDense", "DenseReluDense"),
    "vit": ({"attention": "o_proj"}, "mlp", "mlp"),
}
NORMS = {
    "gpt2": "ln_2",
    "falcon_alibi": "post_attention_layernorm",
    "bloom": "post_attention_layernorm",
    "modernbert": "mlp_norm",
    "t5": "layer_norm",
    "vit": "layernorm_after",
}
FURTHER = {  # twins in further architectures
    ("opt", "houlsby"): TWINS["mbart"]["houlsby"],
    ("whisper", "houlsby"): TWINS["mbart"]["houlsby"],
    ("whisper", "pa_attn"): TWINS["mbart"]["pa_attn"],
    ("gemma2", "houlsby"): [
        TWINS["llama"]["houlsby"][0],
        ("post_feedforward_layernorm", "mlp.bneck_houlsby", After),
    ],
    ("phi3", "houlsby"): TWINS["llama"]["houlsby"],
    ("opt", "pfeiffer"): TWINS["mbart"]["pfeiffer"],
    ("whisper", "pfeiffer"): TWINS["mbart"]["pfeiffer"],
    ("phi3", "pfeiffer"): TWINS["llama"]["pfeiffer"],
    ("gemma2", "pfeiffer"): [
        ("post_feedforward_layernorm", "mlp.bneck_pfeiffer", AfterSumOfGemma2)
    ],
    ("distilbert", "pfeiffer"): [("output_layer_norm", "ffn.bneck_pfeiffer", BetweenNorms)],
}
for _name, (_attentions, _ffn, _held) in LAYERS.items():
    FURTHER[_name, "houlsby"] = [
        *((f"{a}.{p}", f"{a}.bneck_houlsby_{p}", After) for a, p in _attentions.items()),
        (_ffn, f"{_held}.bneck_houlsby", After),
    ]
    FURTHER[_name, "pa_attn"] = [(a, f"{a}.bneck_pa_attn", BesideHeadsWithin) for a in _attentions]
    if _name != "distilbert":  # which has a norm behind the FFN
        # Without a norm of its own in front, the FFN is beside the attention.
        _after = type(f"AfterSumOf_{_name}", (AfterSum,), {"norm": NORMS.get(_name)})
        _kind = _after if _name in NORMS else After
        FURTHER[_name, "pfeiffer"] = [(_ffn, f"{_held}.bneck_pfeiffer", _kind)]
# The architectures that a placement is defined in.
GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"}
IN = {
    "series": {*GATED, "phi3"},
    "series_input": GATED,
    "parallel": GATED,
    **{name: set(ARCHITECTURES) for name in ("houlsby", "pa_attn", "pfeiffer")},
}
# Linears that are not the ones of LLM-Adapters: a Conv1D, tokens in one row, ones LLaMA lacks.
OTHER_LINEARS = [("gpt2", "c_fc", "mlp"), ("opt", "fc2", ""), ("roberta", "output.dense", "output")]


def assert_twins(model: PeftModel, twin: nn.Module, batch: dict[str, Tensor], base: Tensor):
    outputs = [m(**batch).logits for m in (model, twin)]
    for output in outputs:
        output.square().mean().backward()

    assert (outputs[1] - base).abs().max() > 0.1
    assert_close(outputs[0], outputs[1])
    for module in twin.modules():
        if isinstance(module, Twin):
            for key, weight in module.adapter.weights.items():
                assert weight.grad.abs().max() > 0
                assert_close(getattr(module.part[0], key)["default"].grad, weight.grad)


@cases
def test_placement_is_what_it_says_with_its_gradients(name, placement):
    batch = inputs(name)
    model = adapted(name, placement)

    assert_twins(
        model,
        twin_of(model, name, TWINS[name][placement]),
        batch,
        logits(ARCHITECTURES[name](), **batch),
    )


@pytest.mark.parametrize(("name", "placement"), FURTHER)
def test_placement_is_the_same_in_further_architectures(name, placement):
    model, batch = adapted(name, placement), inputs(name)
    twin = twin_of(model, name, FURTHER[name, placement])

    assert_twins(model, twin, batch, logits(ARCHITECTURES[name](), **batch))


DEFINED = [(name, placement) for placement, names in IN.items() for name in names]
UNDEFINED = [
    (n, placement) for placement, names in IN.items() for n in ARCHITECTURES.keys() - names
]


@pytest.mark.parametrize(("name", "placement"), sorted(DEFINED))
def test_placement_is_reached_in_every_layer_where_it_is_defined(name, placement):
    config, batch = bottleneck(placement=placement, init="lora"), inputs(name)
    model = get_peft_model(ARCHITECTURES[name](), config).eval()
    base = logits(ARCHITECTURES[name](), **batch)

    assert_close(logits(model, **batch), base)
    randomise(model)
    assert (logits(model, **batch) - base).abs().max() > 0.1
    model(**batch).logits.square().mean().backward()
    assert all(part.lora_down["default"].grad.abs().max() > 0 for part in parts_of(model).values())


def test_placements_of_a_layer_need_a_layer_that_is_known():
    class Odd(nn.Module):
        """A model whose layer is like none in the table."""

        def __init__(self):
            super().__init__()
            self.config = LlamaConfig(hidden_size=8, num_attention_heads=2)
            self.layers = nn.ModuleList([nn.ModuleDict({"mix": nn.Linear(8, 8)})])

    for placement, word in (("pfeiffer", "FFN"), ("ffn", "FFN"), ("houlsby", "attention"),
                            ("pa_attn", "attention")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{placement}.* does not know the {word} of Odd"):
            get_peft_model(Odd(), bottleneck(placement=placement))


def test_houlsby_is_not_placed_by_half_where_the_attention_is_unknown():
    model = ARCHITECTURES["llama"]()
    for layer in model.model.layers:
        layer.self_attn.projected = layer.self_attn.o_proj
        del layer.self_attn.o_proj
    with pytest.raises(ValueError, match="'houlsby' does not know the attention of LlamaForCausal"):
        get_peft_model(model, bottleneck(placement="houlsby"))


@pytest.mark.parametrize(("name", "placement"), sorted(UNDEFINED))
def test_placement_is_refused_by_name_where_it_is_not_defined(name, placement):
    with pytest.raises(ValueError, match=f"^placement='{placement}' ") as error:
        get_peft_model(ARCHITECTURES[name](), bottleneck(placement=placement))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "linear", "holder"), OTHER_LINEARS)
@pytest.mark.parametrize(
    ("placement", "kind"), [("series", After), ("series_input", Before), ("parallel", Beside)]
)
def test_linears_of_any_kind_can_be_named(name, linear, holder, placement, kind):
    model = adapted(name, placement, target_modules=[linear])
    own = f"bneck_{placement}_{linear.rpartition('.')[2]}"
    path = linear if not holder or linear.startswith(holder) else f"{holder}.{linear}"
    twins = [(path, f"{holder}.{own}" if holder else own, kind)]
    if name == "roberta":  # the attention's output projection ends in output.dense, too
        twins.append(("attention.output.dense", f"attention.output.{own}", kind))
    batch = inputs(name)

    assert_twins(model, twin_of(model, name, twins), batch, logits(ARCHITECTURES[name](), **batch))


@pytest.mark.parametrize(
    ("placement", "options"),
    [
        ("houlsby", {"layer_norm": True}),
        ("pfeiffer", {"layer_norm": True, "use_bias": False}),
        ("pa_attn", {"layer_norm": False, "scale": 2.0}),
        ("pa_attn", {"activation": "gelu"}),
    ],
)
def test_options_say_otherwise_than_the_placement(placement, options):
    model, batch = adapted("roberta", placement, **options), inputs("roberta")

    assert_twins(
        model,
        twin_of(model, "roberta", BERT[placement]),
        batch,
        logits(ARCHITECTURES["roberta"](), **batch),
    )


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
        for key, parameter in sorted(model.named_parameters()):
            if ".bneck" in key:
                generator = torch.Generator().manual_seed(sum(map(ord, key)))
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
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
    model = get_peft_model(copy.deepcopy(plain), config)
    randomise(model)
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


# The settings of each placement's own code, and the counts they make.


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("ffn", ("relu", True, False, "lora", 4.0, None)),
        ("houlsby", ("relu", True, False, "bert", 1.0, None)),
        ("pfeiffer", ("relu", True, False, "bert", 1.0, None)),
        ("pa_attn", ("relu", True, True, "bert", 1.0, None)),
        ("series", ("tanh", False, False, "bert", 1.0, 0.0)),
        ("series_input", ("tanh", False, False, "bert", 1.0, 0.0)),
        ("parallel", ("tanh", False, False, "bert", 1.0, 0.0)),
    ],
)
def test_each_placement_brings_its_own_settings(placement, expected):
    config = BottleneckConfig(placement=placement)
    names = ("activation", "use_bias", "layer_norm", "init", "scale", "dropout")

    assert tuple(getattr(config, name) for name in names) == expected


# What is refused.

REFUSED = {
    "series without its linear": (
        "opt", {"placement": "series"},
        "'series' is for down_proj: give target_modules; this model has fc1, fc2, self_attn",
    ),
    "parallel with one of its two": (
        "phi3", {"placement": "parallel"},
        "'parallel' is for up_proj and down_proj: give target_modules; .* has mlp.down_proj",
    ),
    "a module that is no linear": (
        "llama", {"placement": "series", "target_modules": ["mlp"]},
        "matches model.layers.0.mlp, which is not a linear layer within a transformer layer",
    ),
    "a linear outside of the layers": (
        "llama", {"placement": "series", "target_modules": ["lm_head"]},
        "matches lm_head, which is not a linear layer within a transformer layer",
    ),
    "an FFN as an attention": (
        "llama", {"placement": "pa_attn", "target_modules": ["mlp"]},
        "matches model.layers.0.mlp, which is not an attention .*this model has self_attn",
    ),
    "an attention as houlsby's projection": (
        "llama", {"placement": "houlsby", "target_modules": ["self_attn"]},
        "not an attention's output projection or an FFN .*has mlp, self_attn.o_proj",
    ),
    "a name that matches nothing": (
        "llama", {"placement": "parallel", "target_modules": ["wi"]},
        r"target_modules=\['wi'\] matched no module; this model has mlp.down_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_placement_or_target_that_a_model_lacks_is_an_error_in_one_line(case):
    name, options, message = REFUSED[case]
    model = ARCHITECTURES[name]()
    with pytest.raises(ValueError, match=message) as error:
        get_peft_model(model, BottleneckConfig(**options))

    assert "\n" not in str(error.value)
    assert not any(isinstance(module, BottleneckLayer) for module in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "attn"}, "placement='attn' is not one of 'ffn', 'pa_attn'"),
        ({"placement": "series", "rank": 0}, "rank=0 must be a whole number above 0"),
        ({"placement": "houlsby", "init": "zero"}, "init='zero' is not one of"),
        ({"placement": "pa_attn", "adapter_input": "normed"},
         "adapter_input='normed' is about placement 'ffn', not 'pa_attn': leave it out"),
    ],
)  # fmt: skip
def test_bad_values_are_errors_that_show_them(options, message):
    with pytest.raises(ValueError, match=message):
        BottleneckConfig(**options)
