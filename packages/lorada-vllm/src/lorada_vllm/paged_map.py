"""``PagedMap``: the term of a map, tile(Attn_s)·V, for the tokens of one step of vLLM.

    O = Attn·V + tile(Attn_s)·V                                           (Eq. 13)

vLLM's kernel has computed the first term. V is read from the paged cache, which by then also holds
the values of the step's own tokens.

Shapes: H query heads, G key/value heads, S map heads, T tokens, N map length, K keys, D head width,
R sequences of a group, C blocks of a sequence.
"""

import torch
from torch import Tensor

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import CallShape
from lorada.functional.maps import visible_pairs
from lorada.functional.product import apply_map
from lorada_vllm.step import Group

# A map up to this long is computed once; of a longer one each step computes the rows it needs.
BAKED_UP_TO = 256


class PagedMap:
    """One layer's map, for inference on causal sequences without padding."""

    def __init__(self, attention_map: AttentionMap, heads: int) -> None:
        self.heads = heads
        self.length = attention_map.length
        self._dense: Tensor | None = None
        if attention_map.stays_low_rank and self.length > BAKED_UP_TO:
            self._left, self._right = (f.contiguous() for f in attention_map.scaled_factors())
        else:
            shape = CallShape(self.length, self.length, heads, causal=True)
            masked = attention_map.masked(attention_map.dense(), shape, None)
            self._dense = masked.contiguous()

    def rows(self, rows: slice | Tensor, keys: int) -> Tensor:
        """Rows of the masked map, (S, T, keys) in fp32."""
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
            values = gather_values(value_cache, group)
            map_ = self.rows(group.rows, group.keys)
            if isinstance(group.tokens, slice):
                term = apply_map(map_, values, self.heads)[0].transpose(0, 1)
                output[group.tokens] += term.to(output.dtype)
            else:
                term = apply_map(map_.transpose(0, 1)[:, :, None], values, self.heads)[:, :, 0]
                output.index_add_(0, group.tokens, term.to(output.dtype))


def gather_values(value_cache: Tensor, group: Group) -> Tensor:
    """The values (R, G, keys, D) of a group in fp32, with zeros where a sequence has none."""
    paged = value_cache[group.blocks]  # (R, C, G, block size, D)
    values = paged.transpose(1, 2).flatten(2, 3)[:, :, : group.keys].float()
    # A block may hold what another sequence left there, even a NaN, which a zero would not remove.
    return values if group.beyond is None else values.masked_fill(group.beyond, 0.0)
