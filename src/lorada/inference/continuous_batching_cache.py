"""``RefilledCache``: keys and values of rows that may leave, and of others that take their place.

All rows end at the same slot, as in a batch that is padded on the left, so one step of the model
adds a token to each. Slots behind the end are kept free: a token is written there, where
transformers' ``DynamicCache`` copies everything to append it.

Shapes: B rows, G key/value heads, K slots, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 32  # free slots behind the end


class RefilledLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, views of longer tensors; those of a window are all kept."""

    # By this transformers gives every decoding step a mask; else it asks the device, and waits,
    # whether the batch has pads. The views keep growing: nothing here is compiled.
    is_compileable = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add tokens to every row; return all keys (B, G, K, D) and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            self._keys, self._values = key_states, value_states
            return self.keys, self.values
        self._keys, self.keys = _appended(self._keys, self.keys, key_states)
        self._values, self.values = _appended(self._values, self.values, value_states)
        return self.keys, self.values

    def refill(self, kept: Tensor, slots: int, new: "RefilledLayer | None") -> None:
        """Keep the last ``slots`` slots of the rows ``kept``; the rows of ``new`` come after."""
        kept = kept.to(self.keys.device)
        keys, values = (None, None) if new is None else (new.keys, new.values)
        self._keys, self.keys = _joined(self.keys, kept, slots, keys)
        self._values, self.values = _joined(self.values, kept, slots, values)


def _appended(whole: Tensor, filled: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """The longer tensor and the view of its first slots, with new slots behind ``filled``."""
    before, after = filled.shape[2], filled.shape[2] + new.shape[2]
    if after > whole.shape[2]:
        longer = whole.new_empty(*whole.shape[:2], after + ROOM, whole.shape[3])
        longer[:, :, :before] = filled
        whole = longer
    whole[:, :, before:after] = new
    return whole, whole[:, :, :after]


def _joined(old: Tensor, kept: Tensor, slots: int, new: Tensor | None) -> tuple[Tensor, Tensor]:
    """``_appended`` for rows: the last slots of the rows ``kept``, and below them the new ones."""
    rows = len(kept) + (0 if new is None else len(new))
    end = slots if new is None else max(slots, new.shape[2])
    whole = old.new_empty(rows, old.shape[1], end + ROOM, old.shape[3])
    # Pads are zeros, since what a mask hides is still multiplied by 0, which not every number
    # survives.
    whole[: len(kept), :, : end - slots] = 0
    # Into its place: an index makes a copy first, which takes twice as long.
    place = whole[: len(kept), :, end - slots : end]
    torch.index_select(old[:, :, old.shape[2] - slots :], 0, kept, out=place)
    if new is not None:
        whole[len(kept) :, :, : end - new.shape[2]] = 0
        whole[len(kept) :, :, end - new.shape[2] : end] = new
    return whole, whole[:, :, :end]


class RefilledCache(Cache):  # type: ignore[misc]
    """The cache of a model whose layers ``can_be_refilled``."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RefilledLayer)

    def refill(self, kept: Sequence[int], slots: int, new: "RefilledCache | None" = None) -> None:
        """Keep some rows, and add those of another cache, so that all end at the same slot.

        The rows ``kept``, in their new order, need so many ``slots`` at the end; those of ``new``
        come after them.
        """
        added = [None] * len(self.layers) if new is None else new.layers
        chosen = torch.tensor(kept, dtype=torch.long)
        for layer, other in zip(self.layers, added, strict=True):
            layer.refill(chosen, slots, other)


def can_be_refilled(config: Any) -> bool:
    """Whether transformers' own cache of a model has only keys and values of all its tokens."""
    layers = DynamicCache(config=config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
