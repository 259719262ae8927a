"""``PagedMap``: the term of a map, tile(Attn_s)·V, for the tokens of one step of vLLM.

    O = Attn·V + tile(Attn_s)·V                                           (Eq. 13)

vLLM's kernel has computed the first term. V is read from the paged cache, which by then also holds
the values of the step's own tokens.

Shapes: L layers, H query heads, G key/value heads, S map heads, T tokens, N map length, K keys,
D head width, R sequences that are computed together. All H/G heads of a group read the same values.
"""

import torch
from torch import Tensor

from lorada.attention.call import CallShape
from lorada.attention.learned_map import LearnedMap
from lorada.functional.maps import visible_pairs
from lorada_vllm.paged_values import PagedValues
from lorada_vllm.step import Group, Joined, Part, Together

# A map up to this long is computed once; of a longer one each step computes the rows it needs.
BAKED_UP_TO = 256


class PagedMap:
    """One layer's map, for inference on causal sequences without padding.

    A model calls it in every layer of every step, between kernels that push it out of the
    processor's caches, so each call of torch counts: tens of microseconds.
    """

    def __init__(self, learned_map: LearnedMap, heads: int, groups: int) -> None:
        self.length = learned_map.length
        self._sizes = groups, heads // groups
        self._maps: Tensor | None = None  # (L, G, N, H/G, N), see ``stack_maps``
        self._layer = 0
        if learned_map.stays_low_rank and self.length > BAKED_UP_TO:
            left, right = learned_map.scaled_factors()
            self._left, self._right = _tiled(left, heads), _tiled(right, heads)
        else:
            shape = CallShape(self.length, self.length, heads, causal=True)
            masked = learned_map.masked(learned_map.dense(), shape, None)
            self._maps = self._grouped(_tiled(masked, heads)).contiguous()[None]

    def _grouped(self, map_: Tensor) -> Tensor:
        """(H, T, K) → (G, T, H/G, K)"""
        grouped: Tensor = map_.unflatten(0, self._sizes).transpose(1, 2)
        return grouped

    def rows(self, rows: slice | Tensor, keys: int) -> Tensor:
        """Rows of the masked map, (G, T, H/G, keys) in fp32."""
        if self._maps is not None:
            return self._maps[self._layer, :, rows, :, :keys]
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=self._left.device)
        keep = visible_pairs(rows, keys, causal=True, window=None)
        assert keep is not None  # it is causal
        return self._grouped(self._left[:, rows] @ self._right[:, :, :keys] * keep)

    def add(self, output: Tensor, values: PagedValues, groups: list[Group]) -> None:
        """Add the term of every token under the map to ``output`` (T, H, D), in place.

        Args:
            output: Attn·V.
            values: of the layer.
            groups: from ``groups_of_step``.
        """
        for group in groups:
            if isinstance(group, Part):
                target = output[group.tokens].unflatten(1, self._sizes)
                rows = self.rows(group.rows, group.keys)
                # In the wider dtype, and rounded once, after the sum.
                target.add_(_term(rows, values.of_part(group)))
            elif isinstance(group, Joined):
                own = output[group.tokens].unflatten(1, self._sizes)
                own.add_(self._joined(group, values.together(group)))
                output.index_copy_(0, group.tokens, own.flatten(1, 2))
            elif values.vectors is not None:
                target = output[group.span]
                target.add_(self._sums(values.vectors, values.strides, group).view(target.shape))
            else:
                rows = self.rows(group.rows, group.keys).transpose(0, 1)
                term = _term_together(rows, values.together(group))
                output.index_add_(0, group.tokens, term.to(output.dtype))

    def _joined(self, group: Joined, values: Tensor) -> Tensor:
        """The term (T, G, H/G, D) of tokens of several sequences; values (R, G, keys, D).

        The map's rows are the same for all sequences: one product has the values of all.
        """
        rows = self.rows(group.rows, group.keys)  # (G, t, H/G, keys)
        side_by_side = values.permute(1, 2, 0, 3).flatten(2)  # (G, keys, R·D)
        term = torch.bmm(rows.flatten(1, 2), side_by_side)  # (G, t·H/G, R·D)
        term = term.unflatten(2, (len(values), -1)).unflatten(1, rows.shape[1:3])
        of_tokens: Tensor = term.permute(1, 3, 0, 2, 4)[group.own, group.sequence]
        return of_tokens

    def _sums(self, vectors: Tensor, strides: tuple[int, ...], group: Together) -> Tensor:
        """The term (T·H, D) of a span as sums of values that are weighted by entries of the map.

        An ``embedding_bag`` reads the values where they are. A copy would take longer than all
        else.
        """
        if self._maps is not None:
            pairs = group.pairs(strides, self._maps.shape[1:], chosen=False)
            weights = group.entries(self._maps, pairs)[self._layer]
        else:
            rows = self.rows(group.rows, group.keys)
            pairs = group.pairs(strides, rows.shape, chosen=True)
            weights = rows.reshape(-1).index_select(0, pairs.entries)
        # ``nn.functional.embedding_bag`` calls this, after checks that take a tenth of the time.
        sums: Tensor = torch.embedding_bag(
            vectors, pairs.places, pairs.begins, mode=0, per_sample_weights=weights,
            include_last_offset=True,
        )[0]  # fmt: skip
        return sums


def stack_maps(maps: list[PagedMap]) -> None:
    """Put the finished maps of a model's layers into one tensor.

    One call then reads the entries that a step needs of all of them.
    """
    finished = [own for map_ in maps if (own := map_._maps) is not None]
    if len(finished) == len(maps) and len({own.shape for own in finished}) == 1:
        stacked = torch.cat(finished)
        for layer, map_ in enumerate(maps):
            map_._maps, map_._layer = stacked, layer


def _tiled(factor: Tensor, heads: int) -> Tensor:
    """A map or a factor (S, …) for each query head: head i has map i mod S (Eq. 17)."""
    return factor.repeat(heads // factor.shape[0], 1, 1)


def _term(rows: Tensor, values: Tensor) -> Tensor:
    """Rows (G, T, H/G, keys) times values (G, keys, D) of one sequence, (T, G, H/G, D)."""
    term: Tensor = torch.bmm(rows.flatten(1, 2), values).unflatten(1, rows.shape[1:3])
    return term.transpose(0, 1)


def _term_together(rows: Tensor, values: Tensor) -> Tensor:
    """One row (R, G, H/G, keys) for the values (R, G, keys, D) of each, (R, H, D)."""
    product = torch.bmm(rows.flatten(0, 1), values.flatten(0, 1))
    return product.view(len(rows), -1, values.shape[-1])
