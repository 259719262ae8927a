"""The product of a map with the values, tile(Attn_s)·V, without an attention map (Eq. 13).

    O = Attn^ V = Attn V + tile(Attn_s) V

The factors meet the values one after the other, W_a (W_b V), wherever that is cheaper than the map:
it costs 2 R multiplications for each number of V instead of M. Eq. 17 tiles: of S map heads, query
head i uses map i mod S.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K keys, N map length,
M = min(N, K), R rank, D head width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lorada.functional.causal import Matmul, causal_blocks, product_form, side_by_side
from lorada.functional.maps import Align, mask_map, position_factors


def map_value_product(
    w_a: Float[Tensor, "S N R"],
    w_b: Float[Tensor, "S R N"],
    value: Float[Tensor, "B G K D"],
    inverse_scale: float,
    *,
    heads: int,
    align: Align = "start",
    causal: bool = False,
    window: int | None = None,
    position: bool = True,
    matmul: Matmul = torch.matmul,
) -> Float[Tensor, "B H M D"]:
    """The second term of O = Attn·V + tile(Attn_s)·V on the M = min(N, K) tokens the map covers.

    Args:
        w_a: left factor.
        w_b: right factor.
        value: values of a whole, unpadded sequence.
        inverse_scale: 1 / s.
        heads: query heads H, a multiple of S and of G.
        align: whether the map lies on the first (Eqs. 14-15) or the last (Eq. 16) M tokens.
        causal: lower triangle only (Eq. 11).
        window: width of a sliding attention window, in tokens; None without one.
        position: False for the ¬P ablation.
        matmul: takes the last product, whose result is the term.

    Returns:
        What is to be added to the attention output of the first or the last M tokens.
    """
    size = min(w_a.shape[1], value.shape[2])
    if position:
        w_a, w_b = position_factors(w_a, w_b)
    # Cutting the factors cuts the map: what lies beyond the sequence is never computed.
    if align == "start":
        w_a, w_b, value = w_a[:, :size], w_b[:, :, :size], value[:, :, :size]
    else:
        w_a, w_b = w_a[:, w_a.shape[1] - size :], w_b[:, :, w_b.shape[2] - size :]
        value = value[:, :, value.shape[2] - size :]
    # A factor has far fewer numbers to scale than the product.
    w_a = w_a / inverse_scale
    return factors_product(w_a, w_b, value, heads, causal=causal, window=window, matmul=matmul)


def factors_product(
    left: Float[Tensor, "*B S M R"],
    right: Float[Tensor, "*B S R M"],
    value: Float[Tensor, "B G M D"],
    heads: int,
    *,
    causal: bool,
    window: int | None = None,
    matmul: Matmul = torch.matmul,
) -> Float[Tensor, "B H M D"]:
    """tile(left right ⊙ M) · V, in the form that takes the fewest multiplications.

    Args:
        left: W_a with PE and scale, for all samples or for each its own.
        right: W_b with PE, likewise.
        value: V.
        heads: H.
        causal: whether a row sees only its own and earlier keys.
        window: how many keys back a row sees; None for all.
        matmul: takes the last product, whose result is the term.
    """
    size, rank, share = *left.shape[-2:], heads // value.shape[1]
    form = product_form(size, rank, share, causal=causal, window=window)
    # With a mask the order of the products cannot be changed, unless block by block.
    if form == "dense":
        return apply_map(mask_map(left @ right, causal, window), value, heads, matmul)
    if form == "blocks":
        return causal_blocks(left, right, value, heads, matmul)
    return apply_map(left, apply_map(right, value, heads), heads, matmul)


def apply_map(
    map_: Float[Tensor, "*B S T M"],
    value: Float[Tensor, "B G M D"],
    heads: int,
    matmul: Matmul = torch.matmul,
) -> Float[Tensor, "B H T D"]:
    """Tile(map) · V, for one map or for one of each sample."""
    if map_.dim() == 3:
        # Samples that share a map stand side by side, as more columns of one product.
        product = apply_map(map_[None], side_by_side(value), heads, matmul)[0]
        by_sample: Tensor = product.unflatten(2, (value.shape[0], value.shape[-1]))
        return by_sample.permute(2, 0, 1, 3)
    batch, groups, keys, width = value.shape
    maps, queries = map_.shape[1:3]
    # ``repeat`` and not ``repeat_interleave``: neighbouring heads use different maps (Eq. 17).
    tiled = map_.repeat(1, heads // maps, 1, 1)
    # The query heads of a group share its values: their maps are stacked as more rows, so the
    # values are never copied for each query head.
    stacked = tiled.view(batch, groups, heads // groups * queries, keys)
    return matmul(stacked, value).view(batch, heads, queries, width)
