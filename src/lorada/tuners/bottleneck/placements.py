"""The placements of bottleneck adapters: where each puts them, and its default settings.

With x the residual stream, y = FFN(LN(x)), or FFN(x) in a post-LN layer, and W a linear layer whose
input is x:

    placement      the layer computes                       from
    ffn            y + A(x)                                 He et al., 2021 (Adapter-FFN, PA(ffn))
    pa_attn        heads + A(x), then output projection     He et al., 2021 (PA(attn))
    houlsby        y + A(y), and the same for attention     Houlsby et al., 2019
    pfeiffer       LN(A(z) + y + x), z = LN(y + x)          Pfeiffer et al., 2020; AutoPEFT
                   A(y + x) + y + x in a pre-LN layer       He et al., 2021 (mBART)
                   A(y) + y + x with parallel attention     ours
    series         Wx + A(Wx)                               Hu et al., 2023 (LLM-Adapters)
    series_input   W(x + A(x))                              Hu et al., 2023
    parallel       Wx + A(x)                                Hu et al., 2023

The default settings are those of the code of He et al. and of LLM-Adapters.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from lorada.tuners.base.linears import linear_of, linears, widths
from lorada.tuners.bottleneck.layouts import FfnLayout, attentions_of, ffn_layout_of, has_attention


@dataclass(frozen=True)
class Defaults:
    """Settings of a ``BottleneckConfig`` that its placement decides if the user does not."""

    activation: str = "relu"
    use_bias: bool = True
    layer_norm: bool = False
    init: str = "bert"
    scale: float = 1.0
    dropout: float | None = None


@dataclass(frozen=True)
class Placement:
    """What ``BottleneckConfig.placement`` stands for.

    Attributes:
        target: what ``target_modules`` names, for error messages.
        defaults: its default settings.
        linears: the linear layers that are its default targets, by LLaMA's names; empty
            for placements on FFN or attention.
    """

    target: str
    defaults: Defaults
    linears: tuple[str, ...] = ()


_LINEAR = "a linear layer within a transformer layer"
_LLM_ADAPTERS = Defaults(activation="tanh", use_bias=False, dropout=0.0)
PLACEMENTS = {
    "ffn": Placement("an FFN", Defaults(init="lora", scale=4.0)),
    "pa_attn": Placement("an attention", Defaults(layer_norm=True)),
    "houlsby": Placement("an attention's output projection or an FFN", Defaults()),
    "pfeiffer": Placement("an FFN", Defaults()),
    "series": Placement(_LINEAR, _LLM_ADAPTERS, ("down_proj",)),
    "series_input": Placement(_LINEAR, _LLM_ADAPTERS, ("gate_proj", "up_proj")),
    "parallel": Placement(_LINEAR, _LLM_ADAPTERS, ("up_proj", "down_proj")),
}


@dataclass(frozen=True)
class Insertion:
    """One adapter in one layer. Names of modules and hook points count from the layer.

    Attributes:
        layer: the transformer layer.
        target: the module that ``target_modules`` names.
        holder: the module that has the adapter as its child: the target, or, since a linear layer
            may be wrapped later, the parent of a linear target.
        child: name of the adapter in the holder; saved files have it.
        add_at: hook point where A is added.
        saves: hook points whose tensors are saved for A, by the name that each is saved under. Of
            several for one name, the last one that runs counts. A is added only after each name
            has its tensor.
        input: which tensor feeds A: a saved one (``saved``), the tensor at the hook point
            (``here``), that minus the saved x (``here - x``), the sum of the saved y and x, or y
            alone if no x is saved (``y + x``), or the norm of that sum (``LN(y + x)``).
        widths: of A's input and output; None if both are the model's hidden width.
        may_norm: whether the setting ``layer_norm`` applies.
    """

    layer: nn.Module
    target: str
    holder: str
    child: str
    add_at: str
    saves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    input: Literal["saved", "here", "here - x", "y + x", "LN(y + x)"] = "saved"
    widths: tuple[int, int] | None = None
    may_norm: bool = True


def insertions(layer: nn.Module, placement: str) -> dict[str, Insertion]:
    """The adapters that a placement can put in a layer, by target; none if it does not know it."""
    ffn = ffn_layout_of(layer)
    if PLACEMENTS[placement].linears:
        found = [_on_linear(layer, name, placement) for name in linears(layer)]
    elif placement == "pa_attn":
        found = [_beside_attention(layer, *names) for names in attentions_of(layer)]
    elif placement == "houlsby":
        found = [_behind_attention(layer, projection) for _, projection in attentions_of(layer)]
        if ffn is not None and (found or not has_attention(layer)):
            found.append(_behind_ffn(layer, ffn))
    elif ffn is None:
        found = []
    elif placement == "ffn":
        found = [_beside_ffn(layer, ffn)]
    else:
        found = [_behind_residual_sum(layer, ffn)]
    return {insertion.target: insertion for insertion in found}


def insertion_at(model: nn.Module, key: str, placement: str) -> Insertion | None:
    """The adapter that a placement puts on the module of this name; None if it puts none there."""
    # Only modules of a list are layers; the model above them has the same names further down.
    inside = re.match(r"((?:.*\.)?\d+)\.(.+)$", key)
    if inside is None:
        return None
    return insertions(model.get_submodule(inside[1]), placement).get(inside[2])


def targets(model: nn.Module, placement: str) -> Iterator[str]:
    """Names, within a layer, of the modules of a model that a placement can put an adapter on."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2].isdigit():
            for target in insertions(module, placement):
                # A module in a list within the layer, such as an expert, is a layer of that list.
                if not any(part.isdigit() for part in target.split(".")):
                    yield target


def _widths(layer: nn.Module, linear: str) -> tuple[int, int]:
    return widths(linear_of(layer.get_submodule(linear)))


def _held_by_parent(name: str, placement: str) -> tuple[str, str]:
    """Holder and child of the adapter on a linear layer."""
    parent, _, own = name.rpartition(".")
    return parent, f"bneck_{placement}_{own}"


def _on_linear(layer: nn.Module, name: str, placement: str) -> Insertion:
    where = (layer, name, *_held_by_parent(name, placement))
    fan_in, fan_out = _widths(layer, name)
    if placement == "series":
        return Insertion(*where, f"{name}.out", input="here", widths=(fan_out, fan_out))
    if placement == "series_input":
        return Insertion(*where, f"{name}.in", input="here", widths=(fan_in, fan_in))
    return Insertion(*where, f"{name}.out", {"x": (f"{name}.in",)}, widths=(fan_in, fan_out))


def _beside_attention(layer: nn.Module, attention: str, projection: str) -> Insertion:
    # The heads are the input of the output projection. If that is no part of the attention's own
    # module, they are the output of the module.
    inside = projection.startswith(f"{attention}.")
    heads = f"{projection}.in" if inside else f"{attention}.out"
    fan_in, fan_out = _widths(layer, projection)
    return Insertion(
        layer, attention, attention, "bneck_pa_attn", heads, {"x": (f"{attention}.in",)},
        widths=(fan_out, fan_in),
    )  # fmt: skip


def _behind_attention(layer: nn.Module, projection: str) -> Insertion:
    _, width = _widths(layer, projection)
    where = (layer, projection, *_held_by_parent(projection, "houlsby"))
    return Insertion(*where, f"{projection}.out", input="here", widths=(width, width))


def _beside_ffn(layer: nn.Module, ffn: FfnLayout) -> Insertion:
    saves = {"residual": ffn.residual, "normed": ffn.input}  # the values of ``adapter_input``
    return Insertion(layer, ffn.module, ffn.module, "bneck", ffn.end, saves)


def _behind_ffn(layer: nn.Module, ffn: FfnLayout) -> Insertion:
    where = (layer, ffn.module, ffn.module, "bneck_houlsby")
    # He et al. normalise the input of the adapters behind attention alone.
    if not ffn.output:
        return Insertion(*where, ffn.total, {"x": ffn.residual}, "here - x", may_norm=False)
    # A dropout may serve the attention before the FFN: until the FFN has run, nothing is added.
    return Insertion(*where, ffn.output, {"input": ffn.input}, "here", may_norm=False)


def _behind_residual_sum(layer: nn.Module, ffn: FfnLayout) -> Insertion:
    """Pfeiffer's: it reads y before other parts add to it, as AutoPEFT does."""
    where = (layer, ffn.module, ffn.module, "bneck_pfeiffer")
    if ffn.parallel:  # there is no x + y, so A reads y alone
        return Insertion(*where, ffn.output, {"y": (ffn.output,), "input": ffn.input}, "y + x")
    saves: dict[str, tuple[str, ...]] = {"y": (ffn.end,)}
    if not ffn.total:  # else what is saved as y is x + y already
        saves["x"] = ffn.residual
    if ffn.norm:
        return Insertion(*where, f"{ffn.norm}.in", saves, "LN(y + x)")
    return Insertion(*where, ffn.end, saves, "y + x")
