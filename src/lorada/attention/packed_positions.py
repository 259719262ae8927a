"""Where sequences lie that are packed into a row, and which values their queries need.

The lengths of the sequences say where each lies. Where they may be read, the tokens of a sequence
are a slice; otherwise a table of all tokens is used (``positions.py``).

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, N map
length, C queries that are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.pairs import Layout, Pairs
from lorada.attention.positions import TokenSpan, TokenTable
from lorada.functional.maps import visible_pairs


@dataclass(frozen=True)
class PackedSequence:
    """One sequence of a row.

    Attributes:
        queries: which queries of the call it has. They are its last tokens.
        span: where its tokens lie.
    """

    queries: slice
    span: TokenSpan

    @property
    def row(self) -> int:
        """The map row of its first query."""
        return self.span.first - self.span.origin

    @property
    def is_alone(self) -> bool:
        """Whether it has one query."""
        return bool(self.queries.stop - self.queries.start == 1)


@dataclass(frozen=True)
class PackedQueries:
    """C of the B·T queries of a call, each with the tokens of its own sequence.

    Attributes:
        chosen: (C,) which they are, in ascending order.
        rows: (C,) the map row of each, clamped to 0 … N-1.
        real: (C, N) booleans: whether a map column of its sequence has a token.
        places: (C, G, M) where the values of the first M columns are, counted over all samples,
            slots and heads, in this order. No later column has a token; M is N if nothing is read.
        used: (C, M) booleans: the columns with a token, if the map reaches the query.
        seen: (C, M) booleans: of these, the columns that the query sees.
    """

    chosen: Tensor
    rows: Tensor
    real: Tensor
    places: Tensor
    used: Tensor
    seen: Tensor


def packed_sequences(call: AttentionCall, end: int | None) -> list[PackedSequence]:
    """The sequences of a call that gives their lengths, which are read.

    Args:
        call: the call; ``locate`` says the same of it in tensors.
        end: N if the map lies on the last N tokens of each sequence (Eq. 16); None if it lies on
            the first.
    """
    lengths, position_ids = call.cu_seq_lens, call.position_ids
    assert lengths is not None
    by_query, by_key = (each.tolist() for each in lengths)
    # A sliding cache may have dropped the first keys of a sequence: its last position counts them.
    positions = None
    if call.shape.window is not None and position_ids is not None:
        positions = position_ids[0].tolist()
    found = []
    for (first, behind), (start, stop) in zip(pairwise(by_query), pairwise(by_key), strict=True):
        if first == behind:
            continue
        origin = start if positions is None else stop - 1 - positions[behind - 1]
        origin = origin if end is None else stop - end
        span = TokenSpan(start, stop, origin, stop - (behind - first))
        found.append(PackedSequence(slice(first, behind), span))
    return found


def pairs_of(
    alone: Sequence[PackedSequence],
    length: int,
    shape: CallShape,
    groups: int,
    maps: int,
    finished: bool,
    layout: Layout,
) -> Pairs:
    """The pairs of sequences with one query each, which the map reaches.

    Args:
        alone: the sequences.
        length: N.
        shape: sizes of the call.
        groups: G.
        maps: S.
        finished: whether the entries are read from the whole map (S, N, N) instead of the first
            columns of its rows, (S, C, columns).
        layout: how the values lie.
    """
    # A query is the last token of its sequence, so it sees the columns from ``low`` to its own.
    window = length if shape.window is None else shape.window
    lows = [max(0, s.span.start - s.span.origin, s.row + 1 - window) for s in alone]
    rows = [s.row for s in alone]
    # numpy, since small operations of torch take several times as long.
    row, low = np.array(rows)[:, None], np.array(lows)[:, None]
    slot = np.array([s.span.origin for s in alone])[:, None] + low
    head, columns = np.arange(shape.heads), max(rows) + 1
    first_place = slot * layout.slot + head // (shape.heads // groups) * layout.head  # (C, H)
    # The map of a head, its row, and the column, counted through a flat tensor.
    if finished:
        first_entry = (head % maps * length + row) * length + low
    else:
        first_entry = (head % maps * len(alone) + np.arange(len(alone))[:, None]) * columns + low
    sizes = np.zeros(shape.queries, dtype=np.int64)
    sizes[[s.queries.start for s in alone]] = row[:, 0] + 1 - low[:, 0]
    begins = np.concatenate([[0], sizes.repeat(shape.heads).cumsum()])
    # The pairs of a query head are consecutive: each counts on from the first of them.
    size = (row + 1 - low).repeat(shape.heads)
    owner, first = np.arange(len(size)).repeat(size), size.cumsum() - size
    number = np.arange(len(owner))
    places = number * layout.slot + (first_place.ravel() - first * layout.slot)[owner]
    entries = number + (first_entry.ravel() - first)[owner]
    tensor = torch.from_numpy
    return Pairs(
        layout, columns, tensor(row[:, 0]), tensor(places), tensor(entries), tensor(begins)
    )


def queries_alone(
    alone: Sequence[PackedSequence], length: int, shape: CallShape, groups: int
) -> PackedQueries:
    """The queries of sequences with one query each, which the map reaches."""
    spans = [(s.queries.start, s.row, s.span.start, s.span.stop, s.span.origin) for s in alone]
    chosen, rows, start, stop, origin = torch.tensor(spans).unbind(1)
    slots = origin[:, None] + torch.arange(length)
    real = (slots >= start[:, None]) & (slots < stop[:, None])
    # A query is the last token of its sequence.
    columns = max(s.row for s in alone) + 1
    used = real[:, :columns]
    return _queries(chosen, rows, slots[:, :columns].where(used, 0), real, used, shape, groups)


def all_queries(
    table: TokenTable, length: int, shape: CallShape, batch: int, groups: int
) -> PackedQueries:
    """Every query of the call; nothing is read."""

    def find() -> PackedQueries:
        assert table.row_owner is not None
        chosen = torch.arange(batch * shape.queries, device=table.rows.device)
        rows, inside = (part.expand(batch, -1).flatten() for part in table.query_rows(length))
        owner = table.row_owner.expand(batch, -1).flatten()
        sample = chosen // shape.queries
        slots, real = (
            part.expand(batch, -1).reshape(batch, -1, length)[sample, owner]
            for part in table.key_slots(length)
        )
        slots, used = slots + sample[:, None] * shape.keys, real & inside[:, None]
        return _queries(chosen, rows, slots, real, used, shape, groups)

    return table.once(find, "all queries", length, shape.causal, shape.window, batch, groups)


def _queries(
    chosen: Tensor,
    rows: Tensor,
    slots: Tensor,
    real: Tensor,
    used: Tensor,
    shape: CallShape,
    groups: int,
) -> PackedQueries:
    """The record of queries, from the key slot (C, M) of each column of their maps."""
    visible = visible_pairs(rows, slots.shape[1], shape.causal, shape.window)
    seen = used if visible is None else used & visible
    places = slots[:, None] * groups + torch.arange(groups, device=slots.device)[:, None]
    return PackedQueries(chosen, rows, real, places, used, seen)
