"""Where each real token of a batch sits: padding, caches, windows and packing as one table.

The map of LoRaDA is indexed by token positions within a sequence, while attention sees key slots
(padded, cached, windowed, packed) and query rows. ``locate`` says for every slot and every row
which column and row of the map it is. Where the batch is nothing but whole sequences, four numbers
say it (``TokenSpan``); everywhere else a table does (``TokenTable``). Pads are neither.

Shapes: B batch, T queries, K key slots, N map length, S sequences packed into a row.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorada.functional.maps import Align

# What an additive mask takes off a score to hide a key: at least 10⁴ in every form in use.
BLOCKED = -9e3
# Far outside any map, whichever way it is shifted.
NO_TOKEN = -(2**40)


@dataclass(frozen=True)
class TokenSpan:
    """One sequence per row, without a pad: the same four numbers for the whole batch.

    Attributes:
        start: the first key slot that holds a token.
        stop: one past the last key slot that holds a token.
        origin: the key slot that row and column 0 of the map belong to.
        first: the key slot of query row 0.
    """

    start: int
    stop: int
    origin: int
    first: int

    def table(self, query_len: int, key_len: int, device: torch.device) -> "TokenTable":
        """The same as a table of one row."""
        slots = torch.arange(key_len, device=device)
        inside = (slots >= self.start) & (slots < self.stop)
        columns = torch.where(inside, slots - self.origin, NO_TOKEN)
        rows = torch.arange(query_len, device=device) + self.first - self.origin
        return TokenTable(columns[None], rows[None])


@dataclass(frozen=True)
class TokenTable:
    """The place in the map of every key slot and query row; B may be 1 for all samples alike.

    Attributes:
        columns: (B, K) map column of each key slot, ``NO_TOKEN`` where no token is; below 0 or
            from N on the token is one that the map does not reach.
        rows: (B, T) map row of each query, likewise; ``columns`` itself where every key is a query.
        sequences: S, how many sequences share a row of the batch; each has a map of its own.
        column_owner: (B, K), which of them a slot belongs to; None where S is 1.
        row_owner: (B, T), likewise for queries.
    """

    columns: Tensor
    rows: Tensor
    sequences: int = 1
    column_owner: Tensor | None = None
    row_owner: Tensor | None = None
    _slots: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def table(self, query_len: int, key_len: int, device: torch.device) -> "TokenTable":
        """Itself."""
        return self

    def key_slots(self, length: int) -> tuple[Tensor, Tensor]:
        """(B, S·N) key slot of each column of each sequence's map, and whether a token is there."""
        if length not in self._slots:
            self._slots[length] = self._key_slots(length)
        return self._slots[length]

    def _key_slots(self, length: int) -> tuple[Tensor, Tensor]:
        inside = (self.columns >= 0) & (self.columns < length)
        places = self.columns
        if self.column_owner is not None:
            places = places + self.column_owner * length
        # Slots outside the map share one place too many, which is cut off again.
        total = self.sequences * length
        places = torch.where(inside, places, total)
        slots = torch.arange(places.shape[-1], device=places.device).expand_as(places)
        found = places.new_zeros(places.shape[0], total + 1).scatter(1, places, slots)
        filled = inside.new_zeros(places.shape[0], total + 1).scatter(1, places, inside)
        return found[:, :-1], filled[:, :-1]

    def query_rows(self, length: int) -> tuple[Tensor, Tensor]:
        """(B, T) map row of each query, and whether the map has such a row for a real token."""
        inside = (self.rows >= 0) & (self.rows < length)
        return self.rows.clamp(0, length - 1), inside

    def real_queries(self) -> Tensor:
        """(B, T) booleans: which query rows are real tokens."""
        return self.rows != NO_TOKEN


Places = TokenSpan | TokenTable


def locate(
    query_len: int,
    key_len: int,
    mask: Any,
    position_ids: Tensor | None,
    *,
    length: int,
    align: Align = "start",
    positions: str = "token",
    window: int | None = None,
    causal: bool = True,
    cu_seq_lens: tuple[Tensor, Tensor] | None = None,
    seen: Tensor | int | None = None,
    flash: bool = False,
    packable: bool = True,
    device: torch.device | None = None,
) -> Places:
    """Find the real tokens of a batch from what an attention function is given.

    Args:
        query_len: T.
        key_len: K.
        mask: (B, K) of ones and zeros, (B, 1, T, K) boolean or additive, or flex attention's
            BlockMask; None if nothing is padded.
        position_ids: (B, T) or (1, T). They tell packed sequences apart, and stand in for ``seen``.
        length: N.
        align: on which end of a sequence the map lies.
        positions: ``raw`` takes slots as positions and pads as tokens, as the paper's code does.
        window: width of the sliding window of this layer, in tokens.
        causal: whether a query sees no later key.
        cu_seq_lens: (S+1,) cumulative lengths, in queries and in keys, of the sequences that are
            packed into the one row of the batch.
        seen: how many real tokens each sample has had with this call, (B,) or one number, or the
            2-D mask of all of them; needed where a sliding cache has dropped its first keys.
        flash: whether a kernel without masks has its queries at the end of the keys.
        packable: whether ``position_ids`` may start anew within a row, which takes a look at them.
        device: of the answer, whatever ``seen`` is on.

    Raises:
        ValueError: for a mask of an unknown form, or a sliding cache that dropped nobody knows
            how many keys.
    """
    raw = positions == "raw"
    cu_seq_lens = None if raw else cu_seq_lens
    limit = window if cu_seq_lens is None else None
    last = _last_token(query_len, key_len, limit, seen, position_ids, device)
    restarting = position_ids if packable else None
    ordered = causal and not (isinstance(mask, Tensor) and mask.dim() == 2)
    tokens: Places
    if cu_seq_lens is not None:
        tokens = _packed_by_lengths(query_len, key_len, position_ids, window, cu_seq_lens)
    elif mask is not None and not raw:
        visible = visible_keys(mask, query_len, key_len)
        tokens = _masked(query_len, visible, restarting, last, ordered)
    elif mask is not None and ordered and query_len < key_len and last is None:
        tokens = _raw_behind_cache(visible_keys(mask, query_len, key_len))
    elif not raw and query_len == key_len and _restarts(restarting, None):
        tokens = _packed_by_restart(None, restarting)
    else:
        tokens = _unpadded(query_len, key_len, last, flash)
    return tokens if align == "start" else _lie_on_end(tokens, length)


def _lie_on_end(tokens: Places, length: int) -> Places:
    """The last token of each sequence moves to the last row and column of the map (Eq. 16)."""
    if isinstance(tokens, TokenSpan):
        return replace(tokens, origin=tokens.stop - length)
    if tokens.column_owner is None or tokens.row_owner is None:
        shift = tokens.columns.amax(1, keepdim=True).clamp(min=-1) + 1 - length
        shifts = (shift, shift)
    else:
        last = tokens.columns.new_full((tokens.columns.shape[0], tokens.sequences), -1)
        last = last.scatter_reduce(1, tokens.column_owner, tokens.columns, "amax")
        shift = last + 1 - length
        shifts = (shift.gather(1, tokens.column_owner), shift.gather(1, tokens.row_owner))
    columns, rows = (
        torch.where(places == NO_TOKEN, NO_TOKEN, places - moved)
        for places, moved in zip((tokens.columns, tokens.rows), shifts, strict=True)
    )
    rows = columns if tokens.rows is tokens.columns else rows
    return TokenTable(columns, rows, tokens.sequences, tokens.column_owner, tokens.row_owner)


def _unpadded(query_len: int, key_len: int, last: Tensor | None, flash: bool) -> Places:
    if last is not None:
        columns = last - torch.arange(key_len - 1, -1, -1, device=last.device)
        return TokenTable(columns, columns[:, -query_len:])
    # Several queries, more slots and no mask: the prefill of a static cache, whose tail is empty,
    # or a later chunk under a flash kernel.
    first = key_len - query_len if query_len == 1 or flash else 0
    return TokenSpan(0, first + query_len, 0, first)


def _raw_behind_cache(visible: Tensor) -> TokenTable:
    """Every slot up to the last query's own for a token; ``visible`` (B, T, K) says which it is."""
    queries, slots = (torch.arange(n, device=visible.device) for n in visible.shape[1:])
    last = torch.where(visible, slots, -1).amax(-1)
    # Who sees more than the row before it sees its own slot last, or, in a block whose tokens see
    # each other, a later one. A pad before the tokens sees none, one behind them nothing new.
    new = last > nn.functional.pad(last, (1, 0), value=-1)[:, :-1]
    room = len(slots) - len(queries)
    first = torch.where(new, last - queries, room).amin().clamp(min=0)
    rows = first + queries
    return TokenTable(torch.where(slots <= rows[-1], slots, NO_TOKEN)[None], rows[None])


def _masked(
    query_len: int,
    visible: Tensor,
    position_ids: Tensor | None,
    last: Tensor | None,
    ordered: bool,
) -> TokenTable:
    """Tokens by what ``visible`` (B, T or 1, K) shows.

    ``last`` (B, 1) is the index of the last token where the cache has dropped keys; ``ordered``
    says that row t of the mask ends at its own key.
    """
    key_len = visible.shape[-1]
    # Any query, for behind a window, or in a packed row, the last one does not see every token.
    keys = visible.any(-2)
    if query_len == key_len and _restarts(position_ids, keys):
        return _packed_by_restart(keys, position_ids)
    counted = keys.cumsum(-1)
    if last is not None:
        counted = counted - counted[:, -1:] + last + 1
    columns = torch.where(keys, counted - 1, NO_TOKEN)
    if query_len == key_len:
        return TokenTable(columns, columns)
    if not ordered:  # such a mask says nothing of the queries, which come last
        return TokenTable(columns, columns[:, key_len - query_len :])
    own = key_len - 1 - visible.flip(-1).to(torch.uint8).argmax(-1)
    # A pad before the tokens sees nothing, one behind them no more than the row before it.
    real = visible.any(-1)
    real[:, 1:] = real[:, 1:] & ~(real[:, :-1] & (own[:, 1:] == own[:, :-1]))
    rows = columns.expand(own.shape[0], -1).gather(1, own)
    return TokenTable(columns, torch.where(real, rows, NO_TOKEN))


def visible_keys(mask: Any, query_len: int, key_len: int) -> Tensor:
    """(B, T or 1, K) booleans from any mask that transformers hands to an attention function.

    Raises:
        ValueError: for a mask of an unknown form.
    """
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask[:, None, -key_len:].bool()
    if isinstance(mask, Tensor) and mask.dim() == 4:
        seen: Tensor = mask[:, 0, :, :key_len]
        return seen > BLOCKED if seen.is_floating_point() else seen.bool()
    if hasattr(mask, "mask_mod"):
        batch, device = mask.shape[0], mask.kv_num_blocks.device
        sample = torch.arange(batch, device=device)[:, None, None]
        query = torch.arange(query_len, device=device)[:, None]
        key = torch.arange(key_len, device=device)
        seen = mask.mask_mod(sample, torch.zeros_like(sample), query, key)
        return seen.expand(batch, query_len, key_len)
    form = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise ValueError(
        f"attention mask of an unknown form ({form}); LMAM reads (B, K) and (B, 1, T, K) tensors "
        "and flex attention's BlockMask: use attn_implementation='sdpa'"
    )


def _last_token(
    query_len: int,
    key_len: int,
    window: int | None,
    seen: Tensor | int | None,
    position_ids: Tensor | None,
    device: torch.device | None,
) -> Tensor | None:
    """(B, 1) or (1, 1) index of each sample's last token where a sliding cache dropped keys."""
    if window is None or query_len == key_len or key_len < window:
        return None
    if isinstance(seen, Tensor):
        counted = seen.sum(-1) if seen.dim() == 2 else seen
        return counted.reshape(-1, 1).to(device) - 1
    if seen is not None:
        return torch.full((1, 1), seen - 1, device=device)
    if position_ids is None:
        raise ValueError(
            f"a sliding window of {window} has dropped the first keys from the cache and no "
            "position_ids were passed, so token positions are unknown: pass position_ids"
        )
    return position_ids[:, -1:]


def _starts(keys: Tensor, position_ids: Tensor) -> Tensor:
    """(B, K) booleans: a real token whose position is not above that of the real token before."""
    slots = torch.arange(keys.shape[-1], device=keys.device)
    # By index, here and below: transformers' exporters put a plain tuple in place of torch's.
    before = torch.where(keys, slots, -1).cummax(-1)[0].roll(1, -1)
    before[:, 0] = -1
    position_ids = position_ids.expand(keys.shape[0], -1)
    earlier = position_ids.gather(1, before.clamp(min=0))
    return keys & (before >= 0) & (position_ids <= earlier)


def _restarts(position_ids: Tensor | None, keys: Tensor | None) -> bool:
    """Whether several sequences are packed into a row: their positions start anew."""
    if position_ids is None or position_ids.shape[-1] == 1:
        return False
    if keys is None:
        starts = position_ids[:, 1:] <= position_ids[:, :-1]
    elif keys.shape[-1] != position_ids.shape[-1]:
        return False
    else:
        starts = _starts(keys, position_ids)
    if torch.compiler.is_compiling():
        # A compiled graph cannot turn aside here; it refuses when it runs.
        torch._assert_async(
            ~starts.any(),
            "sequences packed by position_ids are not supported in a compiled model with a map: "
            "pass cu_seq_lens_q and cu_seq_lens_k too",
        )
        return False
    return bool(starts.any())


def _packed_by_restart(keys: Tensor | None, position_ids: Tensor | None) -> TokenTable:
    assert position_ids is not None
    keys = torch.ones_like(position_ids, dtype=torch.bool) if keys is None else keys
    starts = _starts(keys, position_ids)
    owner = starts.cumsum(-1)
    counted = keys.cumsum(-1) - 1
    # What was counted before a sequence began is not its own.
    before = torch.where(starts, counted, 0).cummax(-1)[0]
    columns = torch.where(keys, counted - before, NO_TOKEN)
    return TokenTable(columns, columns, int(owner.max()) + 1, owner, owner)


def _packed_by_lengths(
    query_len: int,
    key_len: int,
    position_ids: Tensor | None,
    window: int | None,
    cu_seq_lens: tuple[Tensor, Tensor],
) -> TokenTable:
    by_query, by_key = (lengths.long() for lengths in cu_seq_lens)
    sequences, device = len(by_query) - 1, by_query.device
    queries, keys = (torch.arange(size, device=device) for size in (query_len, key_len))
    row_owner = (torch.searchsorted(by_query, queries, right=True) - 1).clamp(0, sequences - 1)
    column_owner = (torch.searchsorted(by_key, keys, right=True) - 1).clamp(0, sequences - 1)
    columns = keys - by_key[column_owner]
    if window is not None and position_ids is not None:
        # A sliding cache may have dropped a sequence's first keys; its last position tells.
        last = position_ids[0, by_query[1:] - 1].long()
        columns = last[column_owner] + 1 + keys - by_key[1:][column_owner]
    own = queries + by_key[1:][row_owner] - by_query[1:][row_owner]  # the queries come last
    rows = columns[own.clamp(0, key_len - 1)]
    columns = torch.where(keys < by_key[-1], columns, NO_TOKEN)
    rows = torch.where(queries < by_query[-1], rows, NO_TOKEN)
    return TokenTable(columns[None], rows[None], sequences, column_owner[None], row_owner[None])
