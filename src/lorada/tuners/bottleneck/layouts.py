"""Two tables: where the FFN and the attention are in the layers of each architecture.

A hook point names a tensor in a layer: ``mlp.out`` is the output of the layer's module ``mlp`` (the
first, if it returns several), ``mlp.in`` its first input, and ``out`` the output of the layer.

x is the residual stream in front of the FFN and y the output of the FFN. A pre-LN layer computes
y = FFN(LN(x)) and returns x + y; a post-LN layer computes y = FFN(x) and returns LN(x + y).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Condition = Callable[[nn.Module], bool]


def _always(layer: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class FfnLayout:
    """The FFN in one kind of layer.

    Attributes:
        module: name of the module that holds the adapter; ``target_modules`` chooses the FFN by it.
            It is the FFN itself, or a module next to it if the FFN is not one module.
        norms: names of all norms of the layer. They identify the kind of layer.
        residual: hook points of x. If there are several, the last one that runs counts.
        input: hook points of the FFN's input, likewise: LN(x), or x in a post-LN layer.
        output: hook point of y; empty if no module returns y alone.
        total: hook point of x + y; empty if ``output`` is behind the FFN's dropout.
        norm: name of the norm that reads x + y in a post-LN layer; empty in a pre-LN layer.
        parallel: whether attention and FFN both read the same x. The layer then returns
            x + Attn(LN(x)) + y, and no tensor holds x + y.
        when: a further condition on the layer, if the names of modules are not enough.
    """

    module: str
    norms: tuple[str, ...]
    residual: tuple[str, ...]
    input: tuple[str, ...]
    output: str = ""
    total: str = ""
    norm: str = ""
    parallel: bool = False
    when: Condition = _always

    @property
    def end(self) -> str:
        """The hook point behind the FFN and its dropout, in front of a post-LN layer's norm."""
        return self.total or self.output


def _mlp(norm: str, *other_norms: str, output: str = "mlp.out", **more: Any) -> FfnLayout:
    """A pre-LN layer with an FFN ``mlp`` behind a norm."""
    return FfnLayout(
        "mlp", (norm, *other_norms), (f"{norm}.in",), ("mlp.in",), output=output, **more
    )


def _fc_pre_ln(*other_norms: str) -> FfnLayout:
    """A pre-LN layer like Fairseq's: linear layers fc1 and fc2, and no module around both."""
    norm = "final_layer_norm"
    return FfnLayout(
        norm, (norm, *other_norms), (f"{norm}.in",), (f"{norm}.out",), total="out", when=_is_pre_ln
    )


def _fc_post_ln(*other_norms: str) -> FfnLayout:
    """A post-LN layer like Fairseq's: the FFN reads the output of the norms in front of it."""
    norm, x = "final_layer_norm", tuple(f"{other}.out" for other in other_norms)
    return FfnLayout(
        norm, (norm, *other_norms), x, x, total=f"{norm}.in", norm=norm, when=_is_post_ln
    )


def _is(*names: str) -> Condition:
    return lambda layer: any(cls.__name__ in names for cls in type(layer).__mro__)


# Both kinds have the same modules. They differ in an attribute (OPT) or in their class (others).
def _is_pre_ln(layer: nn.Module) -> bool:
    known = _is("MBartEncoderLayer", "MBartDecoderLayer", "WhisperEncoderLayer",
                "WhisperDecoderLayer")  # fmt: skip
    return known(layer) or bool(getattr(layer, "do_layer_norm_before", False))


def _is_post_ln(layer: nn.Module) -> bool:
    known = _is("BartEncoderLayer", "BartDecoderLayer")
    return known(layer) or not getattr(layer, "do_layer_norm_before", True)


def _is_serial(layer: nn.Module) -> bool:
    return not getattr(layer, "use_parallel_residual", True)


_FALCON = _is("FalconDecoderLayer")  # its dropout of the FFN is no module
_LLAMA = ("post_attention_layernorm", "input_layernorm")

# The first one that fits a layer counts.
FFN_LAYOUTS = (
    # Falcon-RW; Falcon-7B; Falcon-40B.
    _mlp(*_LLAMA, total="out", when=_FALCON),
    _mlp("input_layernorm", total="out", parallel=True, when=_FALCON),
    _mlp("ln_mlp", "ln_attn", total="out", parallel=True, when=_FALCON),
    # GPT-NeoX; its layers are nearly always parallel.
    _mlp(*_LLAMA, output="post_mlp_dropout.out", when=_is_serial),
    _mlp(*_LLAMA, output="post_mlp_dropout.out", parallel=True),
    # Phi-3.
    _mlp(*_LLAMA, output="resid_mlp_dropout.out"),
    # Bloom; its mlp also gets x and returns x + y.
    _mlp(*_LLAMA, output="mlp.dense_4h_to_h.out", total="mlp.out", when=_is("BloomBlock")),
    # Llama, Mistral, Qwen, Gemma.
    _mlp(*_LLAMA),
    # Gemma 2 and 3, with a norm in front of the FFN and one behind it that belongs to y.
    _mlp("pre_feedforward_layernorm", *_LLAMA, "post_feedforward_layernorm",
         output="post_feedforward_layernorm.out"),
    # Phi; ViT. Their dropout serves the attention first, then the FFN.
    _mlp("input_layernorm", output="resid_dropout.out", parallel=True),
    _mlp("layernorm_after", "layernorm_before", output="dropout.out"),
    # GPT-2; GPT-J; ModernBERT.
    _mlp("ln_2", "ln_1"),
    _mlp("ln_1", parallel=True),
    _mlp("mlp_norm", "attn_norm"),
    # T5, which has a separate layer for the FFN.
    FfnLayout("DenseReluDense", norms=("layer_norm",), residual=("layer_norm.in",),
              input=("DenseReluDense.in",), output="dropout.out"),
    # BERT, RoBERTa, DeBERTa.
    FfnLayout("intermediate", norms=("output.LayerNorm",), residual=("intermediate.in",),
              input=("intermediate.in",), output="output.dropout.out", norm="output.LayerNorm"),
    # DistilBERT.
    FfnLayout("ffn", norms=("sa_layer_norm", "output_layer_norm"), residual=("ffn.in",),
              input=("ffn.in",), output="ffn.out", norm="output_layer_norm"),
    # mBART, Whisper, most of OPT: layers of a decoder behind an encoder; all others.
    _fc_pre_ln("self_attn_layer_norm", "encoder_attn_layer_norm"),
    _fc_pre_ln("self_attn_layer_norm"),
    # BART, OPT-350m: layers of a decoder behind an encoder; all others.
    _fc_post_ln("self_attn_layer_norm", "encoder_attn_layer_norm"),
    _fc_post_ln("self_attn_layer_norm"),
)  # fmt: skip

# The module that computes the heads of an attention, and the output projection behind it.
ATTENTIONS = (
    ("self_attn", "self_attn.o_proj"),  # Llama, Mistral, Qwen, Gemma, Phi-3
    ("self_attn", "self_attn.out_proj"),  # BART, mBART, Whisper, OPT
    ("encoder_attn", "encoder_attn.out_proj"),
    ("attention.self", "attention.output.dense"),  # BERT, RoBERTa, ELECTRA, DeBERTa
    ("self_attn", "self_attn.dense"),  # Phi
    ("self_attention", "self_attention.dense"),  # Falcon, Bloom
    ("attention", "attention.dense"),  # GPT-NeoX
    ("attention", "attention.o_proj"),  # ViT
    ("attention", "attention.out_lin"),  # DistilBERT
    ("attn", "attn.c_proj"),  # GPT-2
    ("attn", "attn.out_proj"),  # GPT-J
    ("attn", "attn.Wo"),  # ModernBERT
    ("SelfAttention", "SelfAttention.o"),  # T5
    ("EncDecAttention", "EncDecAttention.o"),
)


def ffn_layout_of(layer: nn.Module) -> FfnLayout | None:
    """The first layout that fits a layer; None if none does."""
    names = {name for name, _ in layer.named_modules()}
    own_norms = {name for name, _ in layer.named_children() if re.search(r"norm|^ln_", name)}
    for layout in FFN_LAYOUTS:
        points = (*layout.residual, *layout.input, layout.end)
        needed = {layout.module, *layout.norms, *(point.rpartition(".")[0] for point in points)}
        if needed <= names and own_norms <= set(layout.norms) and layout.when(layer):
            return layout
    return None


def attentions_of(layer: nn.Module) -> list[tuple[str, str]]:
    """The attentions of a layer, each with its output projection."""
    names = {name for name, _ in layer.named_modules()}
    return [pair for pair in ATTENTIONS if names.issuperset(pair)]


def has_attention(layer: nn.Module) -> bool:
    """Whether a layer has an attention, known or not; T5 has layers with only an FFN."""
    return any("ttention" in type(module).__name__ for module in layer.modules())
