"""``CoveredTokens``: which values a map reads, and which queries get the rows of its product.

The product of a map needs the values in the order of the map's columns, and gives its rows in their
order. If the tokens lie in this order already, both are slices. If there is padding, or a row
of the batch has several sequences, the values are gathered, and the rows scattered back.

Shapes: B batch, P sequences packed into a row, G key/value heads, T queries, K key slots, N map
length, M map columns that may have a token, C maps of a row of the batch, D head width.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.learned_map import LearnedMap
from lorada.attention.positions import Slots, Targets, TokenPositions, TokenSpan, token_positions
from lorada.functional.maps import visible_pairs
from lorada.functional.precision import nothing_is_recorded, wide, wide_dtype


@dataclass(frozen=True)
class CoveredTokens:
    """The tokens of a call that lie under the first, or the last, M rows and columns of a map."""

    # The key slots of the M columns. A table of slots (B, C·M) has those of C maps.
    keys: slice | Slots
    size: int  # M
    # The map rows that are computed, (T,) or (B·C, T/C), one for each query; None if these are the
    # M rows themselves.
    rows: Tensor | None = None
    # Which of the M columns those rows read, (T, M) or (B·C, T/C, M) booleans: none if the map does
    # not reach the query.
    seen: Tensor | None = None
    # The queries that get the rows; None if these are all queries, in order.
    queries: slice | Targets | None = None

    @property
    def maps(self) -> int:
        """C."""
        return 1 if isinstance(self.keys, slice) else self.keys.index.shape[1] // self.size

    def values(self, value: Tensor) -> Tensor:
        """The values (B·C, G, M, D) in map order, in fp32 or wider."""
        batch, groups, _, width = value.shape
        if isinstance(self.keys, slice):
            # In memory side by side, as the product of a map that all samples share needs them.
            by_slot = value[:, :, self.keys].permute(1, 2, 0, 3)
            values = by_slot.to(wide_dtype(value), memory_format=torch.contiguous_format)
            return values.permute(2, 0, 1, 3)
        index = self.keys.index.expand(batch, -1)[:, None, :, None].expand(-1, groups, -1, width)
        values = wide(value.gather(2, index))
        if self.seen is None:  # a column without a token has read slot 0
            values = values * self.keys.real[:, None, :, None]
        by_map: Tensor = values.unflatten(2, (self.maps, self.size))
        return by_map.transpose(1, 2).flatten(0, 1)

    def value_grad(self, grad: Tensor, value: Tensor) -> Tensor:
        """The gradient of ``value`` (B, G, K, D) from that of ``values``."""
        if isinstance(self.keys, slice):
            return put(grad, value, (slice(None), slice(None), self.keys))
        # (B·C, G, M, D) → (B, G, C·M, D), as the table of slots is.
        by_map = grad.unflatten(0, (value.shape[0], self.maps))
        by_slot = by_map.transpose(1, 2).flatten(2, 3)
        # Columns without a token add their zeros to slot 0.
        by_slot = by_slot * self.keys.real[:, None, :, None]
        index = self.keys.index[:, None, :, None].expand_as(by_slot)
        return torch.zeros_like(value).scatter_add_(2, index, by_slot.to(value.dtype))

    def real(self, batch: int) -> Tensor | None:
        """Which columns have a token, (B·C, M) booleans; None if all have one."""
        if isinstance(self.keys, slice):
            return None
        return self.keys.real.expand(batch, -1).reshape(batch * self.maps, self.size)


def put(part: Tensor, like: Tensor, at: tuple[Any, ...]) -> Tensor:
    """Zeros like a tensor with ``part`` in some places, in its dtype."""
    if part.shape == like.shape:
        return part.to(like.dtype)
    whole = torch.zeros_like(like)
    whole[at] = part
    return whole


def covered_tokens(call: AttentionCall, learned_map: LearnedMap) -> CoveredTokens | None:
    """The tokens of a call under a map, found once for all layers; None if no query is."""

    def find() -> CoveredTokens | None:
        return find_covered_tokens(token_positions(call), learned_map, call.shape, call.value)

    return call.once(find, "covered", learned_map.length, learned_map.align)


def find_covered_tokens(
    positions: TokenPositions, own: LearnedMap, shape: CallShape, value: Tensor
) -> CoveredTokens | None:
    """The tokens under a map; None if what the host knows shows no query."""
    length = own.length
    if torch.compiler.is_compiling():
        # The length of a slice depends on the batch, and a compiled graph must serve every batch.
        table = replace(positions.table(shape.queries, shape.keys, value.device), longest=length)
    elif isinstance(positions, TokenSpan):
        return _covered_span(positions, own, shape, value.device)
    else:
        table = positions
    size = length if table.longest is None else min(length, table.longest)
    if own.align == "end":
        table = table.at_end(size)
    rows, inside = table.query_rows(size)
    # On the CPU, where reading numbers waits for nothing.
    if nothing_is_recorded() and type(inside) is Tensor and inside.is_cpu and not inside.any():
        return None
    keys = table.key_slots(size)
    owner = table.row_owner
    # Behind a cache most sequences have one query, and only the rows of the queries are computed.
    computes_all_rows = table.is_whole if owner is None else shape.queries > table.sequences
    if computes_all_rows:
        queries = keys if table.is_whole else table.query_slots(size)
        return CoveredTokens(keys, size, queries=queries.targets())
    batch = value.shape[0]
    if owner is not None:  # each query gets a map of its own
        keys = _slots_by_query(keys, owner, size, batch)
        real = keys.real.reshape(-1, 1, size)
        rows = rows.expand(batch, -1).reshape(-1, 1)
        inside = inside.expand(batch, -1).reshape(-1, 1)
    elif isinstance(positions, TokenSpan):  # which has the same rows for all samples
        rows, inside, real = rows[0], inside[0], keys.real
    else:
        rows, inside, real = rows.expand(batch, -1), inside, keys.real[:, None]
    seen = real & inside[..., None]
    visible = visible_pairs(rows, size, shape.causal, shape.window)
    if visible is not None:
        seen = seen & visible
    return CoveredTokens(keys, size, rows + own.part(size).start, seen)


def _slots_by_query(keys: Slots, owner: Tensor, size: int, batch: int) -> Slots:
    """The key slots of each query's sequence, (B, T·M), from those of each sequence, (B, P·M).

    ``owner`` (B, T) is the number of a query's sequence.
    """
    owner = owner[:, :, None].expand(-1, -1, size)
    index = keys.index.unflatten(1, (-1, size)).gather(1, owner)
    real = keys.real.unflatten(1, (-1, size)).gather(1, owner)
    return Slots(index.expand(batch, -1, -1).flatten(1), real.expand(batch, -1, -1).flatten(1))


def _covered_span(
    span: TokenSpan, own: LearnedMap, shape: CallShape, device: torch.device
) -> CoveredTokens | None:
    size = min(own.length, span.stop)
    begin = span.stop - size if own.align == "end" else 0  # the key slot of the first column
    first = max(begin, span.first)  # the key slot of the first query under the map
    if first >= begin + size:  # all queries lie behind the map
        return None
    end = begin + size
    keys, queries = slice(begin, end), slice(first - span.first, end - span.first)
    some_queries = None if queries == slice(0, shape.queries) else queries
    if first == begin:  # without a cache every token under the map is a query
        return CoveredTokens(keys, size, queries=some_queries)
    rows = torch.arange(first - begin, size, device=device)
    seen = visible_pairs(rows, size, shape.causal, shape.window)
    if seen is None:  # no mask hides a column
        seen = rows.new_ones(rows.shape[0], size, dtype=torch.bool)
    return CoveredTokens(keys, size, rows + own.part(size).start, seen, some_queries)
