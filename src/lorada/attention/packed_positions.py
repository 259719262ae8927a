"""Which queries of packed sequences are computed one by one, and which as a whole sequence.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, N map
length, C queries that are computed, P pairs of a query head and a map column that it sees.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lorada.attention.call import CallShape
from lorada.attention.positions import NO_TOKEN, TokenSpan, TokenTable
from lorada.functional.maps import visible_pairs

# The number of a sequence's first query, and where its tokens lie.
Spans = tuple[tuple[int, TokenSpan], ...]


@dataclass(frozen=True)
class PackedQueries:
    """C of the B·T queries of a call, each with the tokens of its own sequence.

    Attributes:
        chosen: (C,) which they are, in ascending order.
        rows: (C,) the map row of each, clamped to 0 … N-1.
        real: (C, N) booleans: whether a map column of its sequence has a token.
        places: (C, G, M) where the values of the first M columns are, counted over all samples,
            slots and heads, in this order. Behind them no column has a token, if that could be
            read; otherwise M is N.
        used: (C, M) booleans: the columns with a token, if the map reaches the query.
        seen: (C, M) booleans: of these, the columns that the query sees.
    """

    chosen: Tensor
    rows: Tensor
    real: Tensor
    places: Tensor
    used: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Pairs:
    """Every pair of a query head and a map column that it sees, by query, head and column.

    Attributes:
        places: (P,) where the value of the column is, counted as in ``PackedQueries.places``.
        entries: (P,) where the entry of the map is, in the flat map or in its flat rows.
        begins: (T·H + 1,) the number of the first pair of each head of each query of the call, and
            P at the end.
    """

    places: Tensor
    entries: Tensor
    begins: Tensor


def pairs_of(
    table: TokenTable,
    found: PackedQueries,
    length: int,
    shape: CallShape,
    maps: int,
    finished: bool,
) -> Pairs:
    """The pairs of queries from ``read_parts`` of the same table and sizes.

    Args:
        table: where the tokens lie.
        found: the queries.
        length: N.
        shape: sizes of the call.
        maps: S.
        finished: whether the entries are read from the whole map (S, N, N) instead of the first M
            columns of its rows (S, C, M).
    """
    count, groups, columns = found.places.shape

    def find() -> Pairs:
        seen = found.seen[:, None].expand(-1, shape.heads, -1)
        query, head, column = seen.nonzero().unbind(1)
        places = found.places[query, head // (shape.heads // groups), column]
        # The map of a head, its row, and the column, counted through a flat tensor.
        first = (
            head % maps * length + found.rows[query] if finished else head % maps * count + query
        )
        entries = first * (length if finished else columns) + column
        sizes = torch.zeros(shape.queries, shape.heads, dtype=torch.long, device=places.device)
        sizes[found.chosen] = found.seen.sum(1, keepdim=True)
        begins = nn.functional.pad(sizes.flatten().cumsum(0), (1, 0))
        return Pairs(places, entries, begins)

    key = length, shape.causal, shape.window, groups, shape.heads, maps, finished
    return table.once(find, "pairs", *key)


def all_queries(
    table: TokenTable, length: int, shape: CallShape, batch: int, groups: int
) -> PackedQueries:
    """Every query of the call; nothing is read."""

    def find() -> PackedQueries:
        chosen = torch.arange(batch * shape.queries, device=table.rows.device)
        return _queries(table, length, shape, batch, groups, chosen)

    return table.once(find, "all queries", length, shape.causal, shape.window, batch, groups)


def read_parts(
    table: TokenTable, length: int, shape: CallShape, groups: int
) -> tuple[PackedQueries, Spans] | None:
    """The queries whose sequence has no other query here, and where the other sequences lie.

    The table is read, and has one row. Queries that no map reaches are left out. None if the tokens
    of a sequence with several queries do not lie side by side.
    """
    key = "parts", length, shape.causal, shape.window, groups
    return table.once(lambda: _parts(table, length, shape, groups), *key)


def _parts(
    table: TokenTable, length: int, shape: CallShape, groups: int
) -> tuple[PackedQueries, Spans] | None:
    assert table.row_owner is not None
    owners, rows = table.row_owner[0], table.rows[0]
    counts = torch.bincount(owners[rows != NO_TOKEN], minlength=table.sequences)
    alone = (counts[owners] == 1) & (rows >= 0) & (rows < length)
    spans = []
    for sequence in (counts > 1).nonzero()[:, 0].tolist():
        found = _span(table, sequence)
        if found is None:
            return None
        spans.append(found)
    queries = _queries(table, length, shape, 1, groups, alone.nonzero()[:, 0])
    used = queries.used.any(0).nonzero()
    width = int(used.max()) + 1 if len(used) else 0
    cut = {name: getattr(queries, name)[..., :width] for name in ("places", "used", "seen")}
    return replace(queries, **cut), tuple(spans)


def _span(table: TokenTable, sequence: int) -> tuple[int, TokenSpan] | None:
    """The first query of a sequence and where its tokens lie; None if they are not side by side."""
    assert table.row_owner is not None
    assert table.column_owner is not None
    query, first_row, whole = _run(table.rows[0], table.row_owner[0] == sequence)
    slot, first_column, dense = _run(table.columns[0], table.column_owner[0] == sequence)
    if whole is None or dense is None:
        return None
    origin = slot - first_column
    return query, TokenSpan(slot, slot + dense, origin, origin + first_row)


def _run(numbers: Tensor, mine: Tensor) -> tuple[int, int, int | None]:
    """Where a sequence begins among rows or columns, its number there, and how many it has.

    The last is None if they are not side by side and consecutive.
    """
    places = (mine & (numbers != NO_TOKEN)).nonzero()[:, 0]
    count, begin = len(places), int(places[0])
    first = int(numbers[begin])
    steps = torch.arange(count, device=numbers.device)
    consecutive = torch.equal(numbers[begin : begin + count], first + steps)
    return begin, first, count if consecutive and torch.equal(places, begin + steps) else None


def _queries(
    table: TokenTable, length: int, shape: CallShape, batch: int, groups: int, chosen: Tensor
) -> PackedQueries:
    assert table.row_owner is not None
    rows, inside = (part.expand(batch, -1).flatten()[chosen] for part in table.query_rows(length))
    owner = table.row_owner.expand(batch, -1).flatten()[chosen]
    sample = chosen // shape.queries
    slots, real = (
        part.expand(batch, -1).reshape(batch, -1, length)[sample, owner]
        for part in table.key_slots(length)
    )
    used = real & inside[:, None]
    visible = visible_pairs(rows, length, shape.causal, shape.window)
    seen = used if visible is None else used & visible
    slots = slots + sample[:, None] * shape.keys
    places = slots[:, None] * groups + torch.arange(groups, device=slots.device)[:, None]
    return PackedQueries(chosen, rows, real, places, used, seen)
