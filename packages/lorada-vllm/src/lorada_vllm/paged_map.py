"""``PagedMap``: the term of a map, tile(Attn_s)·V, for the tokens of one step of vLLM.

    O = Attn·V + tile(Attn_s)·V                                           (Eq. 13)

vLLM's kernel has computed the first term. V is read from the paged cache, which by then also holds
the values of the step's own tokens.

Shapes: H query heads, G key/value heads, S map heads, T tokens, N map length, K keys, D head width,
R sequences that are computed together, C blocks of a sequence.
"""

import torch
from torch import Tensor

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import CallShape
from lorada.functional.maps import visible_pairs
from lorada_vllm.step import Group, Part, Together

# A map up to this long is computed once; of a longer one each step computes the rows it needs.
BAKED_UP_TO = 256


class PagedMap:
    """One layer's map, for inference on causal sequences without padding."""

    def __init__(self, attention_map: AttentionMap, heads: int) -> None:
        self.length = attention_map.length
        self._dense: Tensor | None = None
        if attention_map.stays_low_rank and self.length > BAKED_UP_TO:
            left, right = attention_map.scaled_factors()
            self._left, self._right = _tiled(left, heads), _tiled(right, heads)
        else:
            shape = CallShape(self.length, self.length, heads, causal=True)
            masked = attention_map.masked(attention_map.dense(), shape, None)
            self._dense = _tiled(masked, heads)

    def rows(self, rows: slice | Tensor, keys: int) -> Tensor:
        """Rows of the masked map of each query head, (H, T, keys) in fp32."""
        if self._dense is not None:
            return self._dense[:, rows, :keys]
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=self._left.device)
        keep = visible_pairs(rows, keys, causal=True, window=None)
        assert keep is not None  # it is causal
        return self._left[:, rows] @ self._right[:, :, :keys] * keep

    def add(self, output: Tensor, value_cache: Tensor, groups: list[Group]) -> None:
        """Add the term of every token under the map to ``output`` (T, H, D), in place.

        Args:
            output: Attn·V.
            value_cache: (blocks, G, block size, D).
            groups: from ``groups_of_step``.
        """
        for group in groups:
            rows = self.rows(group.rows, group.keys)
            if isinstance(group, Part):
                output[group.tokens] += _term(rows, values_of(value_cache, group))
            else:
                term = _term_together(rows, values_together(value_cache, group))
                output.index_add_(0, group.tokens, term.to(output.dtype))


def _tiled(factor: Tensor, heads: int) -> Tensor:
    """A map or a factor (S, …) for each query head: head i has map i mod S (Eq. 17)."""
    return factor.repeat(heads // factor.shape[0], 1, 1)


def _term(rows: Tensor, values: Tensor) -> Tensor:
    """Rows (H, T, keys) times values (G, keys, D) of one sequence, (T, H, D)."""
    heads, count, keys = rows.shape
    groups, _, width = values.shape
    # The query heads of a group share its values, so their rows stand below each other.
    stacked = rows.reshape(groups, heads // groups * count, keys)
    return torch.bmm(stacked, values).view(heads, count, width).transpose(0, 1)


def _term_together(rows: Tensor, values: Tensor) -> Tensor:
    """One row (H, R, keys) for the values (R, G, keys, D) of each sequence, (R, H, D)."""
    sequences, groups = values.shape[:2]
    stacked = rows.transpose(0, 1).reshape(sequences, groups, -1, values.shape[2])
    return (stacked @ values).flatten(1, 2)


def values_of(value_cache: Tensor, part: Part) -> Tensor:
    """The values (G, keys, D) of one sequence in fp32."""
    if part.keys <= value_cache.shape[2] and part.blocks.device.type == "cpu":
        # One block, whose number the host may read: a view, which fp32 need not copy.
        return value_cache[int(part.blocks[0]), :, : part.keys].float()
    paged = value_cache[part.blocks]  # (C, G, block size, D)
    return paged.transpose(0, 1).flatten(1, 2)[:, : part.keys].float()


def values_together(value_cache: Tensor, group: Together) -> Tensor:
    """The values (R, G, keys, D) of several sequences in fp32, zeros where one is shorter."""
    if group.copies is not None:
        for target, block, count in group.copies.parts:
            target.copy_(value_cache[block, :, :count])
        return group.copies.values
    paged = value_cache[group.blocks]  # (R, C, G, block size, D)
    values = paged.transpose(1, 2).flatten(2, 3)[:, :, : group.keys].float()
    # A block may hold what another sequence left there, even a NaN, which a zero would not remove.
    return values.masked_fill(group.beyond, 0.0)
