"""Where the tokens of a batch lie in a map: ``TokenSpan`` and ``TokenTable``.

A map has a row and a column for each token of one sequence, counted from 0. Attention works on
query rows and key slots, which may also hold padding, cached tokens, empty slots of a static cache,
or tokens of several packed sequences. The two records here give the map column of every key slot
and the map row of every query. ``token_positions`` makes them for a call.

Shapes: B batch, T queries, K key slots, N map length, P sequences packed into a row.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorada.attention.call import AttentionCall
from lorada.attention.forward_inputs import is_recorded
from lorada.functional.maps import Align

# The column or row of a slot without a token: outside of every map, however it is shifted.
NO_TOKEN = -(2**40)


@dataclass(frozen=True)
class TokenSpan:
    """Positions that are alike for all samples: one sequence in each row, without padding.

    They are Python numbers, so the tokens under a map are a slice of the values.
    """

    stop: int  # how many key slots hold a token; they are the first ones
    first: int  # the key slot of query row 0

    def table(self, queries: int, keys: int, device: torch.device) -> "TokenTable":
        """The same positions as a table with one row for all samples."""
        slots = torch.arange(keys, device=device)
        columns = torch.where(slots < self.stop, slots, NO_TOKEN)
        rows = torch.arange(queries, device=device) + self.first
        return TokenTable(columns[None], rows[None], longest=keys)


@dataclass(frozen=True)
class Slots:
    """Where the tokens of a map's rows, or of its columns, are in a batch; all (B, P·N)."""

    index: Tensor  # the slot of each row or column of each sequence's map; 0 without a token
    real: Tensor  # booleans: which of them have a token

    def targets(self) -> "Targets":
        """The same slots to write to."""
        rows = torch.arange(self.real.shape[1], device=self.real.device)
        filled = torch.where(self.real, rows, self.real.to(torch.uint8).argmax(1, keepdim=True))
        return Targets(self.index, self.real, filled, self.index.gather(1, filled))


@dataclass(frozen=True)
class Targets(Slots):
    """Slots that get the rows of a product; one with a token stands in for a row without."""

    filled: Tensor  # rows that all have a token
    slots: Tensor  # the slot of each


@dataclass(frozen=True)
class TokenTable:
    """Positions as a table: a map column for every key slot and a map row for every query.

    B is 1 if all samples are alike.
    """

    # (B, K) map column of each key slot; ``NO_TOKEN`` for padding and empty slots. A number below
    # 0, or N and above, is a token that the map does not cover.
    columns: Tensor
    # (B, T) map row of each query, likewise. It is the same tensor as ``columns`` if every key slot
    # is also a query, in the same order.
    rows: Tensor
    # P, how many sequences are packed into a row of the batch; each has its own map.
    sequences: int = 1
    # (B, K) number of the sequence that a key slot belongs to; None if P is 1.
    column_owner: Tensor | None = None
    row_owner: Tensor | None = None  # (B, T) the same for queries
    longest: int | None = None  # no sequence has more tokens than this; None if that is not known

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

    def pairs(self, length: int) -> Tensor:
        """(B, T, K) booleans: pairs of query and key with an entry in the map of their sequence."""
        _, rows = self.query_rows(length)
        columns = (self.columns >= 0) & (self.columns < length)
        pairs = rows[:, :, None] & columns[:, None, :]
        if self.row_owner is None or self.column_owner is None:
            return pairs
        return pairs & (self.row_owner[:, :, None] == self.column_owner[:, None, :])

    def real_queries(self) -> Tensor:
        """(B, T) booleans: which queries are tokens and not padding."""
        return self.rows != NO_TOKEN

    def at_end(self, length: int) -> "TokenTable":
        """These positions with each sequence's last token on row and column N-1 (Eq. 16)."""
        if self.column_owner is None or self.row_owner is None:
            column_last = row_last = self.columns.amax(1, keepdim=True)
        else:
            # (B, P) the last column of each sequence, then that of each slot's own sequence.
            last = self.columns.new_full((self.columns.shape[0], self.sequences), NO_TOKEN)
            last = last.scatter_reduce(1, self.column_owner, self.columns, "amax")
            column_last = last.gather(1, self.column_owner)
            row_last = last.gather(1, self.row_owner)
        columns = _shifted(self.columns, column_last + (1 - length))
        rows = columns if self.is_whole else _shifted(self.rows, row_last + (1 - length))
        return replace(self, columns=columns, rows=rows)


def _shifted(numbers: Tensor, shift: Tensor) -> Tensor:
    """Map rows or columns minus ``shift``; ``NO_TOKEN`` stays."""
    return torch.where(numbers == NO_TOKEN, NO_TOKEN, numbers - shift)


TokenPositions = TokenSpan | TokenTable


def token_positions(call: AttentionCall) -> TokenPositions:
    """``locate``, computed once for all layers that get the same tensors.

    Packed rows that nothing keeps apart in attention are refused.
    """
    positions = call.once(lambda: locate(call), "positions")
    packed = isinstance(positions, TokenTable) and positions.sequences > 1
    if packed and call.mask is None and call.kernel != "flash":
        raise ValueError(
            "several sequences are packed into one row and attention would let them see each "
            "other: pass use_cache=False and position_ids that restart with each sequence"
        )
    return positions


def table_in_map(call: AttentionCall, length: int, align: Align) -> TokenTable:
    """Where the tokens of a call lie in a map of N = ``length``."""
    table = token_positions(call).table(call.shape.queries, call.shape.keys, call.value.device)
    return table if align == "start" else table.at_end(length)


def locate(call: AttentionCall) -> TokenPositions:
    """The map column of every key slot and the map row of every query, counted from the first."""
    if call.cu_seq_lens is not None:
        return _packed_by_lengths(call, *call.cu_seq_lens)
    queries, keys, last = call.shape.queries, call.shape.keys, _last_token(call)
    restarting = call.inputs.may_be_packed and queries == keys
    position_ids = call.position_ids if restarting else None
    if call.mask is not None:
        return _by_mask(call, position_ids, last)
    starts = None if position_ids is None else _starts(position_ids, None)
    if starts is not None:
        return _packed_by_restart(starts, torch.ones_like(starts))
    if last is not None:
        columns = last - torch.arange(keys - 1, -1, -1, device=last.device)
        return TokenTable(columns, columns[:, -queries:])
    # Several queries, more slots than queries, and no mask: under a flash kernel this is a later
    # chunk of a prompt, and the queries are the last slots. Elsewhere it is the prefill of a static
    # cache, and the last slots are empty.
    first = keys - queries if queries == 1 or call.kernel == "flash" else 0
    return TokenSpan(first + queries, first)


def _by_mask(call: AttentionCall, position_ids: Tensor | None, last: Tensor | None) -> TokenTable:
    """Positions by the mask of a call: the keys that some query sees are tokens.

    ``position_ids`` are given if they may separate packed sequences, ``last`` (B, 1), the index of
    the last token, if the cache has dropped keys.
    """
    queries, keys, visible = call.shape.queries, call.shape.keys, call.visible_keys()
    # The last query alone does not see every token under a window or in a packed row.
    real = visible.any(-2)
    starts = None if position_ids is None else _starts(position_ids, real)
    if starts is not None:
        return _packed_by_restart(starts, real)
    counted = real.cumsum(-1)
    if last is not None:
        counted = counted - counted[:, -1:] + last + 1
    columns = torch.where(real, counted - 1, NO_TOKEN)
    longest = keys if last is None else None
    if queries == keys:
        return TokenTable(columns, columns, longest=longest)
    # In a causal mask (T, K) the last key that a query sees is the query itself. A mask (B, K) does
    # not show that, nor does one of an encoder: there the queries are the last keys.
    flat = isinstance(call.mask, Tensor) and call.mask.dim() == 2
    if flat or not call.shape.causal:
        return TokenTable(columns, columns[:, keys - queries :], longest=longest)
    own = keys - 1 - visible.flip(-1).to(torch.uint8).argmax(-1)
    # Padding before the tokens sees no key, padding behind them no more than the row before.
    is_token = visible.any(-1)
    is_token[:, 1:] = is_token[:, 1:] & ~(is_token[:, :-1] & (own[:, 1:] == own[:, :-1]))
    rows = columns.expand(own.shape[0], -1).gather(1, own)
    return TokenTable(columns, torch.where(is_token, rows, NO_TOKEN), longest=longest)


def _last_token(call: AttentionCall) -> Tensor | None:
    """(B, 1) or (1, 1) index of each sample's last token; None if no key was dropped."""
    shape, tokens = call.shape, call.inputs.tokens_so_far
    if shape.window is None or shape.queries == shape.keys:
        return None
    # A compiled graph must not ask whether keys were dropped; counting is right either way.
    counted = torch.compiler.is_compiling() and isinstance(tokens, Tensor)
    if not counted and shape.keys < shape.window:
        return None
    device = call.value.device
    if isinstance(tokens, Tensor):
        count = tokens.sum(-1) if tokens.dim() == 2 else tokens
        return count.reshape(-1, 1).to(device) - 1
    if tokens is not None:
        return torch.full((1, 1), tokens - 1, device=device)
    if call.position_ids is None:
        raise ValueError(
            f"a sliding window of {shape.window} has dropped the first keys from the cache and no "
            "position_ids were passed, so token positions are unknown: pass position_ids"
        )
    return call.position_ids[:, -1:]


def _starts(position_ids: Tensor, real: Tensor | None) -> Tensor | None:
    """(B, K) booleans: tokens that start a further sequence of their row; None if none does.

    Positions do not increase there. ``real`` (B, K) are the tokens, None for all.
    """
    keys = position_ids.shape[-1]
    if keys == 1 or (real is not None and real.shape[-1] != keys):
        return None
    if real is None:
        starts = torch.zeros_like(position_ids, dtype=torch.bool)
        starts[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
    else:
        slots = torch.arange(keys, device=real.device)
        # By index and not ``.values``: transformers' exporters return a plain tuple here.
        before = torch.where(real, slots, -1).cummax(-1)[0].roll(1, -1)
        before[:, 0] = -1
        position_ids = position_ids.expand(real.shape[0], -1)
        earlier = position_ids.gather(1, before.clamp(min=0))
        starts = real & (before >= 0) & (position_ids <= earlier)
    if is_recorded(starts):  # such a graph raises when it runs
        torch._assert_async(
            ~starts.any(),
            "sequences packed by position_ids are not supported in a compiled model with a map: "
            "pass cu_seq_lens_q and cu_seq_lens_k too",
        )
        return None
    return starts if starts.any() else None


def _packed_by_restart(starts: Tensor, real: Tensor) -> TokenTable:
    """Positions of sequences packed into a row, from the tokens that start a further one."""
    owner = starts.cumsum(-1)
    counted = real.cumsum(-1) - 1
    # Each sequence counts from 0: the count of the tokens before it is subtracted.
    before = torch.where(starts, counted, 0).cummax(-1)[0]
    columns = torch.where(real, counted - before, NO_TOKEN)
    # Two numbers in one, since the host waits for the device each time that it reads one.
    keys = columns.shape[-1]
    last, longest = divmod(int(owner.max() * keys + columns.max()), keys)
    return TokenTable(columns, columns, last + 1, owner, owner, longest + 1)


def _packed_by_lengths(call: AttentionCall, by_query: Tensor, by_key: Tensor) -> TokenTable:
    """Positions of sequences packed into one row, from their cumulative lengths (P+1,)."""
    shape, position_ids = call.shape, call.position_ids
    by_query, by_key = by_query.long(), by_key.long()
    sequences, device = len(by_query) - 1, by_query.device
    queries = torch.arange(shape.queries, device=device)
    keys = torch.arange(shape.keys, device=device)
    # The sequence of a slot; slots behind the last sequence count to it, and are left out below.
    row_owner = (torch.searchsorted(by_query, queries, right=True) - 1).clamp(0, sequences - 1)
    column_owner = (torch.searchsorted(by_key, keys, right=True) - 1).clamp(0, sequences - 1)
    columns = keys - by_key[column_owner]
    longest: int | None = shape.keys if call.longest is None else call.longest
    if shape.window is not None and position_ids is not None:
        # A sliding cache may have dropped the first keys of a sequence. Its last position is then
        # not its number of keys, so columns are counted back from that.
        last = position_ids[0, by_query[1:] - 1].long()
        columns = last[column_owner] + 1 + keys - by_key[1:][column_owner]
        longest = None
    # A sequence may have more keys than queries, of which the last are its queries.
    own_keys = queries + by_key[1:][row_owner] - by_query[1:][row_owner]
    rows = columns[own_keys.clamp(0, shape.keys - 1)]
    columns = torch.where(keys < by_key[-1], columns, NO_TOKEN)
    rows = torch.where(queries < by_query[-1], rows, NO_TOKEN)
    return TokenTable(
        columns[None],
        rows[None],
        sequences=sequences,
        column_owner=column_owner[None],
        row_owner=row_owner[None],
        longest=longest,
    )
