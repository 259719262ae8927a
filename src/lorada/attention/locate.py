"""Find where the tokens of an attention call lie in a map.

For that we need to know which query rows and key slots hold tokens, and the index of each token in
its sequence. Depending on the call, this follows from the lengths of packed sequences, the mask,
``position_ids`` that restart, or only the numbers of queries and keys; ``locate`` decides which.

Shapes: B batch, T queries, K key slots, N map length, P sequences packed into a row.
"""

import torch
from torch import Tensor, nn

from lorada.attention.call import AttentionCall
from lorada.attention.forward_inputs import is_recorded
from lorada.attention.positions import NO_TOKEN, TokenPositions, TokenSpan, TokenTable


def token_positions(call: AttentionCall, *, raw: bool = False) -> TokenPositions:
    """``locate``, computed once for all layers that get the same tensors."""
    return call.once(lambda: locate(call, raw=raw), "positions", raw)


def locate(call: AttentionCall, *, raw: bool = False) -> TokenPositions:
    """The map column of every key slot and the map row of every query, counted from the first.

    Args:
        call: the call.
        raw: whether padding counts as tokens, as in the paper's code.
    """
    queries, keys, mask = call.shape.queries, call.shape.keys, call.mask
    lengths = None if raw else call.cu_seq_lens
    last = None if lengths is not None else _last_token(call)
    restarting = call.position_ids if call.inputs.may_be_packed else None
    # In a causal mask (T, K) the last key that a query sees is the query itself. A mask (B, K) does
    # not show that, nor does one of an encoder.
    shows_queries = call.shape.causal and not (isinstance(mask, Tensor) and mask.dim() == 2)
    if lengths is not None:
        return _packed_by_lengths(call, *lengths)
    if mask is not None and not raw:
        return _by_mask(call.visible_keys(), queries, restarting, last, shows_queries)
    if mask is not None and shows_queries and queries < keys and last is None:
        return _raw_behind_cache(call.visible_keys())
    if not raw and queries == keys and _restarts(restarting, None):
        return _packed_by_restart(restarting, None)
    return _without_padding(call, last)


def _without_padding(call: AttentionCall, last: Tensor | None) -> TokenPositions:
    """Positions if every slot is a token; ``last`` (B, 1) is the index of each last token."""
    queries, keys = call.shape.queries, call.shape.keys
    if last is not None:
        columns = last - torch.arange(keys - 1, -1, -1, device=last.device)
        return TokenTable(columns, columns[:, -queries:])
    # Several queries, more slots than queries, and no mask: under a flash kernel this is a later
    # chunk of a prompt, and the queries are the last slots. Elsewhere it is the prefill of a static
    # cache, and the last slots are empty.
    first = keys - queries if queries == 1 or call.kernel == "flash" else 0
    return TokenSpan(first + queries, 0, first)


def _raw_behind_cache(visible: Tensor) -> TokenTable:
    """Raw positions behind a cache: ``visible`` (B, T, K) shows the slots of the queries."""
    room = visible.shape[2] - visible.shape[1]
    queries, slots = (torch.arange(n, device=visible.device) for n in visible.shape[1:])
    last = torch.where(visible, slots, -1).amax(-1)
    # If a query sees a later slot than the query before it, that slot is its own, or one after it
    # (tokens of an image see each other). Padding before the tokens sees no slot, and padding
    # behind them no later slot.
    new = last > nn.functional.pad(last, (1, 0), value=-1)[:, :-1]
    first = torch.where(new, last - queries, room).min().clamp(min=0)
    rows = first + queries
    columns = torch.where(slots <= rows[-1], slots, NO_TOKEN)
    return TokenTable(columns[None], rows[None], longest=visible.shape[2])


def _by_mask(
    visible: Tensor,
    queries: int,
    position_ids: Tensor | None,
    last: Tensor | None,
    shows_queries: bool,
) -> TokenTable:
    """Positions by a mask ``visible`` (B, T or 1, K): the keys that some query sees are tokens.

    ``position_ids`` are given if they may separate packed sequences, ``last`` (B, 1), the index of
    the last token, if the cache has dropped keys. ``shows_queries`` says whether the last key that
    a query sees is the query itself.
    """
    keys = visible.shape[-1]
    # The last query alone does not see every token under a window or in a packed row.
    real = visible.any(-2)
    if queries == keys and _restarts(position_ids, real):
        return _packed_by_restart(position_ids, real)
    counted = real.cumsum(-1)
    if last is not None:
        counted = counted - counted[:, -1:] + last + 1
    columns = torch.where(real, counted - 1, NO_TOKEN)
    longest = keys if last is None else None
    if queries == keys:
        return TokenTable(columns, columns, longest=longest)
    if not shows_queries:  # they are the last keys
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


def _starts(position_ids: Tensor, real: Tensor) -> Tensor:
    """(B, K) booleans: tokens that start a new sequence, since positions do not increase there."""
    slots = torch.arange(real.shape[-1], device=real.device)
    # By index and not ``.values``: transformers' exporters return a plain tuple here.
    before = torch.where(real, slots, -1).cummax(-1)[0].roll(1, -1)
    before[:, 0] = -1
    position_ids = position_ids.expand(real.shape[0], -1)
    earlier = position_ids.gather(1, before.clamp(min=0))
    return real & (before >= 0) & (position_ids <= earlier)


def _restarts(position_ids: Tensor | None, real: Tensor | None) -> bool:
    """Whether positions restart within a row; ``real`` (B, K) are the tokens, None for all."""
    if position_ids is None or position_ids.shape[-1] == 1:
        return False
    if real is None:
        starts = position_ids[:, 1:] <= position_ids[:, :-1]
    elif real.shape[-1] != position_ids.shape[-1]:
        return False
    else:
        starts = _starts(position_ids, real)
    if is_recorded(starts):  # such a graph raises when it runs
        torch._assert_async(
            ~starts.any(),
            "sequences packed by position_ids are not supported in a compiled model with a map: "
            "pass cu_seq_lens_q and cu_seq_lens_k too",
        )
        return False
    return bool(starts.any())


def _packed_by_restart(position_ids: Tensor | None, real: Tensor | None) -> TokenTable:
    """Positions of sequences packed into a row, each of which restarts ``position_ids``."""
    assert position_ids is not None
    real = torch.ones_like(position_ids, dtype=torch.bool) if real is None else real
    starts = _starts(position_ids, real)
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
    queries, keys = (torch.arange(size, device=device) for size in (shape.queries, shape.keys))
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
    own = queries + by_key[1:][row_owner] - by_query[1:][row_owner]  # the queries come last
    rows = columns[own.clamp(0, shape.keys - 1)]
    columns = torch.where(keys < by_key[-1], columns, NO_TOKEN)
    rows = torch.where(queries < by_query[-1], rows, NO_TOKEN)
    owners = column_owner[None], row_owner[None]
    return TokenTable(columns[None], rows[None], sequences, *owners, longest)
