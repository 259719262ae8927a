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
from peft.tuners.tuners_utils import BaseTunerLayer, onload_layer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorada.functional.precision import wide
from lorada.tuners.base.linears import has_adapter, linear_of, widths, wrappers

ROWS = 1024  # unit vectors at a time
# PEFT's layers that cannot undo a merge themselves, or only up to 1e-8, as IA3's.
FINAL = ("IA3Layer", "OSFLayer")


def merge_all(model: nn.Module, names: list[str], *, safe_merge: bool = False) -> None:
    """Merge adapters into the weights, in the order of their names.

    Raises:
        ValueError: with ``safe_merge``, if a merged weight is not finite.
    """
    for chain in wrappers(model).values():
        together = [name for layer in chain for name in layer.merged_adapters]
        together = list(dict.fromkeys([*together, *names]))
        own = layers_with(chain, together)
        with onload_layer(chain[0]):
            if linear_of(chain[0]) is not None and (len(own) > 1 or any(map(is_final, own))):
                unmerge_chain(chain)
                _fold(chain, own, together, safe_merge)
                continue
            for layer in reversed(own):
                here = [name for name in names if has_adapter(layer, name)]
                layer.merge(safe_merge=safe_merge, adapter_names=here)


def unmerge_all(model: nn.Module) -> None:
    """Undo what is merged; parts that are not, such as maps, stay as they are."""
    for chain in wrappers(model).values():
        with onload_layer(chain[0]):
            unmerge_chain(chain)


def unmerge_chain(chain: list[BaseTunerLayer]) -> None:
    """Unmerge the layers around one module, from the outside in."""
    for layer in chain:
        if layer.merged:
            layer.unmerge()


def layers_with(chain: list[BaseTunerLayer], names: list[str]) -> list[BaseTunerLayer]:
    """Those layers around one module that have weights of one of the adapters."""
    return [layer for layer in chain if any(has_adapter(layer, name) for name in names)]


def is_final(layer: BaseTunerLayer) -> bool:
    """Whether PEFT cannot undo a merge of this layer exactly."""
    return any(cls.__name__ in FINAL for cls in type(layer).__mro__)


class Unfold:
    """In place of ``unmerge`` of folded layers: gives the linear layer its weight and bias back."""

    def __init__(self, linear: nn.Module, layers: list[BaseTunerLayer]) -> None:
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
def _fold(chain: Any, own: list[BaseTunerLayer], names: list[str], safe_merge: bool) -> None:
    linear = chain[-1].get_base_layer()
    found = dict(zip(("weight", "bias"), _linear_map(chain, linear, names), strict=True))
    for value in found.values():
        if safe_merge and value is not None and not torch.isfinite(value).all():
            raise ValueError(  # PEFT's text, which programs may search for
                "NaNs detected in the merged weights. "
                f"The adapter {', '.join(names)} seems to be broken"
            )
    unfold: Any = Unfold(linear, own)
    for key, value in found.items():
        if value is not None:
            parameter = getattr(linear, key)
            parameter.data = value.to(parameter.dtype).contiguous()
    for layer in own:
        layer.merged_adapters = [name for name in names if has_adapter(layer, name)]
        layer.unmerge = unfold


def _linear_map(chain: Any, linear: Any, names: list[str]) -> tuple[Tensor, Tensor | None]:
    """The weight, as the linear layer stores it, and the bias of what a chain computes."""
    fan_in, _ = widths(linear)
    options = {"dtype": wide(linear.weight).dtype, "device": linear.weight.device}
    with _computing(chain, linear, names):
        zero = torch.zeros(1, 1, fan_in, **options)
        bias = chain[0](zero)[0, 0]
        if linear.bias is not None:
            linear.bias.data = torch.zeros_like(linear.bias)  # a large one would round the weight
        rest = chain[0](zero)[0]
        units = torch.arange(fan_in, device=linear.weight.device).split(ROWS)
        found = [chain[0](F.one_hot(i, fan_in).to(zero)[None])[0] - rest for i in units]
    weight = torch.cat(found)
    return weight if isinstance(linear, Conv1D) else weight.T, None if linear.bias is None else bias


@contextmanager
def _computing(chain: Any, linear: nn.Module, names: list[str]) -> Iterator[None]:
    """Let a chain compute with these adapters, without dropout, in float32 or wider."""
    modules = [(module, module.training) for module in chain[0].modules()]
    layers = [(layer, layer._active_adapter, layer._disable_adapters) for layer in chain]
    weights = [(p, p.data) for p in linear.parameters(recurse=False)]
    try:
        for module, _ in modules:
            module.training = False
        for layer, _, _ in layers:
            layer._active_adapter, layer._disable_adapters = names, False
        for parameter, value in weights:
            parameter.data = wide(value)
        yield
    finally:
        for module, training in modules:
            module.training = training
        for layer, active, disabled in layers:
            layer._active_adapter, layer._disable_adapters = active, disabled
        for parameter, value in weights:
            parameter.data = value
