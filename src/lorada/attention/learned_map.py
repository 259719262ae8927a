"""``LearnedMap``: one learned map, in the forms in which an attention call needs it.

A tuner makes the record for each call from its parameters. A call needs the whole map, some of its
rows, or only the product of its factors with the values, which never makes the map.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, M tokens under the map,
N map length, R rank, D head width.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from lorada.attention.call import CallShape
from lorada.functional.maps import (
    Ablation,
    Align,
    full_rank_map,
    low_rank_map,
    mask_map,
    position_factors,
    softmax_map,
)
from lorada.functional.precision import wide, wide_dtype


@dataclass(frozen=True)
class LearnedMap:
    """The factors of one map and its settings.

    Everything is computed in fp32 or wider, whatever the dtype of the model.
    """

    # (W_a, W_b) of shapes (S, N, R) and (S, R, N), or (W,) of shape (H, N, N) if it is full-rank.
    factors: tuple[Tensor, ...]
    inverse_scale: float  # 1/s of Eq. 10
    align: Align  # whether it lies on the first or the last tokens of a sequence
    ablation: Ablation | None  # the variant of the paper's Table 9; None for the proposed map
    baked: Tensor | None = None  # the finished (S, N, N) map, if it was computed ahead of time
    pe: Tensor | None = None  # PE (N,), likewise

    @property
    def length(self) -> int:
        """N, in tokens."""
        return self.factors[0].shape[1]

    @property
    def has_position(self) -> bool:
        """Whether the position embedding is added to the factors."""
        return self.ablation != "no_position"

    @property
    def stays_low_rank(self) -> bool:
        """Whether the term can be computed as W_a (W_b V), without the map."""
        # A softmax needs all entries of a row, and a full-rank or a finished map has no factors.
        return self.baked is None and self.ablation in (None, "no_position")

    def for_values(self, value: Tensor) -> "LearnedMap":
        """The same map in the dtype in which its term with these values is computed."""
        # Factors may be stored in half precision, in which a map of the paper's scale vanishes.
        dtype = wide_dtype(value)
        factors = tuple(factor.to(dtype) for factor in self.factors)
        # A finished map has the precision of the factors that it was made of.
        baked, pe = (
            None if made is None or made.dtype != dtype else made for made in (self.baked, self.pe)
        )
        return replace(self, factors=factors, baked=baked, pe=pe)

    def dense(self) -> Tensor:
        """The whole (S, N, N) map before any mask."""
        if self.baked is not None:
            return self.baked
        factors = [wide(factor) for factor in self.factors]
        scale, position = self.inverse_scale, self.has_position
        if len(factors) == 1:
            return full_rank_map(factors[0], scale, position=position, pe=self.pe)
        return low_rank_map(factors[0], factors[1], scale, position=position, pe=self.pe)

    def masked(self, map_: Tensor, shape: CallShape, keys: Tensor | None) -> Tensor:
        """A dense map, or a square part of one, with its mask, and for ¬S with its softmax.

        ``keys`` (B, M) are booleans, the columns that hold a token; None for all. Only the softmax
        needs them: without it a column without a token meets values of zero.
        """
        # The softmax masks before it sums, so that hidden keys do not count in the sum.
        if self.ablation == "softmax":
            return softmax_map(map_, shape.causal, shape.window, keys)
        return mask_map(map_, shape.causal, shape.window)

    def scaled_factors(self, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The factors (S, N, R) and (S, R, N) with PE and scale; their product is the map.

        ``part`` are the rows and columns that are needed. The factors are those of ``for_values``.
        """
        w_a, w_b = self.factors
        if self.has_position:
            w_a, w_b = position_factors(w_a, w_b, self.pe)
        w_a, w_b = w_a[:, part], w_b[:, :, part]
        return w_a if self.inverse_scale == 1 else w_a / self.inverse_scale, w_b

    def part(self, size: int) -> slice:
        """The rows and columns of M tokens: the first or the last ones of the map."""
        return slice(0, size) if self.align == "start" else slice(self.length - size, self.length)
