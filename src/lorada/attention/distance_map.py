"""``DistanceMap``: the map by distance of one layer and call (``functional/distance.py``).

Three routes to its product with the values:

1. Whole sequences, in blocks, at a cost linear in the tokens; where there is padding, the values
   are first gathered into the order of the tokens.
2. A slice: behind a cache without padding, only the keys within the window are multiplied.
3. In all other cases the map is made, (S, T, K) for each sample.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, W taps,
D head width.
"""

import torch
from torch import Tensor

from lorada.attention.form_map import FormMap
from lorada.attention.positions import TokenSpan, TokenTable
from lorada.attention.visible import VisiblePairs
from lorada.functional.causal import Matmul
from lorada.functional.distance import distance_product, distance_weights, first_distance
from lorada.functional.precision import wide
from lorada.functional.product import apply_map


class DistanceMap(FormMap):
    """A map with the taps (S, W) as its only factor."""

    def weights(self, pairs: VisiblePairs, *tensors: Tensor) -> Tensor:
        """The whole map, (B or 1, H, T, K)."""
        map_, heads = self._map(pairs, tensors[0].device), pairs.shape.heads
        return map_.repeat(1, heads // map_.shape[1], 1, 1)

    def product(self, pairs: VisiblePairs, matmul: Matmul, *tensors: Tensor) -> Tensor:
        """tile(map)·V of all queries, (B, H, T, D)."""
        (value,), positions, shape = tensors, pairs.positions, pairs.shape
        if pairs.ordered:
            if isinstance(positions, TokenTable):
                return self._in_token_order(pairs, positions, value, matmul)
            return self._of_whole(pairs, value, matmul)
        if isinstance(positions, TokenSpan) and pairs.mask is None:
            return self._of_slice(pairs, positions, value, matmul)
        map_ = self._map(pairs, value.device)
        # A map that all samples share has no dimension for them.
        map_ = map_[0] if map_.shape[0] == 1 else map_
        return apply_map(map_, wide(value), shape.heads, matmul)

    @property
    def _taps(self) -> Tensor:
        return self.factors[0] / self.inverse_scale

    def _map(self, pairs: VisiblePairs, device: torch.device) -> Tensor:
        """The map (B or 1, S, T, K) of all visible pairs."""
        table = pairs.table(device)
        map_ = distance_weights(self._taps, table.rows, table.columns, pairs.shape.causal)
        return map_ * pairs.pairs(device)[:, None]

    def _of_whole(self, pairs: VisiblePairs, value: Tensor, matmul: Matmul) -> Tensor:
        shape, value = pairs.shape, wide(value)
        return distance_product(
            self._taps, value, shape.heads, causal=shape.causal, window=shape.window, matmul=matmul
        )

    def _in_token_order(
        self, pairs: VisiblePairs, table: TokenTable, value: Tensor, matmul: Matmul
    ) -> Tensor:
        """The product where pads may stand between tokens, as behind a prompt padded right."""
        batch, groups, keys, width = value.shape
        slots, real = (part.expand(batch, -1) for part in table.key_slots(keys))
        index = slots[:, None, :, None].expand(-1, groups, -1, width)
        value = value.gather(2, index) * real[:, None, :, None]
        term = self._of_whole(pairs, value, matmul)
        rows, inside = (part.expand(batch, -1) for part in table.query_rows(keys))
        index = rows[:, None, :, None].expand(-1, term.shape[1], -1, width)
        return term.gather(2, index) * inside[:, None, :, None]

    def _of_slice(
        self, pairs: VisiblePairs, span: TokenSpan, value: Tensor, matmul: Matmul
    ) -> Tensor:
        """The product where the queries are tokens ``first`` and on of ``stop`` tokens."""
        shape, first = pairs.shape, first_distance(self._taps.shape[1], pairs.shape.causal)
        last = first + self._taps.shape[1] - 1
        low = max(span.start, span.first + first)
        high = min(span.stop, span.first + shape.queries + last)
        rows = torch.arange(shape.queries, device=value.device) + span.first
        columns = torch.arange(low, high, device=value.device)
        map_ = distance_weights(self._taps, rows, columns, shape.causal)
        if shape.window is not None:
            map_ = map_ * ((columns - rows[:, None]).abs() < shape.window)
        return apply_map(map_, wide(value[:, :, low:high]), shape.heads, matmul)
