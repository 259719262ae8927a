"""Selective activation checkpointing: keeps what is dear to compute, and computes the rest again.

Within a layer the outputs of large matrix products and of attention kernels are kept. Norms,
activation functions, dropout, rotary embeddings and the small products of LoRA are computed again
in the backward pass: they take as much memory, and few operations for each byte.

torch's own selective checkpointing expects all operations again, in the same order. Here only those
whose outputs are kept have to be the same: where the tokens of a batch lie is computed once, by one
layer for all, and need not be computed twice.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

LEAST = 32  # floating-point operations for each byte of an output, above which it is kept

_aten = torch.ops.aten
# Products by the place of their left factor, whose width says how many operations a number takes.
PRODUCTS = {_aten.mm.default: 0, _aten.addmm.default: 1}
KERNELS = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
# By operation, its outputs in the order of its calls; None for one that has to be computed again.
Kept = dict[Any, list[Any]]


def is_kept(operation: Any, args: tuple[Any, ...]) -> bool:
    """Whether the output of an operation is kept."""
    if operation not in PRODUCTS:
        return operation in KERNELS
    left = args[PRODUCTS[operation]]
    return bool(2 * left.shape[-1] >= LEAST * left.element_size())


class _Keep(TorchDispatchMode):
    """Keeps outputs in the forward pass of a layer."""

    keeps_products = True  # who would change one in place takes a copy (``lora_linear``)

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._kept = kept
        self._places: dict[int, tuple[Any, int]] = {}  # of kept outputs, by their storage

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and keep what it gives."""
        given = operation(*args, **(kwargs or {}))
        if is_kept(operation, args):
            outputs = self._kept[operation]
            for tensor in tree_leaves(given):
                if isinstance(tensor, Tensor):
                    self._places[tensor.untyped_storage()._cdata] = operation, len(outputs)
            # Detached: the tensor itself is about to get a graph, which would hold this record.
            outputs.append(tree_map_only(Tensor, torch.detach, given))
        elif operation._schema.is_mutable:
            self._drop_written(operation, args)
        return given

    def _drop_written(self, operation: Any, args: tuple[Any, ...]) -> None:
        """Keep no output that the layer overwrites."""
        for argument, tensor in zip(operation._schema.arguments, args, strict=False):
            if isinstance(tensor, Tensor) and argument.is_write:
                place = self._places.pop(tensor.untyped_storage()._cdata, None)
                if place is not None:
                    self._kept[place[0]][place[1]] = None


class _Reuse(TorchDispatchMode):
    """Gives the kept outputs in the place of their operations, when a layer is computed again."""

    keeps_products = True

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._kept = kept
        self._used: dict[Any, int] = defaultdict(int)  # by operation, how many outputs

    def __enter__(self) -> "_Reuse":
        self._used.clear()  # a graph that is retained is computed a third time
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Give the output that was kept, or run the operation."""
        kept = None
        if is_kept(operation, args):
            kept = self._kept[operation][self._used[operation]]
            self._used[operation] += 1
        if kept is None:
            return operation(*args, **(kwargs or {}))
        return tree_map_only(Tensor, torch.detach, kept)


def _contexts() -> tuple[_Keep, _Reuse]:
    """For one call of a layer: the context of its forward pass, and that of computing it again."""
    kept: Kept = defaultdict(list)
    return _Keep(kept), _Reuse(kept)


def checkpoint_selectively(model: nn.Module) -> None:
    """Let every layer of a transformers model keep only what ``is_kept`` says, while it trains."""
    # The new name in transformers, which still has the old one.
    new = getattr(model, "activation_checkpointing_enable", None)
    enable: Any = new or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": _contexts})
