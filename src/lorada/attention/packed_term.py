"""The term of a call in which sequences are packed into a row behind a cache.

Continuous batching makes such calls: some sequences bring a whole prompt, the others one token, and
each has a map of its own.

Shapes: B batch, H query heads, G key/value heads, T queries, D head width.
"""

from torch import Tensor

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import CallShape
from lorada.attention.packed_positions import all_queries
from lorada.attention.packed_step import packed_step, term_of_rows
from lorada.attention.positions import TokenTable


def packed_term(
    attention_map: AttentionMap, table: TokenTable, shape: CallShape, value: Tensor
) -> Tensor | None:
    """tile(Attn_s)·V of every query of packed sequences, (B, T, H, D) in fp32.

    None if this would be slower than to compute the whole map of each sequence.
    """
    step = packed_step(attention_map, table, shape, value)
    if step is not None:
        return step.term(attention_map, value)
    batch, groups = value.shape[:2]
    if shape.queries > table.sequences:
        return None
    queries = all_queries(table, attention_map.length, shape, batch, groups)
    return term_of_rows(attention_map, queries, shape, value)
