"""The term of a call in which sequences are packed into a row, by one row of the map a query.

No number of the positions is read, so that graphs and accelerators can use it.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, M map columns, D head
width, C queries that are computed.
"""

from torch import Tensor

from lorada.attention.attention_map import AttentionMap, take_rows
from lorada.attention.call import CallShape
from lorada.attention.packed_positions import PackedQueries, all_queries
from lorada.attention.positions import TokenTable
from lorada.functional.precision import wide
from lorada.functional.product import apply_map


def packed_term(
    attention_map: AttentionMap, table: TokenTable, shape: CallShape, value: Tensor
) -> Tensor | None:
    """tile(Attn_s)·V of every query of packed sequences, (B, T, H, D) in fp32.

    None if this would be slower than to compute the whole map of each sequence.
    """
    batch, groups = value.shape[:2]
    if shape.queries > table.sequences:
        return None
    queries = all_queries(table, attention_map.length, shape, batch, groups)
    return term_of_rows(attention_map, queries, shape, value)


def term_of_rows(
    attention_map: AttentionMap, found: PackedQueries, shape: CallShape, value: Tensor
) -> Tensor:
    """The term (B, T, H, D) with zeros for other queries. Each query becomes a sample."""
    batch, _, _, width = value.shape
    # One copy of whole rows: an index for each dimension would take ten times as long.
    values = value.transpose(1, 2).reshape(-1, width).index_select(0, found.places.flatten())
    values = wide(values.view(*found.places.shape, width))  # (C, G, M, D)
    if attention_map.has_softmax:
        map_ = attention_map.masked(attention_map.dense(), shape, found.real)
        map_ = take_rows(map_, found.rows[:, None])[..., : values.shape[2]]
        map_ = map_ * found.used[:, None, None]
    else:
        map_ = attention_map.rows(found.rows, values.shape[2]).transpose(0, 1)  # (C, S, M)
        map_ = (map_ * found.seen[:, None])[:, :, None]
    term = apply_map(map_, values, shape.heads, shape.matmul)[:, :, 0]
    if len(term) < batch * shape.queries:
        whole = term.new_zeros(batch * shape.queries, *term.shape[1:])
        term = whole.index_copy(0, found.chosen, term)
    return term.view(batch, shape.queries, *term.shape[1:])
