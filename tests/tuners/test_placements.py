"""BottleneckConfig at every placement, against plain modules; its start, saved, beside others."""

import copy

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, inputs, logits
from conftest import TINY, assert_all_close, assert_close, gradients
from folders import refused
from library.llama_layer import kept_bytes
from peft import LNTuningConfig, LoraConfig, PeftModel, get_peft_model
from placements import CASES as PLACED
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
from stacks import HIDDEN, assert_loads, bottleneck, lmam, moved, randomise
from torch import Tensor, nn
from transformers import BloomConfig, BloomModel, LlamaConfig

from lorada import BottleneckConfig, LoradaConfig
from lorada.tuners.bottleneck.bottleneck import BottleneckLayer, hook_at

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


def test_every_architecture_is_here():
    assert ARCHITECTURES.keys() <= KINDS.keys()


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


class Odd(nn.Module):
    """A model whose layer is like none in the table."""

    def __init__(self):
        super().__init__()
        self.config = LlamaConfig(hidden_size=8, num_attention_heads=2)
        self.layers = nn.ModuleList([nn.ModuleDict({"mix": nn.Linear(8, 8)})])


def bloom():
    """A model whose layer has the modules of Llama's, but its mlp returns the sum."""
    return BloomModel(BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=4))


@pytest.mark.parametrize("placement", ["pfeiffer", "ffn", "houlsby", "pa_attn"])
@pytest.mark.parametrize("build", [Odd, bloom])
def test_placements_of_a_layer_need_a_layer_that_is_known(build, placement):
    with pytest.raises(ValueError, match=f"'{placement}' does not know the layers of (Odd|Bloom)"):
        get_peft_model(build(), bottleneck(placement=placement))


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


def take(model: nn.Module, source: nn.Module, mark: str, of: str = "") -> None:
    """Give parameters with ``mark`` in their names the values of those with ``of`` there."""
    values = {key.replace(".base_layer", ""): p.data for key, p in source.named_parameters()}
    for key, parameter in model.named_parameters():
        if mark in key:
            parameter.data = values[key.replace(mark, of or mark).replace(".base_layer", "")]


@pytest.mark.parametrize(
    ("name", "norm"), [("llama", "post_attention_layernorm"), ("bart", "final_layer_norm")]
)
def test_norms_that_are_tuned_as_well_do_not_hide_the_ffn(name, norm):
    batch, alone = inputs(name), adapted(name)
    expected = logits(alone, **batch)  # a fresh LN tuning is the identity
    parts = [LNTuningConfig(target_modules=[norm]), bottleneck()]
    for order in (parts, parts[::-1]):
        model = get_peft_model(made(name), LoradaConfig(parts=order)).eval()
        take(model, alone, ".bneck.")
        assert_close(logits(model, **batch), expected)
        assert_close(logits(model.merge_weights(), **batch), expected)


# Those of ``placements``, and the default where a layer has something of its own: T5's layer of an
# FFN alone, GPT-2's Conv1D, OPT's tokens in one row.
ALL = [*PLACED, *((name, "ffn") for name in ("gpt2", "opt", "t5"))]
every_case = pytest.mark.parametrize(("name", "placement"), ALL)

# The life of an adapter.


@every_case
def test_fresh_adapter_is_near_the_base_and_a_disabled_one_is_not_there(name, placement):
    batch = inputs(name)
    base = logits(ARCHITECTURES[name](), **batch)
    config = bottleneck(placement=placement, init="bert")
    model = get_peft_model(ARCHITECTURES[name](), config).eval()
    still = bottleneck(placement=placement, init="lora")
    still = get_peft_model(ARCHITECTURES[name](), still).eval()

    assert 0 < (logits(model, **batch) - base).abs().max() < 0.5
    if placement == "pfeiffer":  # the norm runs twice, on the same sum
        assert_close(logits(still, **batch), base)
    else:
        torch.testing.assert_close(logits(still, **batch), base, atol=0, rtol=0)
    randomise(model)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, **batch), base, atol=0, rtol=0)
    unloaded = model.unload()
    torch.testing.assert_close(logits(unloaded, **batch), base, atol=0, rtol=0)
    assert not any("lorada" in str(m._forward_hooks) + str(m._forward_pre_hooks)
                   for m in unloaded.modules())  # fmt: skip


def gradients_of(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model(**batch).logits.square().mean().backward()
    return gradients(model)


@every_case
def test_gradients_reach_the_adapters_alone_and_survive_checkpointing(name, placement):
    # A smooth φ, of which a gradient that is recomputed in another order differs little.
    model, batch = adapted(name, placement, activation="gelu").train(), inputs(name)
    expected = gradients_of(model, batch)

    assert set(expected) == {key for key, _ in model.named_parameters() if ".lora_" in key}
    model.enable_input_require_grads()
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert_all_close(gradients_of(model, batch), expected)
    for part in parts_of(model).values():
        assert not part._saved, "an adapter keeps what it has read"


def test_a_layer_that_is_checkpointed_around_its_forward_is_changed_too():
    layer, x = nn.Linear(3, 3).train(), torch.randn(2, 3)
    expected = layer(x) + 1
    layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, None
    change = hook_at(layer, "out", lambda output: output + 1)
    assert_close(layer(x), expected)
    change.remove()
    assert_close(layer(x) + 1, expected)


# Beside other parts.

# The linears at which LoRA meets a placement.
MET = {
    "llama": ["o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3": ["o_proj"],
    "roberta": ["dense"],
    "deberta_v2": ["attention.output.dense", "output.dense"],
    **{name: ["out_proj", "fc2"] for name in ("bart", "mbart", "opt")},
    "gpt2": ["mlp.c_proj"],
    "t5": ["wo"],
}


@every_case
def test_lora_at_the_same_linears_before_after_or_later_and_merged_gives_the_same(name, placement):
    batch, drawn = inputs(name), []
    beside = LoraConfig(r=2, target_modules=MET[name], init_lora_weights=False)
    part = bottleneck(placement=placement)
    for parts in ([beside, part], [part, beside], [part]):
        drawn.append(get_peft_model(ARCHITECTURES[name](), LoradaConfig(parts=parts)).eval())
        fill(drawn[-1])
    first, second, model = drawn
    expected = logits(first, **batch)
    assert (expected - logits(ARCHITECTURES[name](), **batch)).abs().max() > 0.1
    assert_close(logits(second, **batch), expected)

    take(model, first, ".bneck")
    alone = logits(model, **batch)
    model.add_adapter("later", LoradaConfig(parts=[beside]))
    take(model, first, ".later.", ".default.")
    torch.testing.assert_close(logits(model, **batch), alone, atol=0, rtol=0)
    model.base_model.set_adapter(["default", "later"])
    assert_close(logits(model, **batch), expected)
    model.delete_adapter("later")
    model.set_adapter("default")
    torch.testing.assert_close(logits(model, **batch), alone, atol=0, rtol=0)
    for stacked in (first, second):
        assert_close(logits(stacked.merge_weights(), **batch), expected)


TOGETHER = {
    "pa_attn and ffn": ("bart", [{"placement": "pa_attn"}, {}]),
    "pa_attn and ffn of mbart": ("mbart", [{"placement": "pa_attn"}, {}]),
    "both of houlsby's, of two sizes": (
        "roberta",
        [
            {"placement": "houlsby", "target_modules": ["attention.output.dense"]},
            {"placement": "houlsby", "rank": 5, "target_modules": ["intermediate"]},
        ],
    ),
    "four at one mlp": (
        "llama",
        [{}, {"placement": "houlsby"}, {"placement": "series"}, {"placement": "parallel"}],
    ),
}
COUNTED = {"bart": 6 + 4, "mbart": 6 + 4, "roberta": 4, "llama": 2 + 4 + 2 + 4}  # of 2 layers each


@pytest.mark.parametrize("case", TOGETHER)
def test_placements_stack_with_each_other_the_map_and_lora(case, tmp_path):
    name, options = TOGETHER[case]
    lora_part = LoraConfig(r=2, target_modules=MET[name])
    parts = [lmam(), *(bottleneck(**each) for each in options), lora_part]
    model = get_peft_model(ARCHITECTURES[name](), LoradaConfig(parts=parts)).eval()
    fill(model)
    batch = inputs(name)
    expected = logits(model, **batch)
    assert_loads(model, ARCHITECTURES[name](), tmp_path, batch)
    assert len(parts_of(model)) == COUNTED[name]
    for removed in parts_of(model).values():  # each one counts
        weights = removed.lora_up["default"]
        kept = weights.detach().clone()
        weights.data.zero_()
        assert (logits(model, **batch) - expected).abs().max() > 1e-4
        weights.data.copy_(kept)
    assert_close(logits(model.merge_weights(), **batch), expected)


# How an adapter starts, its dropout, what it keeps.


@pytest.mark.fp64(False)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_of_a_narrower_input_no_wide_copy_is_kept_and_nothing_else_changes(layer_norm):
    host = adapted("llama", layer_norm=layer_norm).base_model.model.model.layers[0].mlp
    part, x = host.bneck, torch.randn(3, 64, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    weights = [weight for weight in part.parameters() if weight.requires_grad]
    wide = x.detach().float().requires_grad_()  # as it is computed, beside a copy in fp32
    both = part.adapt("default", x), part.adapt("default", wide)
    assert torch.equal(*both)
    pull = torch.randn_like(both[0])
    (dx, *found), (dwide, *expected) = (
        torch.autograd.grad((term * pull).sum(), [given, *weights])
        for term, given in zip(both, (x, wide), strict=True)
    )
    assert torch.equal(dx, dwide.to(torch.bfloat16))
    for gradient, right in zip(found, expected, strict=True):
        assert torch.equal(gradient, right)
    kept = kept_bytes(lambda: part.adapt("default", x), [*weights, x])
    assert kept < x.nbytes  # what is as wide as the bottleneck


def test_start_draws_the_matrices_as_the_paper_of_each_start_does():
    wide = bottleneck(rank=64, init="bert")
    layer = get_peft_model(TINY["llama"](), wide).get_base_model().model.layers[0].mlp.bneck
    drawn = torch.cat([layer.lora_down["default"].flatten(), layer.lora_up["default"].flatten()])
    assert 0.019 < drawn.std() < 0.021
    assert not layer.lora_down_bias["default"].any()

    layer = get_peft_model(TINY["llama"](), bottleneck(rank=64)).get_base_model().model.layers[0]
    bound = HIDDEN**-0.5  # Kaiming-uniform with a = √5
    assert 0.95 * bound < layer.mlp.bneck.lora_down["default"].abs().max() <= bound
    assert not layer.mlp.bneck.lora_up["default"].any()


def test_dropout_is_the_models_own_unless_given():
    bert = TINY["bert"](hidden_dropout_prob=0.25)
    own = get_peft_model(bert, bottleneck()).get_base_model().bert.encoder.layer[0].intermediate
    given = get_peft_model(TINY["bert"](), bottleneck(dropout=0.5)).get_base_model()

    assert own.bneck.dropouts["default"] == 0.25
    assert given.bert.encoder.layer[0].intermediate.bneck.dropouts["default"] == 0.5
    model = adapted("llama", dropout=0.5)
    batch = inputs("llama")
    torch.testing.assert_close(logits(model, **batch), logits(model, **batch), atol=0, rtol=0)
    model.train()
    assert not torch.allclose(logits(model, **batch), logits(model, **batch))
