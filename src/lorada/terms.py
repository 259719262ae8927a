"""What a map adds to one attention call: the maths of ``functional`` where ``positions`` puts it.

Two routes to the same term. Where one set of numbers places the whole batch, the tokens under the
map are a slice of the values. Where samples sit differently (padding, caches), their values are
gathered into map coordinates, multiplied, and the rows put back.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, N map
length, R rank, D head width.
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
from lorada.positions import TokenSpan


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


def map_term(attention_map: AttentionMap, span: TokenSpan, view: View) -> Tensor | None:
    """tile(Attn_s)·V of every query, (B, T, H, D) in fp32; None where the map reaches none."""
    with torch.autocast(view.value.device.type, enabled=False):
        if isinstance(span.start, int) and isinstance(span.first, int):
            return _sliced_term(attention_map, span, view)
        return _gathered_term(attention_map, span, view)


def _sliced_term(attention_map: AttentionMap, span: TokenSpan, view: View) -> Tensor | None:
    assert isinstance(span.start, int)
    assert isinstance(span.stop, int)
    assert isinstance(span.origin, int)
    assert isinstance(span.first, int)
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


def _gathered_term(attention_map: AttentionMap, span: TokenSpan, view: View) -> Tensor:
    length, device = attention_map.length, view.value.device
    batch, groups, keys, width = view.value.shape
    slots, real = span.key_slots(length, keys, device)
    index = slots.expand(batch, -1)[:, None, :, None].expand(-1, groups, -1, width)
    value = view.value.gather(2, index).float() * real[:, None, :, None]
    rows, inside = span.query_rows(length, view.queries, device)
    rows, inside = rows.expand(batch, -1), inside.expand(batch, -1)[..., None, None]
    if attention_map.stays_low_rank and view.queries >= length:
        # In map coordinates the values begin where the map does, whatever its alignment.
        return _pick(_product(attention_map, value, view, "start"), rows) * inside
    real = real.expand(batch, -1)
    map_ = _masked(attention_map, attention_map.dense(), view, real)
    if view.queries < length:
        # Few queries (decoding): only their rows of the map are multiplied.
        term = apply_map(_map_rows(map_, rows), value, view.heads)
        return term.transpose(1, 2) * inside
    return _pick(apply_map(map_, value, view.heads), rows) * inside


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
    mine = samples.repeat_interleave(batch // len(samples))
    return full * mine.view(-1, *[1] * (full.dim() - 1))


def spread_map(attention_map: AttentionMap, span: TokenSpan, view: View) -> Tensor:
    """A map laid out on the (B, H, T, K) attention map it is added to; zero where it is not."""
    length, device, keys = attention_map.length, view.value.device, view.value.shape[2]
    slots, real = span.key_slots(length, keys, device)
    map_ = _masked(attention_map, attention_map.dense(), view, real)
    rows, inside = span.query_rows(length, view.queries, device)
    batch = max(len(rows), len(real))
    picked = _map_rows(map_, rows.expand(batch, -1)) * inside.expand(batch, -1)[:, None, :, None]
    picked = picked * real.expand(batch, -1)[:, None, None]
    full = picked.new_zeros(*picked.shape[:-1], keys)
    index = slots.expand(batch, -1)[:, None, None].expand_as(picked)
    return full.scatter_add(-1, index, picked).repeat(1, view.heads // picked.shape[1], 1, 1)


def _map_rows(map_: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, T) of a (S, N, N) or (B, S, N, N) map, as (B, S, T, N)."""
    if map_.dim() == 3:
        return map_[:, rows].transpose(0, 1)
    index = rows[:, None, :, None].expand(-1, map_.shape[1], -1, map_.shape[-1])
    return map_.expand(len(rows), -1, -1, -1).gather(2, index)


def _pick(term: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, T) of a (B, H, N, D) term, as (B, T, H, D)."""
    term = term.transpose(1, 2)
    return term.gather(1, rows[..., None, None].expand(-1, -1, *term.shape[2:]))
