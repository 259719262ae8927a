"""The term where samples sit differently: packed, cached behind pads, or under a map of full rank.

Also where batches go on beyond the map behind pads, and in compiled graphs, which serve any length.
The values of each sequence are gathered into map coordinates, multiplied, and the rows put back.

Shapes: B batch, P sequences packed into a row, H query heads, G key/value heads, S map heads,
T queries, K key slots, N map length, R rank, D head width.
"""

import torch
from torch import Tensor

from lorada.attention.attention_map import (
    AttentionMap,
    View,
    map_rows,
    masked,
    product,
    rows_of_map,
)
from lorada.attention.positions import TokenTable
from lorada.functional.maps import apply_map


def gathered_term(
    attention_map: AttentionMap, table: TokenTable, view: View, value: Tensor
) -> Tensor:
    """tile(Attn_s)·V of every query, (B, T, H, D) in fp32."""
    length, packed = attention_map.length, table.sequences
    batch = value.shape[0]
    rows, inside = table.query_rows(length)
    rows, inside = rows.expand(batch, -1), inside.expand(batch, -1)[..., None, None]
    if packed > 1:
        rows = owned(table, rows, length)
    # Few queries (decoding): only their rows of the map are multiplied. A compiled graph serves
    # batches of any length, so it does that for single queries alone.
    least = 2 if torch.compiler.is_compiling() else length
    few = view.queries < least if packed == 1 else view.queries <= packed
    if few:
        values, real = _values_by_place(table, value, length)
        return _few_rows(attention_map, values, rows, view, real, packed) * inside
    term = term_by_place(attention_map, table, view, value)
    return term.gather(1, rows[..., None, None].expand(-1, -1, *term.shape[2:])) * inside


def term_by_place(
    attention_map: AttentionMap, table: TokenTable, view: View, value: Tensor
) -> Tensor:
    """tile(Attn_s)·V of every row of every map, (B, P·N, H, D) in fp32, with a token or not."""
    values, real = _values_by_place(table, value, attention_map.length)
    if attention_map.stays_low_rank:
        # In map coordinates the values begin where the map does, whatever its alignment.
        term = product(attention_map, values, view, "start")
    else:
        map_ = masked(attention_map, attention_map.dense(), view, real)
        term = apply_map(map_, values, view.heads, view.matmul)
    # (B·P, H, N, D) → (B, P·N, H, D)
    shape = value.shape[0], table.sequences * attention_map.length, view.heads, value.shape[-1]
    return term.transpose(1, 2).reshape(shape)


def _values_by_place(table: TokenTable, value: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Values (B·P, G, N, D) in the order of the map, in fp32, and which (B·P, N) are there."""
    batch, groups, _, width = value.shape
    slots, real = (part.expand(batch, -1) for part in table.key_slots(length))
    index = slots[:, None, :, None].expand(-1, groups, -1, width)
    values = value.gather(2, index).float() * real[:, None, :, None]
    if table.sequences > 1:
        # Each sequence becomes a sample of its own.
        values = values.view(batch, groups, table.sequences, length, width).transpose(1, 2)
        values = values.reshape(batch * table.sequences, groups, length, width)
        real = real.reshape(-1, length)
    return values, real


def owned(table: TokenTable, rows: Tensor, length: int) -> Tensor:
    """Map rows (B, T) counted through the maps of all sequences that are packed into a row."""
    assert table.row_owner is not None
    return rows + table.row_owner.expand_as(rows) * length


def _few_rows(
    attention_map: AttentionMap, value: Tensor, rows: Tensor, view: View, real: Tensor, packed: int
) -> Tensor:
    """Chosen rows (B, T) of the product of the map with each sequence's values, (B, T, H, D)."""
    if packed == 1 and attention_map.stays_low_rank:
        map_ = rows_of_map(attention_map, rows, view).transpose(0, 1)
        return apply_map(map_, value, view.heads, view.matmul).transpose(1, 2)
    map_ = masked(attention_map, attention_map.dense(), view, real)
    if packed == 1:
        return apply_map(map_rows(map_, rows), value, view.heads, view.matmul).transpose(1, 2)
    # Every query meets the values of its own sequence.
    batch, queries = rows.shape
    length = map_.shape[-1]
    sequence = rows // length + torch.arange(batch, device=rows.device)[:, None] * packed
    own = sequence.flatten()
    map_ = map_.expand(value.shape[0], -1, -1, -1)[own] if map_.dim() == 4 else map_
    picked = map_rows(map_, (rows % length).view(-1, 1))
    return apply_map(picked, value[own], view.heads, view.matmul).view(
        batch, queries, view.heads, -1
    )
