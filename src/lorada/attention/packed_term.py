"""The term of a call in which sequences are packed into a row behind a cache.

Continuous batching makes such calls: some sequences bring a whole prompt, the others one token, and
each has a map of its own.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, N map length, D head
width, C queries that are computed.
"""

import torch
from torch import Tensor, nn

from lorada.attention.attention_map import AttentionMap, take_rows
from lorada.attention.call import CallShape
from lorada.attention.packed_positions import PackedQueries, all_queries, pairs_of, read_parts
from lorada.attention.positions import TokenTable
from lorada.attention.sliced_term import queries_under_map, sliced_term
from lorada.functional.product import apply_map


def packed_term(
    attention_map: AttentionMap, table: TokenTable, shape: CallShape, value: Tensor
) -> Tensor | None:
    """tile(Attn_s)·V of every query of packed sequences, (B, T, H, D) in fp32.

    None if this would be slower than to compute the whole map of each sequence.
    """
    (batch, groups), length = value.shape[:2], attention_map.length
    if batch == 1 and table.rows is not table.columns and can_be_read(table.rows):
        parts = read_parts(table, length, shape, groups)
        if parts is not None:
            alone, spans = parts
            term = _term_of_pairs(attention_map, table, alone, shape, value)
            for first, span in spans:
                reached = queries_under_map(length, span)
                if reached is not None:
                    part = sliced_term(attention_map, span, shape, value)
                    term[:, first + reached.start : first + reached.stop] = part
            return term
    if shape.queries > table.sequences:
        return None
    queries = all_queries(table, length, shape, batch, groups)
    return _term_of_rows(attention_map, queries, shape, value)


def _term_of_pairs(
    attention_map: AttentionMap,
    table: TokenTable,
    found: PackedQueries,
    shape: CallShape,
    value: Tensor,
) -> Tensor:
    """The term of queries from ``read_parts``, (1, T, H, D) with zeros for other queries.

    Each head of a query gets a sum of values, weighted by entries of the map: an ``embedding_bag``,
    which reads the values where they are. A copy of them would take longer than all else.
    """
    if attention_map.has_softmax or value.element_size() < 4:  # which has to be copied as fp32
        return _term_of_rows(attention_map, found, shape, value)
    baked = attention_map.baked
    map_ = attention_map.rows(found.rows, found.places.shape[2]) if baked is None else baked
    pairs = pairs_of(table, found, attention_map.length, shape, len(map_), baked is not None)
    values = value.transpose(1, 2).reshape(-1, value.shape[-1]).float()
    weights = map_.reshape(-1).index_select(0, pairs.entries)
    term = nn.functional.embedding_bag(
        pairs.places, values, pairs.begins, mode="sum", per_sample_weights=weights,
        include_last_offset=True,
    )  # fmt: skip
    return term.view(1, shape.queries, shape.heads, -1)


def _term_of_rows(
    attention_map: AttentionMap, found: PackedQueries, shape: CallShape, value: Tensor
) -> Tensor:
    """The term (B, T, H, D) with zeros for other queries. Each query becomes a sample."""
    batch, _, _, width = value.shape
    # One copy of whole rows: an index for each dimension would take ten times as long.
    values = value.transpose(1, 2).reshape(-1, width).index_select(0, found.places.flatten())
    values = values.view(*found.places.shape, width).float()  # (C, G, M, D)
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


def can_be_read(numbers: Tensor) -> bool:
    """Whether numbers are on the CPU, where reading them waits for nothing.

    Not where a graph is recorded, of gradients or for calls with other numbers.
    """
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._is_tracing()
    if recorded or torch._C._are_functorch_transforms_active():
        return False
    return type(numbers) is Tensor and numbers.is_cpu
