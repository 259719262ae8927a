"""Where the tokens of a batch lie in a map: ``TokenSpan`` and ``TokenTable``.

A map has a row and a column for each token of one sequence, counted from 0. Attention works on
query rows and key slots, which may also hold padding, cached tokens, empty slots of a static cache,
or tokens of several packed sequences. The two records here give the map column of every key slot
and the map row of every query. ``locate.py`` makes them for a call.

Shapes: B batch, T queries, K key slots, N map length, P sequences packed into a row.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# The column or row of a slot without a token: outside of every map, however it is shifted.
NO_TOKEN = -(2**40)


@dataclass(frozen=True)
class TokenSpan:
    """Positions that are alike for all samples: one sequence in each row, without padding.

    They are Python numbers, so the tokens under a map are a slice of the values.

    Attributes:
        stop: how many key slots hold a token; they are the first ones.
        origin: the key slot of row and column 0 of the map.
        first: the key slot of query row 0.
    """

    stop: int
    origin: int
    first: int

    def table(self, queries: int, keys: int, device: torch.device) -> "TokenTable":
        """The same positions as a table with one row for all samples."""
        slots = torch.arange(keys, device=device)
        columns = torch.where(slots < self.stop, slots - self.origin, NO_TOKEN)
        rows = torch.arange(queries, device=device) + self.first - self.origin
        return TokenTable(columns[None], rows[None], longest=keys)

    def at_end(self, length: int) -> "TokenSpan":
        """These positions with the last token on row and column N-1 of the map (Eq. 16)."""
        return replace(self, origin=self.stop - length)


@dataclass(frozen=True)
class Slots:
    """Where the tokens of a map's rows, or of its columns, are in a batch.

    Attributes:
        index: (B, P·N) the slot of each row or column of each sequence's map; 0 without a token.
        real: (B, P·N) booleans: which of them have a token.
    """

    index: Tensor
    real: Tensor

    def targets(self) -> "Targets":
        """The same slots to write to."""
        rows = torch.arange(self.real.shape[1], device=self.real.device)
        filled = torch.where(self.real, rows, self.real.to(torch.uint8).argmax(1, keepdim=True))
        return Targets(self.index, self.real, filled, self.index.gather(1, filled))


@dataclass(frozen=True)
class Targets(Slots):
    """Slots that get the rows of a product; a row without a token is replaced by one with a token.

    Attributes:
        filled: (B, P·N) rows that all have a token.
        slots: the slot of each.
    """

    filled: Tensor
    slots: Tensor


@dataclass(frozen=True)
class TokenTable:
    """Positions as a table: a map column for every key slot and a map row for every query.

    B is 1 if all samples are alike.

    Attributes:
        columns: (B, K) map column of each key slot; ``NO_TOKEN`` for padding and empty slots. A
            number below 0, or N and above, is a token that the map does not cover.
        rows: (B, T) map row of each query, likewise. It is the same tensor as ``columns`` if every
            key slot is also a query, in the same order.
        sequences: P, how many sequences are packed into a row of the batch; each has its own map.
        column_owner: (B, K) number of the sequence that a key slot belongs to; None if P is 1.
        row_owner: (B, T) the same for queries.
        longest: no sequence has more tokens than this; None if that is not known.
    """

    columns: Tensor
    rows: Tensor
    sequences: int = 1
    column_owner: Tensor | None = None
    row_owner: Tensor | None = None
    longest: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every key slot is also a query."""
        return self.rows is self.columns

    def table(self, queries: int, keys: int, device: torch.device) -> "TokenTable":
        """Itself."""
        return self

    def key_slots(self, length: int) -> Slots:
        """The inverse of ``columns``: the key slot of each map column."""
        return self._slots(self.columns, self.column_owner, length)

    def query_slots(self, length: int) -> Slots:
        """The inverse of ``rows``: the query of each map row."""
        return self._slots(self.rows, self.row_owner, length)

    def _slots(self, numbers: Tensor, owner: Tensor | None, length: int) -> Slots:
        inside = (numbers >= 0) & (numbers < length)
        if owner is not None:
            numbers = numbers + owner * length
        # A scatter needs an index for every slot. Slots outside the map write to one extra column
        # at the end, which is then cut off.
        total = self.sequences * length
        numbers = torch.where(inside, numbers, total)
        slots = torch.arange(numbers.shape[-1], device=numbers.device).expand_as(numbers)
        index = numbers.new_zeros(numbers.shape[0], total + 1).scatter(1, numbers, slots)
        real = inside.new_zeros(numbers.shape[0], total + 1).scatter(1, numbers, inside)
        return Slots(index[:, :-1], real[:, :-1])

    def query_rows(self, length: int) -> tuple[Tensor, Tensor]:
        """(B, T) map row of each query, clamped to 0 … N-1, and booleans: whether it was inside."""
        inside = (self.rows >= 0) & (self.rows < length)
        return self.rows.clamp(0, length - 1), inside

    def real_queries(self) -> Tensor:
        """(B, T) booleans: which queries are tokens and not padding."""
        return self.rows != NO_TOKEN

    def at_end(self, length: int) -> "TokenTable":
        """These positions with each sequence's last token on row and column N-1 (Eq. 16)."""
        if self.column_owner is None or self.row_owner is None:
            shift = self.columns.amax(1, keepdim=True).clamp(min=-1) + 1 - length
            column_shift = row_shift = shift
        else:
            last = self.columns.new_full((self.columns.shape[0], self.sequences), -1)
            last = last.scatter_reduce(1, self.column_owner, self.columns, "amax")
            shift = last + 1 - length
            column_shift = shift.gather(1, self.column_owner)
            row_shift = shift.gather(1, self.row_owner)
        columns = _shifted(self.columns, column_shift)
        rows = columns if self.is_whole else _shifted(self.rows, row_shift)
        return replace(self, columns=columns, rows=rows)


def _shifted(numbers: Tensor, shift: Tensor) -> Tensor:
    """Map rows or columns minus ``shift``; ``NO_TOKEN`` stays."""
    return torch.where(numbers == NO_TOKEN, NO_TOKEN, numbers - shift)


TokenPositions = TokenSpan | TokenTable
