"""The product of a map with the values, tile(Attn_s)·V, without an attention map (Eq. 13).

    O = Attn^ V = Attn V + tile(Attn_s) V

The product is computed from right to left, W_a (W_b V), wherever that is cheaper than making the
map: it costs 2 R multiplications for each number of V instead of M. ``tile`` is the repetition of
Eq. 17: with S map heads, query head i uses map i mod S.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, M tokens under the map,
R rank, D head width.
"""

from jaxtyping import Float
from torch import Tensor

from lorada.functional.causal import causal_blocks, product_form, side_by_side
from lorada.functional.maps import mask_map


def factors_product(
    left: Float[Tensor, "S M R"],
    right: Float[Tensor, "S R M"],
    value: Float[Tensor, "B G M D"],
    heads: int,
    *,
    causal: bool,
    window: int | None = None,
) -> Float[Tensor, "B H M D"]:
    """tile(mask(left right)) · V, in the form that costs least on the device.

    S are the map's heads. ``left`` is W_a with its position encoding (PE) and scale, ``right`` W_b
    with its PE; ``causal`` and ``window`` (in tokens) are the mask.
    """
    size, rank = left.shape[1:]
    share = heads // value.shape[1]  # query heads of a key/value head
    form = product_form(size, rank, share, causal=causal, window=window, device=value.device.type)
    # A mask on W_a W_b stands between the factors, so W_b V cannot be computed first, except block
    # by block for a causal mask.
    if form == "dense":  # the whole map, under its mask if it has one
        return apply_map(mask_map(left @ right, causal, window), value, heads)
    if form == "blocks":  # a causal mask, without making the map
        return causal_blocks(left, right, value, heads)
    # Without a mask each factor is a map: right (R rows, M keys) first, then left (M, R keys).
    return apply_map(left, apply_map(right, value, heads), heads)


def factors_product_gradients(
    left: Float[Tensor, "S M R"],
    right: Float[Tensor, "S R M"],
    value: Float[Tensor, "B G M D"],
    grad: Float[Tensor, "B H M D"],
    *,
    causal: bool,
    window: int | None = None,
) -> tuple[Float[Tensor, "S M R"], Float[Tensor, "S R M"], Float[Tensor, "B G M D"]]:
    """The gradients of ``left``, ``right`` and ``value`` from that of ``factors_product``."""
    if causal or window is not None:
        map_ = mask_map(left @ right, causal, window)
        map_grad, value_grad = _apply_map_gradients(map_, value, grad)
        map_grad = mask_map(map_grad, causal, window)
        return map_grad @ right.mT, left.mT @ map_grad, value_grad
    # Without a mask the product is W_a (W_b V), whose two steps are taken back one by one.
    inner = apply_map(right, value, grad.shape[1])
    left_grad, inner_grad = _apply_map_gradients(left, inner, grad)
    right_grad, value_grad = _apply_map_gradients(right, value, inner_grad)
    return left_grad, right_grad, value_grad


def _apply_map_gradients(map_: Tensor, value: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the map (S, T, M) of all samples and of ``value``, from ``apply_map``'s."""
    maps, queries, keys = map_.shape
    batch, groups, _, width = value.shape
    tiles = grad.shape[1] // maps
    # As in ``apply_map``: samples side by side, and the query heads of a group as more rows.
    stacked_grad = side_by_side(grad).reshape(groups, -1, batch * width)
    values = side_by_side(value)
    # The query heads that share a map add up their gradients.
    map_grad = (stacked_grad @ values.mT).view(tiles, maps, queries, keys)
    map_grad = map_grad.sum(0) if tiles > 1 else map_grad[0]
    tiled = map_.repeat(tiles, 1, 1) if tiles > 1 else map_
    stacked_map = tiled.reshape(groups, -1, keys)
    value_grad = (stacked_map.mT @ stacked_grad).unflatten(2, (batch, width)).permute(2, 0, 1, 3)
    return map_grad, value_grad


def apply_map(
    map_: Float[Tensor, "*B S T M"], value: Float[Tensor, "B G M D"], heads: int
) -> Float[Tensor, "B H T D"]:
    """Tile(map) · V, for one map of all samples or one map of each sample."""
    batch, groups, keys, width = value.shape
    maps, queries = map_.shape[-3:-1]
    # ``repeat`` and not ``repeat_interleave``: neighbouring heads use different maps (Eq. 17).
    tiles = (1, heads // maps, 1, 1)[-map_.dim() :]
    tiled = map_.repeat(tiles) if maps < heads else map_.contiguous()
    # The query heads of a group share its values: their maps are stacked as more rows, so the
    # values are never copied for each query head.
    stacked = tiled.view(*map_.shape[:-3], groups, heads // groups * queries, keys)
    if map_.dim() == 4:
        return (stacked @ value).view(batch, heads, queries, width)
    # Samples that share a map are columns of one large product, which is faster than B small.
    product = stacked @ side_by_side(value)
    return product.view(heads, queries, batch, width).permute(2, 0, 1, 3)
