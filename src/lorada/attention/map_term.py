"""``map_term``: the term tile(Attn_s)·V of one attention call, by the cheapest of four routes.

1. Sliced: without padding the tokens under the map are a slice of the values.
2. In place: if every token is also a query and few lie beyond the map, each token gets its row of
   W_a and its column of W_b. The values stay where they are.
3. Summed: where each row of a padded batch decodes one token on a CPU, its values are summed where
   they lie (``pairs.py``).
4. Gathered: in all other cases (packed rows, padded caches, full-rank maps, long padded batches,
   compiled graphs) the values are gathered into the order of the map, and its rows scattered back.

Where a docstring says fp32, values of fp64 have a term of fp64.

Shapes: B batch, P sequences packed into a row, H query heads, G key/value heads, S map heads,
T queries, K key slots, N map length, R rank, D head width.
"""

import torch
from torch import Tensor, nn

from lorada.attention.attention_map import AttentionMap, for_samples, take_rows
from lorada.attention.call import CallShape
from lorada.attention.packed_term import packed_term
from lorada.attention.pairs import pairs_of_table
from lorada.attention.positions import TokenPositions, TokenSpan, TokenTable, can_be_read
from lorada.attention.sliced_term import queries_under_map, sliced_term
from lorada.functional.precision import no_autocast, wide
from lorada.functional.product import apply_map, factors_product


def map_term(
    attention_map: AttentionMap, positions: TokenPositions, shape: CallShape, value: Tensor
) -> Tensor | None:
    """tile(Attn_s)·V of every query, (B, T, H, D) in fp32; None if the map reaches no query."""
    reached = reached_queries(attention_map.length, positions, shape)
    if reached is None:
        return None
    term = term_of_reached(attention_map, positions, shape, value)
    return nn.functional.pad(term, (0, 0, 0, 0, reached.start, shape.queries - reached.stop))


def reached_queries(length: int, positions: TokenPositions, shape: CallShape) -> slice | None:
    """Which queries a map of this length may reach, by shapes alone; None if it reaches none."""
    # The numbers of a table are on the device, and reading them would make the host wait.
    if isinstance(positions, TokenTable):
        return slice(0, shape.queries)
    return queries_under_map(length, positions)


def lies_past(length: int, positions: TokenPositions) -> bool:
    """Whether no query is under a map of this length, where that can be read."""
    if not isinstance(positions, TokenTable) or not can_be_read(positions.rows):
        return False
    return not positions.reaches(length)


def term_of_reached(
    attention_map: AttentionMap, positions: TokenPositions, shape: CallShape, value: Tensor
) -> Tensor:
    """tile(Attn_s)·V of ``reached_queries``, (B, ·, H, D) in fp32."""
    with no_autocast(value.device):
        # The length of a slice depends on the batch, and a compiled graph must serve every batch.
        compiling = torch.compiler.is_compiling()
        if isinstance(positions, TokenSpan) and not compiling:
            term = sliced_term(attention_map, positions, shape, value)
        else:
            table = positions.table(shape.queries, shape.keys, value.device)
            if not compiling and fits_in_place(attention_map, table, shape):
                term = _term_in_place(attention_map, table, shape, value)
            elif (pairs := pairs_of_table(attention_map, table, shape, value)) is not None:
                term = pairs.term(attention_map, shape, value)
            else:
                term = _gathered_term(attention_map, table, shape, value)
        return for_samples(term, attention_map.samples, term.shape[0])


def fits_in_place(attention_map: AttentionMap, table: TokenTable, shape: CallShape) -> bool:
    """Whether the route in place is correct, and cheaper although it multiplies every token."""
    length = attention_map.length
    # A packed row has a map for each sequence, and one product would mix them. T = K does not mean
    # that every token is also a query: behind a padded cache the queries may be other tokens.
    if table.rows is not table.columns or table.sequences > 1 or not attention_map.stays_low_rank:
        return False
    # With more tokens beyond the map, multiplying all tokens costs more than moving the values.
    # Under a window narrower than the map, this route would make a (K, K) map for each sample.
    return 2 * shape.keys <= 3 * length and (shape.window is None or shape.window >= length)


def _term_in_place(
    attention_map: AttentionMap, table: TokenTable, shape: CallShape, value: Tensor
) -> Tensor:
    w_a, w_b = attention_map.scaled_factors()
    left = _factor_of_tokens(w_a, table.rows).expand(len(value), -1, -1, -1)
    right = _factor_of_tokens(w_b.mT, table.columns).expand(len(value), -1, -1, -1).mT
    value, heads = wide(value), shape.heads
    term = factors_product(left, right, value, heads, causal=shape.causal, matmul=shape.matmul)
    return term.transpose(1, 2)


def _factor_of_tokens(factor: Tensor, numbers: Tensor) -> Tensor:
    """The vectors (B, S, T, R) of a factor (S, N, R) that belong to map rows or columns (B, T).

    Padding and tokens beyond the map get zeros, so the term has nothing for them or from them.
    """
    length = factor.shape[1]
    # One vector of zeros is appended, and all numbers outside the map are sent to it.
    inside = (numbers >= 0) & (numbers < length)
    padded = nn.functional.pad(factor, (0, 0, 0, 1))
    return padded[:, torch.where(inside, numbers, length)].transpose(0, 1)


def _gathered_term(
    attention_map: AttentionMap, table: TokenTable, shape: CallShape, value: Tensor
) -> Tensor:
    length, packed = attention_map.length, table.sequences
    batch = value.shape[0]
    if packed > 1:
        found = packed_term(attention_map, table, shape, value)
        if found is not None:
            return found
    rows, inside = table.query_rows(length)
    # A table has one row if all samples are alike.
    rows, inside = rows.expand(batch, -1), inside.expand(batch, -1)[..., None, None]
    if packed > 1:
        rows = rows_of_all_maps(table, rows, length)
    # For few queries, as in decoding, only their rows of the map are multiplied. A compiled graph
    # must serve any number of queries, so there only one query counts as few. An exported graph
    # with a cache reads prompts and single tokens alike, and most calls are of single tokens.
    least = 2 if torch.compiler.is_compiling() else length
    exported = torch.compiler.is_exporting() and table.rows is not table.columns
    if packed == 1 and (exported or shape.queries < least):
        return _term_of_rows(attention_map, table, rows, shape, value) * inside
    # From the order of the map rows to the order of the queries.
    term = term_in_map_order(attention_map, table, shape, value)
    return term.gather(1, rows[..., None, None].expand(-1, -1, *term.shape[2:])) * inside


def term_in_map_order(
    attention_map: AttentionMap, table: TokenTable, shape: CallShape, value: Tensor
) -> Tensor:
    """tile(Attn_s)·V of every row of every map, with a token or without, (B, P·N, H, D) in fp32."""
    values, real = _values_in_map_order(table, value, attention_map.length)
    if attention_map.stays_low_rank:
        # Gathered values start at map column 0, also for a map on the last tokens.
        term = attention_map.product(values, shape, "start")
    else:
        map_ = attention_map.masked(attention_map.dense(), shape, real)
        term = apply_map(map_, values, shape.heads, shape.matmul)
    # (B·P, H, N, D) → (B, P·N, H, D)
    rows = table.sequences * attention_map.length
    return term.transpose(1, 2).reshape(value.shape[0], rows, shape.heads, value.shape[-1])


def _values_in_map_order(table: TokenTable, value: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Values (B·P, G, N, D) of each map column in fp32, and which columns (B·P, N) have one."""
    batch, groups, _, width = value.shape
    slots, real = (part.expand(batch, -1) for part in table.key_slots(length))
    # A column without a token reads slot 0, and is then multiplied by zero.
    index = slots[:, None, :, None].expand(-1, groups, -1, width)
    values = wide(value.gather(2, index)) * real[:, None, :, None]
    if table.sequences > 1:
        # Each packed sequence becomes one sample.
        values = values.view(batch, groups, table.sequences, length, width).transpose(1, 2)
        values = values.reshape(batch * table.sequences, groups, length, width)
        real = real.reshape(-1, length)
    return values, real


def rows_of_all_maps(table: TokenTable, rows: Tensor, length: int) -> Tensor:
    """Map rows (B, T) numbered from 0 to P·N-1 over the maps of all packed sequences."""
    assert table.row_owner is not None
    return rows + table.row_owner.expand_as(rows) * length


def _term_of_rows(
    attention_map: AttentionMap, table: TokenTable, rows: Tensor, shape: CallShape, value: Tensor
) -> Tensor:
    """tile(Attn_s)·V of some rows (B, T) of the map, (B, T, H, D) in fp32."""
    values, real = _values_in_map_order(table, value, attention_map.length)
    if not attention_map.has_softmax:
        map_ = attention_map.masked_rows(rows, shape).transpose(0, 1)
    else:
        map_ = take_rows(attention_map.masked(attention_map.dense(), shape, real), rows)
    return apply_map(map_, values, shape.heads, shape.matmul).transpose(1, 2)
