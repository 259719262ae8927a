"""BottleneckConfig on every architecture: each FFN, written out again, with A(x) beside it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from architectures import ARCHITECTURES, inputs, logits
from conftest import assert_close
from peft import LNTuningConfig, LoraConfig, PeftModel, get_peft_model
from stacks import bottleneck, randomise
from torch import Tensor, nn

from lorada import LoradaConfig

pytestmark = pytest.mark.fp64


@dataclass(frozen=True)
class Ffn:
    """The FFN of an architecture, independent of the library's table.

    Attributes:
        layers: paths of the layers that are looked at.
        parts: layer, residual stream -> what the FFN reads, FFN(x).
        linears: the FFN's linears, as LoRA's target_modules; the last is its output.
        norm: the norm behind the residual sum of a post-LN layer.
        parallel: whether the FFN runs beside the attention, on the input of the layer.
    """

    layers: tuple[str, ...]
    parts: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    linears: tuple[str, str]
    norm: str = ""
    parallel: bool = False


def mlp_behind(norm: str) -> Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]:
    def parts(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = layer.get_submodule(norm)(x)
        return normed, layer.mlp(normed)

    return parts


def gemma2(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    normed = layer.pre_feedforward_layernorm(x)
    return normed, layer.post_feedforward_layernorm(layer.mlp(normed))


def bloom(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    normed, mlp = layer.post_attention_layernorm(x), layer.mlp
    return normed, mlp.dense_4h_to_h(mlp.gelu_impl(mlp.dense_h_to_4h(normed)))


def fc_pre_ln(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    normed = layer.final_layer_norm(x)
    return normed, layer.fc2(layer.activation_fn(layer.fc1(normed)))


def fc_post_ln(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return x, layer.fc2(layer.activation_fn(layer.fc1(x)))


def bert(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return x, layer.output.dense(layer.intermediate(x))


def distilbert(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return x, layer.ffn(x)


def t5(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    normed = layer.layer_norm(x)
    return normed, layer.DenseReluDense(normed)


SWIGLU = ("up_proj", "down_proj")
MEGATRON = ("dense_h_to_4h", "dense_4h_to_h")
FC = ("fc1", "fc2")
DENSE = ("intermediate.dense", "output.dense")
LLAMA = Ffn(("model.layers.1",), mlp_behind("post_attention_layernorm"), SWIGLU)
GEMMA2 = Ffn(("model.layers.1",), gemma2, SWIGLU)
ENCODER_DECODER = ("model.encoder.layers.1", "model.decoder.layers.1")


def bert_of(encoder: str) -> Ffn:
    return Ffn((f"{encoder}.encoder.layer.1",), bert, DENSE, norm="output.LayerNorm")


FFN = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3"), GEMMA2),
    "phi": Ffn(("model.layers.1",), mlp_behind("input_layernorm"), FC, parallel=True),
    "phi3": Ffn(LLAMA.layers, LLAMA.parts, ("gate_up_proj", "down_proj")),
    "gpt2": Ffn(("transformer.h.1",), mlp_behind("ln_2"), ("mlp.c_fc", "mlp.c_proj")),
    "gptj": Ffn(("transformer.h.1",), mlp_behind("ln_1"), ("fc_in", "fc_out"), parallel=True),
    "gpt_neox": Ffn(
        ("gpt_neox.layers.1",), mlp_behind("post_attention_layernorm"), MEGATRON, parallel=True
    ),
    "opt": Ffn(("model.decoder.layers.1",), fc_pre_ln, FC),
    "falcon": Ffn(("transformer.h.1",), mlp_behind("input_layernorm"), MEGATRON, parallel=True),
    "falcon_alibi": Ffn(
        ("transformer.h.1",), mlp_behind("post_attention_layernorm"), MEGATRON
    ),
    "bloom": Ffn(("transformer.h.1",), bloom, MEGATRON),
    "bert": bert_of("bert"),
    "roberta": bert_of("roberta"),
    "xlm_roberta": bert_of("roberta"),
    "deberta": bert_of("deberta"),
    "deberta_v2": bert_of("deberta"),
    "distilbert": Ffn(
        ("distilbert.transformer.layer.1",), distilbert, ("lin1", "lin2"), "output_layer_norm"
    ),
    "modernbert": Ffn(("model.layers.1",), mlp_behind("mlp_norm"), ("mlp.Wi", "mlp.Wo")),
    "bart": Ffn(ENCODER_DECODER, fc_post_ln, FC, norm="final_layer_norm"),
    "mbart": Ffn(ENCODER_DECODER, fc_pre_ln, FC),
    "whisper": Ffn(ENCODER_DECODER, fc_pre_ln, FC),
    "t5": Ffn(("encoder.block.1.layer.1", "decoder.block.1.layer.2"), t5, ("wi", "wo")),
    "vit": Ffn(("vit.layers.1",), mlp_behind("layernorm_after"), FC),
}  # fmt: skip

# Those whose FFN has a dropout of its own, and the names it has in the configs.
WITH_DROPOUT = ("bart", "bert", "bloom", "deberta", "deberta_v2", "distilbert", "falcon",
                "falcon_alibi", "gpt2", "gpt_neox", "gptj", "mbart", "opt", "phi", "phi3",
                "roberta", "t5", "vit", "whisper", "xlm_roberta")  # fmt: skip
DROPOUTS = dict.fromkeys(
    ("hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "dropout", "dropout_rate"), 0.5
)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
# Layers that the tables tell apart by more than the names of their modules.
VARIANTS = {
    "gpt_neox-serial": (
        "gpt_neox",
        {"use_parallel_residual": False},
        Ffn(("gpt_neox.layers.1",), mlp_behind("post_attention_layernorm"), MEGATRON),
    ),
    "falcon-new-architecture": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        Ffn(("transformer.h.1",), mlp_behind("ln_mlp"), MEGATRON, parallel=True),
    ),
    "opt-350m": (
        "opt",
        {"do_layer_norm_before": False},
        Ffn(("model.decoder.layers.1",), fc_post_ln, FC, norm="final_layer_norm"),
    ),
}
CASES = {**{name: (name, {}, ffn) for name, ffn in FFN.items()}, **VARIANTS}


def adapted(name: str, **options) -> PeftModel:
    """A model with a bottleneck whose weights have moved, in eval mode."""
    model = get_peft_model(ARCHITECTURES[name](), bottleneck(**options)).eval()
    randomise(model)
    return model


def adapter(layer: nn.Module, x: Tensor, scale: float = 4.0) -> Tensor:
    """A(x) = s · U relu(D x + b_D) + s · b_U, of the adapter that a layer holds somewhere."""
    (part,) = [module.bneck for module in layer.modules() if hasattr(module, "bneck")]
    weights = (part.lora_down, part.lora_down_bias, part.lora_up, part.lora_up_bias)
    down, down_bias, up, up_bias = (weight["default"] for weight in weights)
    return scale * ((x @ down.T + down_bias).relu() @ up.T + up_bias)


def call_of(layer: nn.Module, model: nn.Module, batch: dict[str, Tensor]) -> tuple[tuple, dict]:
    """What a layer of a model is called with in a forward pass."""
    calls = []
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    logits(model, **batch)
    handle.remove()
    return calls[0]


def run(layer: nn.Module, call: tuple[tuple, dict]) -> Tensor:
    torch.manual_seed(1)  # dropouts
    with torch.no_grad():
        output = layer(*call[0], **call[1])
    return output[0] if isinstance(output, tuple) else output


def sums_of(layer: nn.Module, ffn: Ffn, call: tuple[tuple, dict]) -> tuple[Tensor, Tensor]:
    """The residual stream that the FFN of a plain layer sees, and all that is added to the FFN."""
    silent = copy.deepcopy(layer)
    last = [m for n, m in silent.named_modules() if n.endswith(ffn.linears[1])][-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    if ffn.norm:
        silent.get_submodule(ffn.norm).forward = lambda x: x
    beside = run(silent, call)
    if not ffn.parallel:
        return beside, beside
    return (call[0][0] if call[0] else call[1]["hidden_states"]), beside


@pytest.mark.parametrize("adapter_input", ["residual", "normed"])
@pytest.mark.parametrize("case", CASES)
def test_layer_is_its_ffn_and_the_adapter_and_the_residual(case, adapter_input):
    name, changes, ffn = CASES[case]
    plain = ARCHITECTURES[name](use_cache=False, **changes)
    model = get_peft_model(
        ARCHITECTURES[name](use_cache=False, **changes), bottleneck(adapter_input=adapter_input)
    ).eval()
    randomise(model)
    for path in ffn.layers:
        layer, base = model.get_base_model().get_submodule(path), plain.get_submodule(path)
        call = call_of(base, plain, inputs(name))
        residual, beside = sums_of(base, ffn, call)
        with torch.no_grad():
            normed, output = ffn.parts(base, residual)
            term = adapter(layer, residual if adapter_input == "residual" else normed)
            expected = output + term + beside
            if ffn.norm:
                expected = base.get_submodule(ffn.norm)(expected)

        assert term.abs().max() > 0.1
        assert_close(run(layer, call), expected)


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_adapter_is_added_behind_the_dropout_of_the_ffn(name):
    model = ARCHITECTURES[name](use_cache=False, **DROPOUTS)
    model = get_peft_model(model, bottleneck(dropout=0.0)).eval()
    randomise(model)
    ffn, batch = FFN[name], inputs(name)
    for path in ffn.layers:
        layer = model.get_base_model().get_submodule(path)
        with model.disable_adapter():
            call = call_of(layer, model, batch)
            if ffn.norm:
                layer.get_submodule(ffn.norm).forward = lambda x: x
            still = run(layer, call)
            layer.train()
            residual, _ = sums_of(layer, ffn, call)
            without = run(layer, call)
        with torch.no_grad():
            term = adapter(layer, residual)

        assert (without - still).abs().max() > 0.1
        assert_close(run(layer, call) - without, term)


@every_architecture
def test_every_layer_holds_an_adapter_and_a_file_brings_them_back(name, tmp_path):
    model, batch = adapted(name), inputs(name)
    stacks = 2 if len(FFN[name].layers) == 2 else 1
    held = [module for module in model.modules() if hasattr(module, "bneck")]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(ARCHITECTURES[name](), tmp_path).eval()

    assert len(held) == 2 * stacks
    assert_close(logits(loaded, **batch), logits(model, **batch))


@every_architecture
def test_lora_on_the_ffn_before_or_after_it_and_merged_gives_the_same(name):
    batch, drawn = inputs(name), []
    lora = LoraConfig(r=2, target_modules=list(FFN[name].linears), init_lora_weights=False)
    for parts in ([lora, bottleneck()], [bottleneck(), lora]):
        model = get_peft_model(ARCHITECTURES[name](), LoradaConfig(parts=parts)).eval()
        drawn.append(model)
        generator = torch.Generator().manual_seed(0)
        for key, parameter in sorted(model.named_parameters()):
            if "default" in key:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    base = logits(ARCHITECTURES[name](), **batch)
    first, second = (logits(model, **batch) for model in drawn)

    assert (first - base).abs().max() > 0.1
    assert_close(second, first)
    for model in drawn:
        merged = model.merge_weights()
        assert not any("lora_A" in key for key, _ in merged.named_parameters())
        assert any("bneck" in key for key, _ in merged.named_parameters())
        assert_close(logits(merged, **batch), first)


def test_final_layer_norm_of_a_layer_is_chosen_without_its_namesakes():
    # OPT and mBART have one behind all layers as well.
    options = {"target_modules": ["final_layer_norm"], "layers_to_transform": [1]}
    for name in ("opt", "whisper"):
        held = {key.partition(".bneck")[0] for key, _ in adapted(name, **options).named_modules()
                if ".bneck" in key}  # fmt: skip
        assert held == {f"base_model.model.{path}.final_layer_norm" for path in FFN[name].layers}


@pytest.mark.parametrize("norm", ["post_attention_layernorm", "final_layer_norm"])
def test_norms_that_are_tuned_as_well_do_not_hide_the_ffn(norm):
    name = {"post_attention_layernorm": "llama", "final_layer_norm": "bart"}[norm]
    batch, outputs = inputs(name), []
    alone = logits(adapted(name), **batch)
    for reverse in (False, True):
        parts = [LNTuningConfig(target_modules=[norm]), bottleneck()]
        config = LoradaConfig(parts=parts[::-1] if reverse else parts)
        model = get_peft_model(ARCHITECTURES[name](), config).eval()
        source = dict(adapted(name).named_parameters())
        for key, parameter in model.named_parameters():
            if ".bneck." in key:
                parameter.data = source[key.replace(".base_layer", "")].data
        outputs.append(logits(model, **batch))
        outputs.append(logits(model.merge_weights(), **batch))

    for output in outputs:  # a fresh LN tuning is the identity
        assert_close(output, alone)
