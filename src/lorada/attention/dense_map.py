"""A map laid out on the attention map itself, for ¬N, whose map joins the scores, and to look at.

Shapes: B batch, P sequences packed into a row, H query heads, G key/value heads, S map heads,
T queries, K key slots, N map length, R rank, D head width.
"""

import torch
from torch import Tensor

from lorada.attention.attention_map import AttentionMap, View, map_rows, masked
from lorada.attention.gathered import owned
from lorada.attention.positions import Places, TokenTable


def spread_map(attention_map: AttentionMap, places: Places, view: View) -> Tensor:
    """A map laid out on the (B, H, T, K) attention map it is added to; zero where it is not."""
    with torch.autocast(attention_map.factors[0].device.type, enabled=False):
        return _spread(attention_map, places, view)


def _spread(attention_map: AttentionMap, places: Places, view: View) -> Tensor:
    length = attention_map.length
    table = places.table(view.queries, view.keys, attention_map.factors[0].device)
    _, real = table.key_slots(length)
    map_ = masked(attention_map, attention_map.dense(), view, real.reshape(-1, length))
    rows, _ = table.query_rows(length)
    batch = max(rows.shape[0], table.columns.shape[0])
    rows = rows.expand(batch, -1)
    if map_.dim() == 4 and table.sequences > 1:
        # (B·P, S, N, N) → (B, S, P·N, N): the maps of a row's sequences, one above the other.
        map_ = map_.view(-1, table.sequences, *map_.shape[1:]).transpose(1, 2).flatten(2, 3)
        rows = owned(table, rows, length)
    picked = map_rows(map_, rows)
    columns = table.columns.expand(batch, -1)
    index = columns.clamp(0, length - 1)[:, None, None].expand(-1, *picked.shape[1:3], -1)
    pairs = reached_pairs(table, length)[:, None]
    return (picked.gather(-1, index) * pairs).repeat(1, view.heads // picked.shape[1], 1, 1)


def reached_pairs(table: TokenTable, length: int) -> Tensor:
    """(B, T, K) booleans: the pairs of real tokens that have an entry in their sequence's map."""
    _, rows = table.query_rows(length)
    columns = (table.columns >= 0) & (table.columns < length)
    pairs = rows[:, :, None] & columns[:, None, :]
    if table.row_owner is None or table.column_owner is None:
        return pairs
    return pairs & (table.row_owner[:, :, None] == table.column_owner[:, None, :])
