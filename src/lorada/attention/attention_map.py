"""One map as an attention call needs it, and the rows and products of it.

Shapes: B batch, P sequences packed into a row, H query heads, G key/value heads, S map heads,
T queries, K key slots, N map length, R rank, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorada.functional.causal import Matmul
from lorada.functional.maps import (
    SOFTMAXES,
    Ablation,
    Align,
    full_rank_map,
    low_rank_map,
    map_value_product,
    mask_map,
    position_factors,
    softmax_map,
    visible_pairs,
)


@dataclass(frozen=True)
class AttentionMap:
    """One map as an attention call needs it: factors (or the map itself) and how to read it.

    Attributes:
        factors: (W_a, W_b), or (W,) of the full-rank ablation.
        baked: the finished (S, N, N) map, if it was computed ahead.
        samples: (B,) booleans, the samples of a mixed batch that use this map; None for all.
    """

    factors: tuple[Tensor, ...]
    inverse_scale: float
    align: Align
    positions: str
    ablation: Ablation | None
    baked: Tensor | None = None
    samples: Tensor | None = None

    @property
    def length(self) -> int:
        """N, in tokens."""
        return self.factors[0].shape[1]

    def dense(self) -> Tensor:
        """The (S, N, N) map before any mask, in fp32."""
        if self.baked is not None:
            return self.baked
        factors = [factor.float() for factor in self.factors]
        position = self.ablation != "no_position"
        if len(factors) == 1:
            return full_rank_map(factors[0], self.inverse_scale, position=position)
        return low_rank_map(factors[0], factors[1], self.inverse_scale, position=position)

    def positioned(self) -> tuple[Tensor, Tensor]:
        """Both factors (S, N, R) and (S, R, N) with PE and the scale, in fp32."""
        w_a, w_b = (factor.float() for factor in self.factors)
        if self.ablation != "no_position":
            w_a, w_b = position_factors(w_a, w_b)
        return w_a / self.inverse_scale, w_b

    @property
    def stays_low_rank(self) -> bool:
        """Whether nothing stands in the way of W_a (W_b V)."""
        return self.baked is None and self.ablation in (None, "no_position")


@dataclass(frozen=True)
class View:
    """What a map sees of an attention call besides its values (B, G, K, D).

    Attributes:
        queries: T.
        keys: K.
        heads: H.
        causal: whether a row sees only its own and earlier keys.
        window: width of a sliding window, in tokens; None without one.
        matmul: how the product is taken whose result is the term.
    """

    queries: int
    keys: int
    heads: int
    causal: bool
    window: int | None
    matmul: Matmul = torch.matmul


def product(attention_map: AttentionMap, value: Tensor, view: View, align: Align) -> Tensor:
    """tile(Attn_s)·V of a low-rank map on values (B, G, M, D) of whole sequences, (B, H, M, D)."""
    w_a, w_b = (factor.float() for factor in attention_map.factors)
    return map_value_product(
        w_a,
        w_b,
        value,
        attention_map.inverse_scale,
        heads=view.heads,
        align=align,
        causal=view.causal,
        window=view.window,
        position=attention_map.ablation != "no_position",
        matmul=view.matmul,
    )


def masked(attention_map: AttentionMap, map_: Tensor, view: View, keys: Tensor | None) -> Tensor:
    """A map (S, N, N) as attention adds it: masked, and normalised over ``keys`` (B, N) for ¬S."""
    if attention_map.ablation in SOFTMAXES:
        future = attention_map.ablation == "softmax_with_future"
        return softmax_map(map_, view.causal, view.window, keys, future=future)
    return mask_map(map_, view.causal, view.window)


def rows_of_map(attention_map: AttentionMap, rows: Tensor, view: View) -> Tensor:
    """Rows (*B, T) of the masked low-rank map, without the others, (S, *B, T, N)."""
    left, right = attention_map.positioned()
    right = right.view(right.shape[0], *[1] * (rows.dim() - 1), *right.shape[1:])
    map_ = left[:, rows] @ right
    keep = visible_pairs(rows, attention_map.length, view.causal, view.window)
    return map_ if keep is None else map_ * keep


def map_rows(map_: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, T) of a (S, N, N) or (B, S, N, N) map, as (B, S, T, N)."""
    if map_.dim() == 3:
        return map_[:, rows].transpose(0, 1)
    index = rows[:, None, :, None].expand(-1, map_.shape[1], -1, map_.shape[-1])
    return map_.expand(rows.shape[0], -1, -1, -1).gather(2, index)


def for_samples(full: Tensor, samples: Tensor | None, batch: int) -> Tensor:
    """``full`` (B or 1, …), zero for the samples that others serve; beam search repeats each."""
    if samples is None:
        return full
    mine = samples.repeat_interleave(batch // samples.shape[0])
    return full * mine.view(-1, *[1] * (full.dim() - 1))
