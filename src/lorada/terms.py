"""What a map adds to one attention call: the maths of ``functional`` where ``positions`` puts it.

Two routes to the same term. Where one set of numbers places the whole batch, the tokens under the
map are a slice of the values. Where samples sit differently (padding, caches, packing), the values
of each sequence are gathered into map coordinates, multiplied, and the rows put back.

Shapes: B batch, P sequences packed into a row, H query heads, G key/value heads, S map heads,
T queries, K key slots, N map length, R rank, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorada.functional import (
    Ablation,
    Align,
    apply_map,
    full_rank_map,
    low_rank_map,
    map_value_product,
    mask_map,
    softmax_map,
)
from lorada.positions import Places, TokenSpan, TokenTable


@dataclass(frozen=True)
class AttentionMap:
    """One map as an attention call needs it: factors (or the map itself) and how to read it.

    Attributes:
        factors: (W_a, W_b), or (W,) of the full-rank ablation.
        baked: the finished (S, N, N) map, if it was computed ahead.
        samples: (B,) booleans, the samples of a mixed batch that use this map; None for all.
    """

    factors: tuple[Tensor, ...]
    inverse_scale: float
    align: Align
    positions: str
    ablation: Ablation | None
    baked: Tensor | None = None
    samples: Tensor | None = None

    @property
    def length(self) -> int:
        """N, in tokens."""
        return self.factors[0].shape[1]

    def dense(self) -> Tensor:
        """The (S, N, N) map before any mask, in fp32."""
        if self.baked is not None:
            return self.baked
        factors = [factor.float() for factor in self.factors]
        position = self.ablation != "no_position"
        if len(factors) == 1:
            return full_rank_map(factors[0], self.inverse_scale, position=position)
        return low_rank_map(factors[0], factors[1], self.inverse_scale, position=position)

    @property
    def stays_low_rank(self) -> bool:
        """Whether nothing stands in the way of W_a (W_b V)."""
        return self.baked is None and self.ablation in (None, "no_position")


@dataclass(frozen=True)
class View:
    """What a map sees of an attention call.

    Attributes:
        value: (B, G, K, D).
        queries: T.
        heads: H.
        causal: whether a row sees only its own and earlier keys.
        window: width of a sliding window, in tokens; None without one.
    """

    value: Tensor
    queries: int
    heads: int
    causal: bool
    window: int | None


def map_term(attention_map: AttentionMap, places: Places, view: View) -> Tensor | None:
    """tile(Attn_s)·V of every query, (B, T, H, D) in fp32; None where the map reaches none."""
    with torch.autocast(view.value.device.type, enabled=False):
        # A slice is as long as the batch or as the map; a compiled graph must serve both.
        if isinstance(places, TokenSpan) and not torch.compiler.is_compiling():
            return _sliced_term(attention_map, places, view)
        table = places.table(view.queries, view.value.shape[2], view.value.device)
        return _gathered_term(attention_map, table, view)


def _sliced_term(attention_map: AttentionMap, span: TokenSpan, view: View) -> Tensor | None:
    begin = max(span.origin, span.start)
    end = min(span.origin + attention_map.length, span.stop)
    row = max(begin, span.first)  # the first key slot under the map that is also a query
    if row >= end:
        return None
    value = view.value[:, :, begin:end].float()
    if attention_map.stays_low_rank and row == begin:
        term = _product(attention_map, value, view, attention_map.align)
    else:
        low, high = begin - span.origin, end - span.origin
        map_ = _masked(attention_map, attention_map.dense()[:, low:high, low:high], view, None)
        term = apply_map(map_[:, row - begin :], value, view.heads)
    before = row - span.first
    after = view.queries - before - term.shape[2]
    return nn.functional.pad(term.transpose(1, 2), (0, 0, 0, 0, before, after))


def _gathered_term(attention_map: AttentionMap, table: TokenTable, view: View) -> Tensor:
    length, packed = attention_map.length, table.sequences
    batch, groups, _, width = view.value.shape
    slots, real = (part.expand(batch, -1) for part in table.key_slots(length))
    index = slots[:, None, :, None].expand(-1, groups, -1, width)
    value = view.value.gather(2, index).float() * real[:, None, :, None]
    rows, inside = table.query_rows(length)
    rows, inside = rows.expand(batch, -1), inside.expand(batch, -1)[..., None, None]
    if packed > 1:
        # Each sequence becomes a sample of its own.
        value = value.view(batch, groups, packed, length, width).transpose(1, 2)
        value = value.reshape(batch * packed, groups, length, width)
        rows, real = _owned(table, rows, length), real.reshape(-1, length)
    # Few queries (decoding): only their rows of the map are multiplied. A compiled graph serves
    # batches of any length, so it does that for single queries alone.
    least = 2 if torch.compiler.is_compiling() else length
    few = view.queries < least if packed == 1 else batch * view.queries <= value.shape[0]
    if few:
        map_ = _masked(attention_map, attention_map.dense(), view, real)
        return _few_rows(map_, value, rows, view.heads, packed) * inside
    if attention_map.stays_low_rank:
        # In map coordinates the values begin where the map does, whatever its alignment.
        term = _product(attention_map, value, view, "start")
    else:
        map_ = _masked(attention_map, attention_map.dense(), view, real)
        term = apply_map(map_, value, view.heads)
    # (B·P, H, N, D) → (B, P·N, H, D)
    term = term.transpose(1, 2).reshape(batch, packed * length, view.heads, width)
    return term.gather(1, rows[..., None, None].expand(-1, -1, *term.shape[2:])) * inside


def _owned(table: TokenTable, rows: Tensor, length: int) -> Tensor:
    """Map rows (B, T) counted through the maps of all sequences that are packed into a row."""
    assert table.row_owner is not None
    return rows + table.row_owner.expand_as(rows) * length


def _few_rows(map_: Tensor, value: Tensor, rows: Tensor, heads: int, packed: int) -> Tensor:
    """Chosen rows (B, T) of the product of ``map_`` with each sequence's values, (B, T, H, D)."""
    if packed == 1:
        return apply_map(_map_rows(map_, rows), value, heads).transpose(1, 2)
    # Every query meets the values of its own sequence.
    batch, queries = rows.shape
    length = map_.shape[-1]
    sequence = rows // length + torch.arange(batch, device=rows.device)[:, None] * packed
    own = sequence.flatten()
    map_ = map_.expand(value.shape[0], -1, -1, -1)[own] if map_.dim() == 4 else map_
    picked = _map_rows(map_, (rows % length).view(-1, 1))
    return apply_map(picked, value[own], heads).view(batch, queries, heads, -1)


def _product(attention_map: AttentionMap, value: Tensor, view: View, align: Align) -> Tensor:
    w_a, w_b = (factor.float() for factor in attention_map.factors)
    return map_value_product(
        w_a,
        w_b,
        value,
        attention_map.inverse_scale,
        heads=view.heads,
        align=align,
        causal=view.causal,
        window=view.window,
        position=attention_map.ablation != "no_position",
    )


def _masked(attention_map: AttentionMap, map_: Tensor, view: View, keys: Tensor | None) -> Tensor:
    if attention_map.ablation == "softmax":
        return softmax_map(map_, view.causal, view.window, keys)
    return mask_map(map_, view.causal, view.window)


def for_samples(full: Tensor, samples: Tensor | None, batch: int) -> Tensor:
    """``full`` (B or 1, …), zero for the samples that others serve; beam search repeats each."""
    if samples is None:
        return full
    mine = samples.repeat_interleave(batch // samples.shape[0])
    return full * mine.view(-1, *[1] * (full.dim() - 1))


def spread_map(attention_map: AttentionMap, places: Places, view: View) -> Tensor:
    """A map laid out on the (B, H, T, K) attention map it is added to; zero where it is not."""
    with torch.autocast(view.value.device.type, enabled=False):
        return _spread(attention_map, places, view)


def _spread(attention_map: AttentionMap, places: Places, view: View) -> Tensor:
    length, device, keys = attention_map.length, view.value.device, view.value.shape[2]
    table = places.table(view.queries, keys, device)
    _, real = table.key_slots(length)
    map_ = _masked(attention_map, attention_map.dense(), view, real.reshape(-1, length))
    rows, _ = table.query_rows(length)
    batch = max(rows.shape[0], table.columns.shape[0])
    rows = rows.expand(batch, -1)
    if map_.dim() == 4 and table.sequences > 1:
        # (B·P, S, N, N) → (B, S, P·N, N): the maps of a row's sequences, one above the other.
        map_ = map_.view(-1, table.sequences, *map_.shape[1:]).transpose(1, 2).flatten(2, 3)
        rows = _owned(table, rows, length)
    picked = _map_rows(map_, rows)
    columns = table.columns.expand(batch, -1)
    index = columns.clamp(0, length - 1)[:, None, None].expand(-1, *picked.shape[1:3], -1)
    pairs = reached_pairs(table, length)[:, None]
    return (picked.gather(-1, index) * pairs).repeat(1, view.heads // picked.shape[1], 1, 1)


def reached_pairs(table: TokenTable, length: int) -> Tensor:
    """(B, T, K) booleans: the pairs of real tokens that have an entry in their sequence's map."""
    _, rows = table.query_rows(length)
    columns = (table.columns >= 0) & (table.columns < length)
    pairs = rows[:, :, None] & columns[:, None, :]
    if table.row_owner is None or table.column_owner is None:
        return pairs
    return pairs & (table.row_owner[:, :, None] == table.column_owner[:, None, :])


def _map_rows(map_: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, T) of a (S, N, N) or (B, S, N, N) map, as (B, S, T, N)."""
    if map_.dim() == 3:
        return map_[:, rows].transpose(0, 1)
    index = rows[:, None, :, None].expand(-1, map_.shape[1], -1, map_.shape[-1])
    return map_.expand(rows.shape[0], -1, -1, -1).gather(2, index)
