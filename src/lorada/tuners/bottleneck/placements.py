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
    """Settings of a ``BottleneckConfig`` whose default depends on the placement."""

    activation: str = "relu"
    use_bias: bool = True
    layer_norm: bool = False
    init: str = "bert"
    scale: float = 1.0
    dropout: float | None = None


@dataclass(frozen=True)
class Placement:
    """One value of ``BottleneckConfig.placement``.

    Attributes:
        target: the kind of module that ``target_modules`` names, for error messages.
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
        holder: the module that has the adapter as its child: the target, or the parent of a linear
            target, since a linear layer may be wrapped later.
        child: name of the adapter in the holder, also in saved files.
        add_at: hook point where A is added.
        saves: hook points of the tensors to save for A, by the name that each is saved under. If a
            name has several, the last one that runs counts. A is added only after every name has a
            tensor.
        input: which tensor feeds A. ``saved``: a saved one. ``here``: the tensor at ``add_at``.
            ``here - x``: that minus the saved x. ``y + x``: the sum of the saved y and x, or y if
            no x is saved. ``LN(y + x)``: the norm of that sum.
        widths: widths of A's input and output; None if both are the model's hidden width.
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
    """The adapters that a placement can put in a layer, by target; empty for an unknown layer."""
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
    """The adapter that a placement puts on the module named ``key``; None if it puts none there."""
    # Layers are the modules of a list, so the part of the name up to the last number is the layer.
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
    # The heads are the input of the output projection. If the projection is outside of the
    # attention module, they are also the module's output.
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
