"""The term of a map in one attention call, tile(Attn_s)·V (Eq. 13).

One route: gather the values in the order of the map, take one masked product, and put its rows back
to their queries. ``under_map.py`` says where the tokens are; where they lie in order already, the
values are a slice and nothing is moved.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, M tokens
under the map, D head width.
"""

from torch import Tensor

from lorada.attention.attention_map import AttentionMap, take_rows
from lorada.attention.call import CallShape
from lorada.attention.under_map import UnderMap, put
from lorada.functional.causal import product_form
from lorada.functional.precision import no_autocast
from lorada.functional.product import apply_map, factors_product_gradients


def map_term(
    attention_map: AttentionMap, under: UnderMap, shape: CallShape, value: Tensor
) -> Tensor:
    """tile(Attn_s)·V in fp32 or wider, from the values (B, G, K, D) of a call.

    Returns:
        (B, M, H, D) in map order, or the rows of the queries if ``under`` names them.
    """
    batch, _, _, width = value.shape
    with no_autocast(value.device):
        values = under.values(value)
        own = attention_map.for_values(values)
        if own.stays_low_rank and under.rows is None:
            term = own.product(values, shape)
        else:
            term = apply_map(_masked_rows(own, under, shape, batch), values, shape.heads)
        rows = under.maps * term.shape[2]
        return term.transpose(1, 2).reshape(batch, rows, shape.heads, width)


def has_gradients(
    attention_map: AttentionMap, under: UnderMap, shape: CallShape, value: Tensor
) -> bool:
    """Whether ``map_term_gradients`` has the formulas for a call, and they cost no more."""
    if not attention_map.stays_low_rank or under.rows is not None:
        return False
    rank, share = attention_map.factors[0].shape[2], shape.heads // value.shape[1]
    causal, window, device = shape.causal, shape.window, value.device.type
    form = product_form(under.size, rank, share, causal=causal, window=window, device=device)
    return form != "blocks"


def map_term_gradients(
    attention_map: AttentionMap, under: UnderMap, shape: CallShape, value: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the values and of both factors, from that of ``map_term``, by formulas.

    The map is made again from the factors, so nothing else is kept for the backward pass.
    """
    with no_autocast(value.device):
        values = under.values(value)
        part, sizes = attention_map.part(under.size), (under.size, *grad.shape[2:])
        left, right = attention_map.for_values(values).scaled_factors(part)
        rows = grad.reshape(len(values), *sizes).transpose(1, 2)
        left, right, values = factors_product_gradients(
            left, right, values, rows, causal=shape.causal, window=shape.window
        )
        w_a, w_b = attention_map.factors
        if attention_map.inverse_scale != 1:
            left = left / attention_map.inverse_scale
        left, right = put(left, w_a, (slice(None), part)), put(right, w_b, (..., part))
        return under.value_grad(values, value), left, right


def _masked_rows(own: AttentionMap, under: UnderMap, shape: CallShape, batch: int) -> Tensor:
    """The M rows of a map, or those of the queries, (S, ·, M) or (B, S, ·, M), with their mask."""
    part, rows, seen = own.part(under.size), under.rows, under.seen
    if own.has_softmax or rows is None or seen is None:
        map_ = _masked_part(own, part, shape, under.real(batch))
        if rows is None or seen is None:
            return map_
        # Its rows have their mask already, but for those that the map does not reach.
        return take_rows(map_, rows - part.start) * seen.any(-1)[..., None, :, None]
    if own.stays_low_rank:
        left, right = own.scaled_factors()
        # One dimension of size 1 for the samples, so that both sides broadcast.
        right = right[:, None] if rows.dim() == 2 else right
        # Row t of the map needs row t of W_a and all of W_b: decoding computes 1 row, not N.
        map_ = left[:, rows] @ right[..., part]
    else:
        map_ = own.dense()[:, rows][..., part]
    map_ = map_ * seen  # (S, T, M) or (S, B, T, M)
    return map_ if rows.dim() == 1 else map_.transpose(0, 1)


def _masked_part(own: AttentionMap, part: slice, shape: CallShape, real: Tensor | None) -> Tensor:
    """The M rows and columns of a map with their mask, and for ¬S with its softmax.

    ``real`` (B, M) are booleans, the columns that hold a token; None for all.
    """
    if own.ablation != "softmax_then_cut":
        return own.masked(own.dense()[:, part, part], shape, real)
    map_ = own.masked(own.dense(), shape, None)[:, part, part]
    return map_ if real is None else map_ * real[:, None, None, :]
