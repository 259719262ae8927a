"""The term of a map on tokens that lie side by side, which are a slice of the values.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, N map length, D head
width.
"""

import torch
from torch import Tensor

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import CallShape
from lorada.attention.positions import TokenSpan
from lorada.functional.maps import Align
from lorada.functional.precision import wide
from lorada.functional.product import apply_map


def queries_under_map(length: int, span: TokenSpan) -> slice | None:
    """Which queries, counted from the first one of a span, a map reaches; None if none."""
    _, row, end = _slots_under_map(length, span)
    # From key slots to queries, which are counted from the slot of the first one.
    return None if row >= end else slice(row - span.first, end - span.first)


def _slots_under_map(length: int, span: TokenSpan) -> tuple[int, int, int]:
    """The first key slot under the map, the first that is also a query, one past the last."""
    # A map on the end of a sequence shorter than it begins before the first token.
    begin, end = max(span.origin, span.start), min(span.origin + length, span.stop)
    return begin, max(begin, span.first), end


def sliced_term(
    attention_map: AttentionMap, span: TokenSpan, shape: CallShape, value: Tensor
) -> Tensor:
    """tile(Attn_s)·V of ``queries_under_map``, (B, ·, H, D) in fp32, from values (B, G, K, D)."""
    begin, row, end = _slots_under_map(attention_map.length, span)
    value = wide(value[:, :, begin:end])
    low, high = begin - span.origin, end - span.origin  # map columns
    # Without a cache every token under the map is a query, so all rows are needed.
    if attention_map.stays_low_rank and row == begin and (low == 0 or high == attention_map.length):
        align: Align = "start" if low == 0 else "end"
        return attention_map.product(value, shape, align).transpose(1, 2)
    # Behind a cache the queries are the last tokens, and only their rows are needed.
    if attention_map.stays_low_rank or (row > begin and not attention_map.has_softmax):
        chosen = torch.arange(row - span.origin, high, device=value.device)
        map_ = attention_map.masked_rows(chosen, shape)[..., low:high]
    else:
        map_ = attention_map.dense()
        if attention_map.ablation == "softmax_then_cut":
            map_ = attention_map.masked(map_, shape, None)[:, low:high, low:high]
        else:  # cut before the softmax, which must run only over the tokens of this sequence
            map_ = attention_map.masked(map_[:, low:high, low:high], shape, None)
        map_ = map_[:, row - begin :]
    return apply_map(map_, value, shape.heads, shape.matmul).transpose(1, 2)
