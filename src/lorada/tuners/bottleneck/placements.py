"""The placements of bottleneck adapters: where each puts them, and its default settings.

x is the residual stream, or the input of an attention or of a linear layer W; y is FFN(LN(x)), or
FFN(x) in a post-LN layer:

    placement      the layer computes                       from
    ffn            y + A(x)                                 He et al., 2021 (Adapter-FFN, PA(ffn))
    pa_attn        heads + A(x), then output projection     He et al., 2021 (PA(attn))
    houlsby        y + A(y), and the same for attention     Houlsby et al., 2019
    pfeiffer       LN(A(z) + y + x), z = LN(y + x)          Pfeiffer et al., 2020; AutoPEFT
                   A(y + x) + y + x in a pre-LN layer       He et al., 2021 (mBART)
                   A(y) + y + x with parallel attention     ours
    series         Wx + A(Wx)                               Hu et al., 2023 (LLM-Adapters)
    parallel       Wx + A(x)                                Hu et al., 2023

The default settings are those of the code of He et al. and of LLM-Adapters.

A hook point names a tensor in a layer: ``mlp.out`` is the output of the layer's module ``mlp`` (the
first, if it returns several), ``mlp.in`` its first input, and ``out`` the output of the layer. A
pre-LN layer computes y = FFN(LN(x)) and returns x + y; a post-LN layer y = FFN(x) and LN(x + y).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from peft.tuners.tuners_utils import _get_in_out_features
from torch import nn

from lorada.tuners.base.linears import linear_of, linears

Condition = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class FfnLayout:
    """The FFN in one kind of layer."""

    # Name of the module that holds the adapter; ``target_modules`` chooses the FFN by it. It is the
    # FFN itself, or a module next to it if the FFN is not one module.
    module: str
    norms: tuple[str, ...]  # names of all norms of the layer. They identify the kind of layer.
    # Hook points of x. If there are several, the last one that runs counts.
    residual: tuple[str, ...]
    # Hook points of the FFN's input, likewise: LN(x), or x in a post-LN layer.
    input: tuple[str, ...]
    output: str = ""  # hook point of y; empty if no module returns y alone
    total: str = ""  # hook point of x + y; empty if ``output`` is behind the FFN's dropout
    norm: str = ""  # name of the norm that reads x + y in a post-LN layer; empty in a pre-LN layer
    # Whether attention and FFN both read the same x. The layer then returns x + Attn(LN(x)) + y,
    # and no tensor holds x + y.
    parallel: bool = False
    # A further condition on the layer, if the names of modules are not enough.
    when: Condition = lambda layer: True

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
    """Whether a layer is of a class with one of these names, or of a subclass."""
    return lambda layer: any(cls.__name__ in names for cls in type(layer).__mro__)


# Both kinds have the same modules. They differ in an attribute (OPT) or in their class (others).
_is_known_pre_ln = _is(
    "MBartEncoderLayer", "MBartDecoderLayer", "WhisperEncoderLayer", "WhisperDecoderLayer"
)
_is_known_post_ln = _is("BartEncoderLayer", "BartDecoderLayer")


def _is_pre_ln(layer: nn.Module) -> bool:
    return _is_known_pre_ln(layer) or bool(getattr(layer, "do_layer_norm_before", False))


def _is_post_ln(layer: nn.Module) -> bool:
    return _is_known_post_ln(layer) or not getattr(layer, "do_layer_norm_before", True)


def _is_serial(layer: nn.Module) -> bool:
    return not getattr(layer, "use_parallel_residual", True)


def _is_not_bloom(layer: nn.Module) -> bool:
    """Bloom's mlp also gets x and returns x + y."""
    return not _is("BloomBlock")(layer)


_LLAMA = ("post_attention_layernorm", "input_layernorm")

# The first one that fits a layer counts.
FFN_LAYOUTS = (
    # GPT-NeoX; its layers are nearly always parallel.
    _mlp(*_LLAMA, output="post_mlp_dropout.out", when=_is_serial),
    _mlp(*_LLAMA, output="post_mlp_dropout.out", parallel=True),
    # Phi-3.
    _mlp(*_LLAMA, output="resid_mlp_dropout.out"),
    # Llama, Mistral, Qwen, Gemma.
    _mlp(*_LLAMA, when=_is_not_bloom),
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
    for layout in FFN_LAYOUTS:
        if _layout_fits(layout, layer):
            return layout
    return None


def _layout_fits(layout: FfnLayout, layer: nn.Module) -> bool:
    """Whether a layer has all modules of a layout and no norm beside them."""
    hook_points = (*layout.residual, *layout.input, layout.end)
    needed = {layout.module, *layout.norms}
    needed |= {point.rpartition(".")[0] for point in hook_points}  # the layer itself is ""
    if not needed <= {name for name, _ in layer.named_modules()}:
        return False
    # A further norm tells another kind of layer, as Gemma 2's from Llama's.
    own_norms = {name for name, _ in layer.named_children() if re.search(r"norm|^ln_", name)}
    return own_norms <= set(layout.norms) and layout.when(layer)


def attentions_of(layer: nn.Module) -> list[tuple[str, str]]:
    """The attentions of a layer, each with its output projection."""
    names = {name for name, _ in layer.named_modules()}
    return [pair for pair in ATTENTIONS if names.issuperset(pair)]


@dataclass(frozen=True)
class Placement:
    """One value of ``BottleneckConfig.placement``: the settings whose default depends on it."""

    activation: str = "relu"
    use_bias: bool = True
    layer_norm: bool = False
    init: str = "bert"
    scale: float = 1.0
    dropout: float | None = None
    # The linear layers that are its default targets, by LLaMA's names; empty for placements on FFN
    # or attention.
    linears: tuple[str, ...] = ()


_LLM_ADAPTERS = partial(Placement, activation="tanh", use_bias=False, dropout=0.0)
PLACEMENTS = {
    "ffn": Placement(init="lora", scale=4.0),
    "pa_attn": Placement(layer_norm=True),
    "houlsby": Placement(),
    "pfeiffer": Placement(),
    "series": _LLM_ADAPTERS(linears=("down_proj",)),
    "parallel": _LLM_ADAPTERS(linears=("up_proj", "down_proj")),
}


@dataclass(frozen=True)
class Insertion:
    """One adapter in one layer. Names of modules and hook points count from the layer."""

    layer: nn.Module  # the transformer layer
    target: str  # the module that ``target_modules`` names
    # The module that has the adapter as its child: the target, or the parent of a linear target,
    # since a linear layer may be wrapped later.
    holder: str
    child: str  # name of the adapter in the holder, also in saved files
    add_at: str  # hook point where A is added
    # Hook points of the tensors to save for A, by the name that each is saved under. If a name has
    # several, the last one that runs counts. A is added only after every name has a tensor.
    saves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Which tensor feeds A. ``saved``: a saved one. ``here``: the tensor at ``add_at``. ``here -
    # x``: that minus the saved x. ``y + x``: the sum of the saved y and x, or y if no x is saved.
    # ``LN(y + x)``: the norm of that sum.
    input: Literal["saved", "here", "here - x", "y + x", "LN(y + x)"] = "saved"
    # Widths of A's input and output; None if both are the model's hidden width.
    widths: tuple[int, int] | None = None
    may_norm: bool = True  # whether the setting ``layer_norm`` applies


def insertions(model: nn.Module, placement: str) -> dict[str, Insertion]:
    """The adapters that a placement can put in a model, by the name of the target."""
    # Layers are the modules of lists. A module in a list within a layer, such as an expert, is a
    # layer of that list, which comes last.
    by_target = {}
    for name, layer in model.named_modules():
        if name.rpartition(".")[2].isdigit():
            for insertion in _insertions_in(layer, placement):
                by_target[f"{name}.{insertion.target}"] = insertion
    return by_target


def _insertions_in(layer: nn.Module, placement: str) -> list[Insertion]:
    """The adapters that a placement can put in one layer."""
    if PLACEMENTS[placement].linears:
        return [_at_linear(layer, name, placement) for name in linears(layer)]
    if placement == "pa_attn":
        return [_beside_attention(layer, *names) for names in attentions_of(layer)]
    if placement == "houlsby":
        return _houlsby_insertions(layer)
    ffn = ffn_layout_of(layer)
    if ffn is None:
        return []
    return [_beside_ffn(layer, ffn) if placement == "ffn" else _behind_residual_sum(layer, ffn)]


def _houlsby_insertions(layer: nn.Module) -> list[Insertion]:
    """An adapter behind each attention, on its output projection, and one behind the FFN."""
    projections = [projection for _, projection in attentions_of(layer)]
    behind_attention = [_at_linear(layer, name, "houlsby") for name in projections]
    ffn = ffn_layout_of(layer)
    if ffn is None:
        return behind_attention
    # A layer with an attention that is not known here gets none, rather than one of its two. T5 has
    # layers with only an FFN, which get it.
    attends = any("ttention" in type(module).__name__ for module in layer.modules())
    if attends and not behind_attention:
        return []
    return [*behind_attention, _behind_ffn(layer, ffn)]


def _widths(layer: nn.Module, linear: str) -> tuple[int, int]:
    """Widths of input and output of a linear layer, wrapped or not."""
    widths: tuple[int, int] = _get_in_out_features(linear_of(layer.get_submodule(linear)))
    return widths


def _at_linear(layer: nn.Module, name: str, placement: str) -> Insertion:
    """Wx + A(x) at a linear layer for ``parallel``, else Wx + A(Wx)."""
    parent, _, own_name = name.rpartition(".")
    where = (layer, name, parent, f"bneck_{placement}_{own_name}")
    fan_in, fan_out = _widths(layer, name)
    if placement == "parallel":
        return Insertion(*where, f"{name}.out", {"x": (f"{name}.in",)}, widths=(fan_in, fan_out))
    return Insertion(*where, f"{name}.out", input="here", widths=(fan_out, fan_out))


def _beside_attention(layer: nn.Module, attention: str, projection: str) -> Insertion:
    """A(x) of an attention's input x, added to its heads."""
    # The heads are the input of the output projection. If the projection is outside of the
    # attention module, they are also the module's output.
    inside = projection.startswith(f"{attention}.")
    heads = f"{projection}.in" if inside else f"{attention}.out"
    fan_in, fan_out = _widths(layer, projection)
    return Insertion(
        layer, attention, attention, "bneck_pa_attn", heads, {"x": (f"{attention}.in",)},
        widths=(fan_out, fan_in),
    )  # fmt: skip


def _beside_ffn(layer: nn.Module, ffn: FfnLayout) -> Insertion:
    """A(x), added to y at the end of the FFN."""
    saves = {"residual": ffn.residual, "normed": ffn.input}  # the values of ``adapter_input``
    return Insertion(layer, ffn.module, ffn.module, "bneck", ffn.end, saves)


def _behind_ffn(layer: nn.Module, ffn: FfnLayout) -> Insertion:
    """A(y), added to y at the end of the FFN."""
    where = (layer, ffn.module, ffn.module, "bneck_houlsby")
    # He et al. normalise the input only of the adapters behind attention.
    if not ffn.output:
        return Insertion(*where, ffn.total, {"x": ffn.residual}, "here - x", may_norm=False)
    # The FFN's input is saved only as a sign that the FFN runs now: ``ffn.output`` may be a dropout
    # that also runs for the attention.
    return Insertion(*where, ffn.output, {"input": ffn.input}, "here", may_norm=False)


def _behind_residual_sum(layer: nn.Module, ffn: FfnLayout) -> Insertion:
    """Pfeiffer's adapter, which reads y before other parts add to it, as in AutoPEFT."""
    where = (layer, ffn.module, ffn.module, "bneck_pfeiffer")
    if ffn.parallel:  # no tensor holds x + y, so A reads only y
        return Insertion(*where, ffn.output, {"y": (ffn.output,), "input": ffn.input}, "y + x")
    saves: dict[str, tuple[str, ...]] = {"y": (ffn.end,)}
    if not ffn.total:  # else the tensor at ``ffn.end`` is x + y
        saves["x"] = ffn.residual
    if ffn.norm:
        return Insertion(*where, f"{ffn.norm}.in", saves, "LN(y + x)")
    return Insertion(*where, ffn.end, saves, "y + x")
