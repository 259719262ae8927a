"""The placements of bottleneck adapters: where in a layer each sits, and the settings it came with.

    placement      what becomes of it                       after
    ffn            FFN(x) + A(x)                            He et al., 2021 (Adapter-FFN, PA(ffn))
    pa_attn        heads of Attn(x), concatenated, + A(x)   He et al., 2021 (PA(attn))
    houlsby        y + A(y), y of attention and of FFN      Houlsby et al., 2019
    pfeiffer       LN(A(z) + y + x), z = LN(y + x)          Pfeiffer et al., 2020; AutoPEFT
                   A(y + x) + y + x in a pre-LN layer       He et al., 2021 (mBART)
                   A(y) + y + x with attention beside FFN   ours
    series         y + A(y), y = Wx                         Hu et al., 2023 (LLM-Adapters)
    series_input   W(x + A(x))                              Hu et al., 2023
    parallel       Wx + A(x)                                Hu et al., 2023

The settings are those of the code of He et al. and of LLM-Adapters.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from lorada.tuners.base.linears import linear_of, linears, widths
from lorada.tuners.bottleneck.sites import Site, site_of


@dataclass(frozen=True)
class Row:
    """The settings of a placement, which a config has where it says nothing else."""

    activation: str = "relu"
    use_bias: bool = True
    layer_norm: bool = False
    init: str = "bert"
    scale: float = 1.0
    dropout: float | None = None


_LLM_ADAPTERS = Row(activation="tanh", use_bias=False, dropout=0.0)
ROWS = {
    "ffn": Row(init="lora", scale=4.0),
    "pa_attn": Row(layer_norm=True),
    "houlsby": Row(),
    "pfeiffer": Row(),
    "series": _LLM_ADAPTERS,
    "series_input": _LLM_ADAPTERS,
    "parallel": _LLM_ADAPTERS,
}

# Placements on linears, any linears, and the names of those of LLaMA that they were made for.
LINEARS = {
    "series": ("down_proj",),
    "series_input": ("gate_proj", "up_proj"),
    "parallel": ("up_proj", "down_proj"),
}

# The module that makes the heads of an attention, and its output projection behind it.
_ATTENTIONS = (
    ("self_attn", "self_attn.o_proj"),  # LLaMA, Mistral, Qwen, Gemma, Phi-3
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
    ("SelfAttention", "SelfAttention.o"),  # T5, where each half of a block is a layer of its own
    ("EncDecAttention", "EncDecAttention.o"),
)


@dataclass(frozen=True)
class Spot:
    """One adapter in a layer. Names and places count from the layer, as those of a ``Site`` do.

    Attributes:
        layer: the layer.
        host: the module that is adapted, by which ``target_modules`` names it.
        holder: the module that holds the part as its child, in its own name or, as a linear may
            be wrapped and its name with it, that of its parent.
        child: the name of the part there.
        added: the place where A is added.
        reads: places of tensors that are kept on the way there, by the name they are kept under;
            of several places, the last one that runs counts.
        of: what A is of: ``kept``, what was kept; ``here``, the tensor that it is added to;
            ``branch``, that without the residual stream, which was kept; ``sum``, the sum of x
            and y that were kept; ``norm``, that sum after the norm that A is added in front of.
        width: of its input and its output; None where both are the hidden width of the model.
        may_norm: whether ``layer_norm`` is about this adapter.
    """

    layer: nn.Module
    host: str
    holder: str
    child: str
    added: str
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    of: Literal["kept", "here", "branch", "sum", "norm"] = "kept"
    width: tuple[int, int] | None = None
    may_norm: bool = True


def spots_of(layer: nn.Module, placement: str) -> dict[str, Spot]:
    """The adapters that a placement can put in a layer, by host; none where it is not defined."""
    site = site_of(layer)
    if placement in LINEARS:
        found = [_on_linear(layer, name, placement) for name in linears(layer)]
    elif placement == "pa_attn":
        found = [_beside_attention(layer, *names) for names in _attentions(layer)]
    elif placement == "houlsby":
        found = _behind_attentions(layer)
        if site is not None and (found or not _attends(layer)):
            found.append(_behind_ffn(layer, site))
    elif site is None:
        found = []
    elif placement == "ffn":
        kept = {"residual": site.residual, "normed": site.normed}
        found = [Spot(layer, site.host, site.host, "bneck", site.added, kept)]
    else:
        found = [_behind_sum(layer, site)]
    return {spot.host: spot for spot in found}


def spot_at(model: nn.Module, key: str, placement: str) -> Spot | None:
    """The adapter that a placement puts on the module of this name; None if it puts none there."""
    # Only modules of a list are layers; the model above them has the same names further down.
    inside = re.match(r"((?:.*\.)?\d+)\.(.+)$", key)
    if inside is None:
        return None
    return spots_of(model.get_submodule(inside[1]), placement).get(inside[2])


def hosts(model: nn.Module, placement: str) -> Iterator[str]:
    """Names, within a layer, of the modules of a model that a placement can put an adapter on."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2].isdigit():
            # What lies in a list within the layer, such as experts, that list's own layers name.
            yield from (host for host in spots_of(module, placement) if not _in_list(host))


def _in_list(host: str) -> bool:
    return any(part.isdigit() for part in host.split("."))


def _attentions(layer: nn.Module) -> list[tuple[str, str]]:
    names = {name for name, _ in layer.named_modules()}
    return [pair for pair in _ATTENTIONS if names.issuperset(pair)]


def _attends(layer: nn.Module) -> bool:
    """Whether a layer has an attention, which T5's layers of an FFN have not."""
    return any("ttention" in type(module).__name__ for module in layer.modules())


def _child(layer: nn.Module, name: str, placement: str) -> tuple[str, str]:
    """Where the part of a linear is held: by its parent, under both names."""
    holder, _, own = name.rpartition(".")
    return holder, f"bneck_{placement}_{own}"


def _widths(layer: nn.Module, name: str) -> tuple[int, int]:
    return widths(linear_of(layer.get_submodule(name)))


def _on_linear(layer: nn.Module, name: str, placement: str) -> Spot:
    holder, child = _child(layer, name, placement)
    fan_in, fan_out = _widths(layer, name)
    if placement == "series":
        return Spot(layer, name, holder, child, f"{name}.out", of="here", width=(fan_out, fan_out))
    if placement == "series_input":
        return Spot(layer, name, holder, child, f"{name}.in", of="here", width=(fan_in, fan_in))
    kept = {"x": (f"{name}.in",)}
    return Spot(layer, name, holder, child, f"{name}.out", kept, width=(fan_in, fan_out))


def _beside_attention(layer: nn.Module, attention: str, projection: str) -> Spot:
    """On the concatenated heads; where these leave a module of their own, on its output."""
    kept = {"x": (f"{attention}.in",)}
    own_module = not projection.startswith(f"{attention}.")
    added = f"{attention}.out" if own_module else f"{projection}.in"
    width = (_widths(layer, projection)[1], _widths(layer, projection)[0])
    return Spot(layer, attention, attention, "bneck_pa_attn", added, kept, width=width)


def _behind_attentions(layer: nn.Module) -> list[Spot]:
    """Houlsby's first place: behind each attention's output projection."""
    found = []
    for _, name in _attentions(layer):
        holder, child = _child(layer, name, "houlsby")
        width = (_widths(layer, name)[1],) * 2
        found.append(Spot(layer, name, holder, child, f"{name}.out", of="here", width=width))
    return found


def _behind_ffn(layer: nn.Module, site: Site) -> Spot:
    """Houlsby's second place. He et al. give an input norm to the adapters of attention alone."""
    host, child = site.host, "bneck_houlsby"
    # Where no module lies between FFN and residual sum, the sum is where the adapter joins.
    if site.summed and not site.alone:
        kept = {"x": site.residual}
        return Spot(layer, host, host, child, site.added, kept, "branch", may_norm=False)
    # What the FFN reads tells its pass through a dropout from that of the attention.
    kept = {"normed": site.normed}
    return Spot(layer, host, host, child, site.alone or site.added, kept, "here", may_norm=False)


def _behind_sum(layer: nn.Module, site: Site) -> Spot:
    """Pfeiffer's: behind the residual sum of the FFN and, in a post-LN layer, the norm behind it.

    It reads y = FFN(x) before anything is added there, as AutoPEFT does beside a parallel adapter.
    Where attention and FFN are added to one stream side by side, it reads y alone.
    """
    host, child = site.host, "bneck_pfeiffer"
    if site.beside:
        added = site.alone or site.added
        # What the FFN reads tells its pass through a dropout from that of the attention.
        return Spot(layer, host, host, child, added, {"y": (added,), "normed": site.normed}, "sum")
    kept: dict[str, tuple[str, ...]] = {"y": (site.added,)}
    if not site.summed:  # else what is there is y + x already
        kept["x"] = site.residual
    post_ln = site.residual == site.normed
    added = f"{site.norms[-1]}.in" if post_ln else site.added
    return Spot(layer, host, host, child, added, kept, "norm" if post_ln else "sum")
