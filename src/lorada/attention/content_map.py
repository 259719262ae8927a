"""``ContentMap`` and ``BilinearMap``: the maps by content (``functional/content.py``).

Both are a factor of each query times one of each key. Whole sequences need no map: their product
with the values is that of the paper's map, with other factors for each sample and head
(``functional/product.py``), at a cost linear in the tokens. In all other cases, such as decoding,
packed rows and sliding windows, the (T, K) matrix of visible pairs is made.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, R rank,
C width of a query and key, D width of a value.
"""

from typing import ClassVar

import torch
from torch import Tensor

from lorada.attention.form_map import FormMap
from lorada.attention.positions import TokenSpan
from lorada.attention.visible import VisiblePairs
from lorada.functional.causal import Matmul
from lorada.functional.content import (
    bilinear_key_factor,
    bilinear_query_factor,
    content_key_factor,
    visible_mean_map,
    visible_mean_product,
)
from lorada.functional.precision import wide
from lorada.functional.product import apply_map, factors_product


class ContentMap(FormMap):
    """A map of weights b·k/√C + c, with the factors b (S, C) and c (S,)."""

    reads: ClassVar[tuple[str, ...]] = ("value", "key")

    def weights(self, pairs: VisiblePairs, *tensors: Tensor) -> Tensor:
        """The whole map, (B, H, T, K)."""
        right = self._right(tensors[1], pairs.shape.heads)
        left = right.new_ones(*right.shape[:2], pairs.shape.queries, 1)
        return visible_mean_map(left, right, pairs.pairs(right.device))

    def product(self, pairs: VisiblePairs, matmul: Matmul, *tensors: Tensor) -> Tensor:
        """tile(map)·V of all queries, (B, H, T, D)."""
        value, key, shape = wide(tensors[0]), tensors[1], pairs.shape
        if not pairs.ordered and shape.queries < value.shape[-1]:
            # For few queries, as in decoding, their map is smaller than the weighted values.
            return apply_map(self.weights(pairs, *tensors), value, shape.heads, matmul)
        right = self._right(key, shape.heads)
        if pairs.sees_all_before:
            left = right.new_ones(*right.shape[:2], shape.queries, 1)
            return whole_mean_product(pairs, left, right, value, matmul)
        return visible_mean_product(right, value, pairs.pairs(value.device), matmul)

    def _right(self, key: Tensor, heads: int) -> Tensor:
        b, c = self.factors
        return content_key_factor(b, c, wide(key), heads) / self.inverse_scale


class BilinearMap(FormMap):
    """A map of weights (q A)(B k)/√C, with the factors A (S, C, R) and B (S, R, C)."""

    reads: ClassVar[tuple[str, ...]] = ("value", "key", "query")

    def weights(self, pairs: VisiblePairs, *tensors: Tensor) -> Tensor:
        """The whole map, (B, H, T, K)."""
        left, right = self._both(*tensors[1:])
        return visible_mean_map(left, right, pairs.pairs(right.device))

    def product(self, pairs: VisiblePairs, matmul: Matmul, *tensors: Tensor) -> Tensor:
        """tile(map)·V of all queries, (B, H, T, D)."""
        value = wide(tensors[0])
        if pairs.sees_all_before:
            return whole_mean_product(pairs, *self._both(*tensors[1:]), value, matmul)
        return apply_map(self.weights(pairs, *tensors), value, pairs.shape.heads, matmul)

    def _both(self, key: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.factors
        left = bilinear_query_factor(a, wide(query)) / self.inverse_scale
        return left, bilinear_key_factor(b, wide(key), query.shape[1])


def whole_mean_product(
    pairs: VisiblePairs, left: Tensor, right: Tensor, value: Tensor, matmul: Matmul
) -> Tensor:
    """map·V of whole sequences, (B, H, T, D), whose map is left (B, H, T, R) · right (B, H, R, K).

    The map is divided by the number of keys that each query sees: all tokens, or in causal
    attention those up to its own.
    """
    shape, positions = pairs.shape, pairs.positions
    if isinstance(positions, TokenSpan):
        seen = torch.arange(1, shape.queries + 1, device=value.device)
        seen = seen if shape.causal else torch.full_like(seen, shape.queries)
        left = left / seen[:, None]
    else:
        real = positions.real_queries()
        seen = positions.rows + 1 if shape.causal else real.sum(-1, keepdim=True)
        # Padding is before, between or behind the tokens, adds nothing to a sum and gets nothing.
        left = left * (real.to(left.dtype) / seen.clamp(min=1))[:, None, :, None]
        right = right * real[:, None, None, :]
    return factors_product(left, right, value, shape.heads, causal=shape.causal, matmul=matmul)
