"""``PagedMap``: the term of a map, tile(Attn_s)·V, for the tokens of one step of vLLM.

    O = Attn·V + tile(Attn_s)·V                                           (Eq. 13)

vLLM's kernel has computed the first term. V is read from the paged cache, which by then also holds
the values of the step's own tokens.

Shapes: H query heads, G key/value heads, S map heads, T tokens, N map length, K keys, D head width,
R sequences that are computed together, C blocks of a sequence.
"""

import torch
from torch import Tensor, nn

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import CallShape
from lorada.functional.maps import visible_pairs
from lorada_vllm.step import Group, Part, Together

# A map up to this long is computed once; of a longer one each step computes the rows it needs.
BAKED_UP_TO = 256


class PagedMap:
    """One layer's map, for inference on causal sequences without padding.

    A model calls it in every layer of every step, between kernels that push it out of the
    processor's caches, so each call of torch counts: tens of microseconds.
    """

    def __init__(self, attention_map: AttentionMap, heads: int, groups: int) -> None:
        self.length = attention_map.length
        self._sizes = groups, heads // groups
        self._dense: Tensor | None = None
        if attention_map.stays_low_rank and self.length > BAKED_UP_TO:
            left, right = attention_map.scaled_factors()
            self._left, self._right = _tiled(left, heads), _tiled(right, heads)
        else:
            shape = CallShape(self.length, self.length, heads, causal=True)
            masked = attention_map.masked(attention_map.dense(), shape, None)
            self._dense = self._rows_first(_tiled(masked, heads)).contiguous()

    def _rows_first(self, map_: Tensor) -> Tensor:
        apart: Tensor = map_.transpose(0, 1).unflatten(1, self._sizes)
        return apart

    def rows(self, rows: slice | Tensor, keys: int) -> Tensor:
        """Rows of the masked map of each query head, (T, G, H/G, keys) in fp32."""
        if self._dense is not None:
            chosen = (
                self._dense[rows] if isinstance(rows, slice) else self._dense.index_select(0, rows)
            )
            return chosen[..., :keys]
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=self._left.device)
        keep = visible_pairs(rows, keys, causal=True, window=None)
        assert keep is not None  # it is causal
        return self._rows_first(self._left[:, rows] @ self._right[:, :, :keys] * keep)

    def add(self, output: Tensor, value_cache: Tensor, groups: list[Group]) -> None:
        """Add the term of every token under the map to ``output`` (T, H, D), in place.

        Args:
            output: Attn·V.
            value_cache: (blocks, G, block size, D).
            groups: from ``groups_of_step``.
        """
        # The query heads of a group share its values.
        output = output.view(len(output), *self._sizes, -1)
        are_vectors = value_cache.element_size() >= 4 and _are_vectors(value_cache)
        for group in groups:
            if isinstance(group, Together) and group.on_cpu and are_vectors:
                term = self._sums(value_cache, group)
                output.index_add_(0, group.tokens, term.view(-1, *output.shape[1:]))
                continue
            rows = self.rows(group.rows, group.keys)
            if isinstance(group, Part):
                # In the wider dtype, and rounded once, after the sum.
                output[group.tokens].add_(_term(rows, values_of(value_cache, group)))
            else:
                term = _term_together(rows, values_together(value_cache, group))
                output.index_add_(0, group.tokens, term.to(output.dtype))

    def _sums(self, value_cache: Tensor, group: Together) -> Tensor:
        """The term (R·H, D) as sums of values weighted by entries of the map.

        An ``embedding_bag`` reads the values where they are. A copy would take longer than all
        else.
        """
        map_ = self.rows(group.rows, group.keys) if self._dense is None else self._dense
        length = None if self._dense is None else self.length
        groups, share = self._sizes
        pairs = group.pairs(value_cache.stride(), groups * share, length)
        weights = map_.reshape(-1).index_select(0, pairs.entries)
        width = value_cache.shape[-1]
        # All that the cache holds from its first value on, as vectors of one head. Keys may lie
        # between the values.
        steps = zip(value_cache.shape, value_cache.stride(), strict=True)
        count = 1 + sum((size - 1) * step for size, step in steps)
        vectors = value_cache.as_strided((count // width, width), (width, 1))
        return nn.functional.embedding_bag(
            pairs.places, vectors, pairs.begins, mode="sum", per_sample_weights=weights,
            include_last_offset=True,
        )  # fmt: skip


def _are_vectors(value_cache: Tensor) -> bool:
    """Whether every value of the cache begins at a multiple of its width D."""
    *steps, last = value_cache.stride()
    return last == 1 and all(step % value_cache.shape[-1] == 0 for step in steps)


def _tiled(factor: Tensor, heads: int) -> Tensor:
    """A map or a factor (S, …) for each query head: head i has map i mod S (Eq. 17)."""
    return factor.repeat(heads // factor.shape[0], 1, 1)


def _term(rows: Tensor, values: Tensor) -> Tensor:
    """Rows (T, G, H/G, keys) times values (G, keys, D) of one sequence, (T, G, H/G, D)."""
    count = rows.shape[0]
    if count == 1:
        return torch.bmm(rows[0], values)
    stacked = rows.permute(1, 0, 2, 3).flatten(1, 2)
    term: Tensor = torch.bmm(stacked, values).unflatten(1, (count, -1)).transpose(0, 1)
    return term


def _term_together(rows: Tensor, values: Tensor) -> Tensor:
    """One row (R, G, H/G, keys) for the values (R, G, keys, D) of each, (R, G, H/G, D)."""
    product = torch.bmm(rows.flatten(0, 1), values.flatten(0, 1))
    return product.view(*rows.shape[:3], -1)


def values_of(value_cache: Tensor, part: Part) -> Tensor:
    """The values (G, keys, D) of one sequence in fp32."""
    if part.only is not None:  # a view, which fp32 need not copy
        return value_cache[part.only, :, : part.keys].float()
    paged = value_cache[part.blocks]  # (C, G, block size, D)
    return paged.transpose(0, 1).flatten(1, 2)[:, : part.keys].float()


def values_together(value_cache: Tensor, group: Together) -> Tensor:
    """The values (R, G, keys, D) of several sequences in fp32, zeros where one is shorter."""
    if group.on_cpu:
        for target, block, count in group.copies.parts:
            target.copy_(value_cache[block, :, :count])
        return group.copies.values
    paged = value_cache[group.blocks]  # (R, C, G, block size, D)
    values = paged.transpose(1, 2).flatten(2, 3)[:, :, : group.keys].float()
    # A block may hold what another sequence left there, even a NaN, which a zero would not remove.
    return values.masked_fill(group.beyond, 0.0)
