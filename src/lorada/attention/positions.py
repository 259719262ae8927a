"""Where the tokens of a batch lie in a map: ``TokenSpan`` and ``TokenTable``.

A map has a row and a column for each token of one sequence, counted from 0. Attention works on
query rows and key slots, which may also hold padding, cached tokens, empty slots of a static cache,
or tokens of several packed sequences. The two records here give the map column of every key slot
and the map row of every query. ``locate.py`` makes them for a call.

Shapes: B batch, T queries, K key slots, N map length, P sequences packed into a row.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# The column or row of a slot without a token: outside of every map, however it is shifted.
NO_TOKEN = -(2**40)


@dataclass(frozen=True)
class TokenSpan:
    """Positions that are alike for all samples: one sequence in each row, without padding.

    They are four Python numbers, so the tokens under a map are a slice of the values.

    Attributes:
        start: the first key slot that holds a token.
        stop: one past the last key slot that holds a token.
        origin: the key slot of row and column 0 of the map.
        first: the key slot of query row 0.
    """

    start: int
    stop: int
    origin: int
    first: int

    def table(self, queries: int, keys: int, device: torch.device) -> "TokenTable":
        """The same positions as a table with one row for all samples."""
        slots = torch.arange(keys, device=device)
        inside = (slots >= self.start) & (slots < self.stop)
        columns = torch.where(inside, slots - self.origin, NO_TOKEN)
        rows = torch.arange(queries, device=device) + self.first - self.origin
        return TokenTable(columns[None], rows[None])

    def at_end(self, length: int) -> "TokenSpan":
        """These positions with the last token on row and column N-1 of the map (Eq. 16)."""
        return replace(self, origin=self.stop - length)


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
    """

    columns: Tensor
    rows: Tensor
    sequences: int = 1
    column_owner: Tensor | None = None
    row_owner: Tensor | None = None
    _found: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    def table(self, queries: int, keys: int, device: torch.device) -> "TokenTable":
        """Itself."""
        return self

    def key_slots(self, length: int) -> tuple[Tensor, Tensor]:
        """The inverse of ``columns``: the key slot of each map column.

        Returns:
            (B, P·N) key slot of each column of each sequence's map, and (B, P·N) booleans: whether
            the column has a token. Without one the slot is 0.
        """
        return self.once(lambda: self._key_slots(length), "slots", length)

    def _key_slots(self, length: int) -> tuple[Tensor, Tensor]:
        inside = (self.columns >= 0) & (self.columns < length)
        columns = self.columns
        if self.column_owner is not None:
            columns = columns + self.column_owner * length
        # A scatter needs an index for every slot. Slots outside the map write to one extra column
        # at the end, which is then cut off.
        total = self.sequences * length
        columns = torch.where(inside, columns, total)
        slots = torch.arange(columns.shape[-1], device=columns.device).expand_as(columns)
        found = columns.new_zeros(columns.shape[0], total + 1).scatter(1, columns, slots)
        filled = inside.new_zeros(columns.shape[0], total + 1).scatter(1, columns, inside)
        return found[:, :-1], filled[:, :-1]

    def query_rows(self, length: int) -> tuple[Tensor, Tensor]:
        """(B, T) map row of each query, clamped to 0 … N-1, and booleans: whether it was inside."""
        inside = (self.rows >= 0) & (self.rows < length)
        return self.rows.clamp(0, length - 1), inside

    def reaches(self, length: int) -> bool:
        """Whether any query is on a map row below ``length``; reads the table."""
        return self.once(lambda: bool(self.query_rows(length)[1].any()), "reaches", length)

    def once(self, compute: Callable[[], Result], *key: Hashable) -> Result:
        """The result of ``compute``, a function of this table and of ``key``, computed once.

        All layers share a table, and most maps have the same length.
        """
        if key not in self._found:
            self._found[key] = compute()
        found: Result = self._found[key]
        return found

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
        # ``fits_in_place`` tests whether both are one tensor.
        rows = columns if self.rows is self.columns else _shifted(self.rows, row_shift)
        return TokenTable(columns, rows, self.sequences, self.column_owner, self.row_owner)


def _shifted(numbers: Tensor, shift: Tensor) -> Tensor:
    """Map rows or columns minus ``shift``; ``NO_TOKEN`` stays."""
    return torch.where(numbers == NO_TOKEN, NO_TOKEN, numbers - shift)


TokenPositions = TokenSpan | TokenTable


def can_be_read(numbers: Tensor) -> bool:
    """Whether numbers are on the CPU, where reading them waits for nothing.

    Not where a graph is recorded, of gradients or for calls with other numbers.
    """
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._is_tracing()
    if recorded or torch._C._are_functorch_transforms_active():
        return False
    return type(numbers) is Tensor and numbers.is_cpu
