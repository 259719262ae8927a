"""``RefilledCache``: keys and values of rows that may leave, and of others that take their place.

All rows end at the same slot, as in a batch that is padded on the left, so one step of the model
adds a token to each. Slots behind the end are kept free: a token is written there, where
transformers' ``DynamicCache`` copies everything to append it.

A slot is a place for the key and value of one token of a row, or for a pad.

Shapes: B rows, G key/value heads, K slots, D head width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 32  # free slots behind the end


class _Slots(NamedTuple):
    """The slots of a layer's keys or values, and the free ones behind them."""

    buffer: Tensor  # (B, G, K + free slots, D)
    filled: Tensor  # (B, G, K, D), a view of its first slots

    @classmethod
    def first_of(cls, buffer: Tensor, count: int) -> "_Slots":
        """A buffer whose first ``count`` slots are filled."""
        return cls(buffer, buffer[:, :, :count])


class RefilledLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, views of longer tensors; those of a window are all kept."""

    # By this transformers gives every decoding step a mask; else it asks the device, and waits,
    # whether the batch has pads. The views keep growing: nothing here is compiled.
    is_compileable = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add tokens to every row; return all keys (B, G, K, D) and values."""
        if self.is_initialized:
            self._take(
                _append(_Slots(self._keys, self.keys), key_states),
                _append(_Slots(self._values, self.values), value_states),
            )
        else:
            self.lazy_initialization(key_states, value_states)
            # The tokens of the prompts: there is no free slot behind them yet.
            self._take(_Slots(key_states, key_states), _Slots(value_states, value_states))
        return self.keys, self.values

    def refill(self, staying: Tensor, count: int, new: "RefilledLayer | None") -> None:
        """Keep the last ``count`` slots of the rows ``staying``; the rows of ``new`` come after."""
        staying = staying.to(self.keys.device)
        new_keys, new_values = (None, None) if new is None else (new.keys, new.values)
        self._take(
            _join(self.keys, staying, count, new_keys),
            _join(self.values, staying, count, new_values),
        )

    def _take(self, keys: _Slots, values: _Slots) -> None:
        # transformers reads ``keys`` and ``values``.
        self._keys, self.keys = keys
        self._values, self.values = values


def _append(slots: _Slots, new: Tensor) -> _Slots:
    """Slots with new ones (B, G, ·, D) behind them, in a longer buffer if there is no room."""
    buffer = slots.buffer
    old_count = slots.filled.shape[2]
    new_count = old_count + new.shape[2]
    if new_count > buffer.shape[2]:
        rows, heads, _, width = buffer.shape
        buffer = buffer.new_empty(rows, heads, new_count + ROOM, width)
        buffer[:, :, :old_count] = slots.filled
    buffer[:, :, old_count:new_count] = new
    return _Slots.first_of(buffer, new_count)


def _join(old: Tensor, staying: Tensor, count: int, new: Tensor | None) -> _Slots:
    """The last ``count`` slots of the rows ``staying``, and below them the rows of ``new``.

    All end at the same slot. ``old`` and ``new`` are (B, G, K, D), each with its own B and K.
    """
    stay_count = len(staying)
    row_count, end = stay_count, count
    if new is not None:
        row_count += len(new)
        # New rows may be longer: those that stay get pads on the left then.
        end = max(count, new.shape[2])
    buffer = old.new_empty(row_count, old.shape[1], end + ROOM, old.shape[3])
    # Pads are zeros, since what a mask hides is still multiplied by 0, which not every number
    # survives.
    buffer[:stay_count, :, : end - count] = 0
    # Into its place: an index makes a copy first, which takes twice as long.
    target = buffer[:stay_count, :, end - count : end]
    torch.index_select(old[:, :, old.shape[2] - count :], 0, staying, out=target)
    if new is not None:
        first_slot = end - new.shape[2]
        buffer[stay_count:, :, :first_slot] = 0
        buffer[stay_count:, :, first_slot:end] = new
    return _Slots.first_of(buffer, end)


class RefilledCache(Cache):  # type: ignore[misc]
    """The cache of a model whose layers ``can_be_refilled``."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RefilledLayer)

    def refill(
        self, staying: Sequence[int], count: int, new: "RefilledCache | None" = None
    ) -> None:
        """Keep some rows, and add those of another cache, so that all end at the same slot.

        Args:
            staying: the rows that are kept, in their new order.
            count: how many slots at the end they need: the tokens of the longest of them.
            new: the cache of the rows that come after them; None if none come.
        """
        new_layers = [None] * len(self.layers) if new is None else new.layers
        staying_rows = torch.tensor(staying, dtype=torch.long)
        for layer, new_layer in zip(self.layers, new_layers, strict=True):
            layer.refill(staying_rows, count, new_layer)


def can_be_refilled(config: Any) -> bool:
    """Whether transformers' own cache of a model has only keys and values of all its tokens."""
    layers = DynamicCache(config=config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
