"""Merging in place: each part by itself, several parts on one linear layer as the map they compute.

A part around others may read the base weight: DoRA's norm is that of the base weight plus its own
term, and HiRA multiplies the base weight. Merged one after the other, it would read what the inner
parts have made of it. So several parts are folded into what they compute together:

    W = f(I) - f(0),    b = f(0)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import onload_layer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorada.functional.precision import wide
from lorada.tuners.base.linears import has_adapter, linear_of, widths, wrappers

ROWS = 1024  # unit vectors at a time
# PEFT's layers that cannot undo a merge themselves, or only up to 1e-8, as IA3's.
FINAL = {"IA3Layer", "OSFLayer"}


def merge_all(model: nn.Module, names: list[str], *, safe_merge: bool = False) -> None:
    """Merge adapters into the weights, in the order of their names."""
    for chain in wrappers(model).values():
        together = [name for layer in chain for name in layer.merged_adapters]
        together = list(dict.fromkeys([*together, *names]))
        own = [layer for layer in chain if any(has_adapter(layer, name) for name in together)]
        final = any(cls.__name__ in FINAL for layer in own for cls in type(layer).__mro__)
        with onload_layer(chain[0]):
            if linear_of(chain[0]) is not None and (len(own) > 1 or final):
                unmerge_chain(chain)
                _fold(chain, own, together, safe_merge)
                continue
            for layer in reversed(own):
                here = [name for name in names if has_adapter(layer, name)]
                layer.merge(safe_merge=safe_merge, adapter_names=here)


def unmerge_chain(chain: Any) -> None:
    """Unmerge the layers around one module, from the outside in; others stay as they are."""
    for layer in chain:
        if layer.merged:
            layer.unmerge()


class Unfold:
    """In place of ``unmerge`` of folded layers: gives the linear layer its weights back."""

    def __init__(self, linear: nn.Module, layers: list[Any]) -> None:
        self.linear, self.layers = linear, layers
        self.before = {key: p.data for key, p in linear.named_parameters(recurse=False)}

    def __call__(self) -> None:
        """Unmerge all of the layers."""
        for key, before in self.before.items():
            parameter = getattr(self.linear, key)
            parameter.data = before.to(parameter)
        for layer in self.layers:
            layer.merged_adapters = []
            del layer.unmerge


@torch.no_grad()
def _fold(chain: Any, own: list[Any], names: list[str], safe_merge: bool) -> None:
    linear = chain[-1].get_base_layer()
    found = _linear_map(chain, linear, names)
    if safe_merge and not all(torch.isfinite(value).all() for value in found.values()):
        said = f"The adapter {', '.join(names)} seems to be broken"  # PEFT's text
        raise ValueError(f"NaNs detected in the merged weights. {said}")
    unfold = Unfold(linear, own)
    for key, value in found.items():
        parameter = getattr(linear, key)
        parameter.data = value.to(parameter.dtype).contiguous()
    for layer in own:
        layer.merged_adapters = [name for name in names if has_adapter(layer, name)]
        layer.unmerge = unfold


def _linear_map(chain: Any, linear: Any, names: list[str]) -> dict[str, Tensor]:
    """Weight and bias, as the linear layer stores them, of what a chain computes."""
    fan_in, _ = widths(linear)
    found = {}
    with _computing(chain, linear, names):
        zero = linear.weight.new_zeros(1, 1, fan_in)
        if linear.bias is not None:
            found["bias"] = chain[0](zero)[0, 0]
            linear.bias.data = torch.zeros_like(linear.bias)  # a large one would round the weight
        units = torch.arange(fan_in, device=zero.device).split(ROWS)
        rows = torch.cat([chain[0](F.one_hot(i, fan_in).to(zero)[None])[0] for i in units])
        rows = rows - chain[0](zero)[0]
    return {"weight": rows if isinstance(linear, Conv1D) else rows.T, **found}


@contextmanager
def _computing(chain: Any, linear: nn.Module, names: list[str]) -> Iterator[None]:
    """Let a chain compute with these adapters, without dropout, in float32 or wider."""
    wanted: list[tuple[Any, str, Any]]
    wanted = [(module, "training", False) for module in chain[0].modules()]
    wanted += [(layer, "_active_adapter", names) for layer in chain]
    wanted += [(layer, "_disable_adapters", False) for layer in chain]
    wanted += [(p, "data", wide(p.data)) for p in linear.parameters(recurse=False)]
    before = [(owner, key, getattr(owner, key)) for owner, key, _ in wanted]
    try:
        for owner, key, value in wanted:
            setattr(owner, key, value)
        yield
    finally:
        for owner, key, value in before:
            setattr(owner, key, value)
