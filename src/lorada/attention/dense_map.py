"""A map laid out on a whole (T, K) attention map, entry by entry.

The term never needs it. The ablation ¬N does, which adds the map to the scores before the softmax,
and so does ``explain``, which shows it.

Shapes: B batch, P sequences packed into a row, H query heads, S map heads, T queries, K key slots,
N map length.
"""

import torch
from torch import Tensor

from lorada.attention.attention_map import AttentionMap, take_rows
from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.positions import TokenTable
from lorada.functional.precision import no_autocast

NEEDS_MASK = (
    "the no_negative ablation needs a (B, 1, T, K) mask: use attn_implementation='sdpa' or 'eager'"
)


def expand_map(attention_map: AttentionMap, table: TokenTable, shape: CallShape) -> Tensor:
    """tile(Attn_s) in the shape of the attention map, (B or 1, H, T, K), with zeros beyond it."""
    device = attention_map.factors[0].device
    length = attention_map.length
    real = table.key_slots(length).real.reshape(-1, length)
    with no_autocast(device):
        map_ = attention_map.masked(attention_map.dense(), shape, real)
    rows, _ = table.query_rows(length)
    batch = max(rows.shape[0], table.columns.shape[0])
    rows = rows.expand(batch, -1)
    if map_.dim() == 4 and table.row_owner is not None:
        # (B·P, S, N, N) → (B, S, P·N, N): the maps of a row's sequences are stacked.
        map_ = map_.view(-1, table.sequences, *map_.shape[1:]).transpose(1, 2).flatten(2, 3)
        rows = rows + table.row_owner * length
    # First the map row of every query, then from it the map column of every key.
    picked = take_rows(map_, rows)
    columns = table.columns.expand(batch, -1)
    index = columns.clamp(0, length - 1)[:, None, None].expand(-1, *picked.shape[1:3], -1)
    pairs = covered_pairs(table, length)[:, None]
    # Rows and columns outside of the map were clamped into it: their entries become zero here.
    return (picked.gather(-1, index) * pairs).repeat(1, shape.heads // picked.shape[1], 1, 1)


def covered_pairs(table: TokenTable, length: int) -> Tensor:
    """(B, T, K) booleans: pairs of query and key with an entry in the map of their sequence."""
    _, rows = table.query_rows(length)
    columns = (table.columns >= 0) & (table.columns < length)
    pairs = rows[:, :, None] & columns[:, None, :]
    if table.row_owner is None or table.column_owner is None:
        return pairs
    return pairs & (table.row_owner[:, :, None] == table.column_owner[:, None, :])


def mask_with_map(
    mask: Tensor | None, attention_map: AttentionMap, positions: TokenTable, call: AttentionCall
) -> Tensor:
    """The additive mask (B, H, T, K) that adds a map to the scores before the softmax (¬N).

    ``mask`` is the mask without this map; it may hold another map.
    """
    if call.kernel in ("flash", "flex"):
        raise ValueError(NEEDS_MASK)
    # The kernel adds a mask to the scores, so a map inside the mask is a map before the softmax.
    dtype, keys = call.value.dtype, call.shape.keys
    full = expand_map(attention_map.for_values(call.value), positions, call.shape).to(dtype)
    hidden = torch.finfo(dtype).min
    if mask is None:
        if not call.shape.causal or call.shape.queries == 1:
            return full
        # A kernel that is given a mask does not apply its own causal mask.
        rows = torch.arange(call.shape.queries, device=full.device)
        return torch.where(rows[:, None] >= torch.arange(keys, device=full.device), full, hidden)
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise ValueError(NEEDS_MASK)
    mask = mask[..., :keys]  # the mask of a static cache may be longer
    return torch.where(mask, full, hidden) if mask.dtype == torch.bool else mask + full
