"""The only file that knows transformers' attention interface.

``install`` wraps each registered attention function in place, so implementation names, masks and
saved configs stay as they are. A module without a map passes straight through; one with a child
``lmam`` gets ``Attn·V + tile(Attn_s)·V``, the second term computed in fp32 beside the kernel.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, N map
length, R rank, D head width.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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
from lorada.positions import TokenSpan, locate

CHILD = "lmam"
CROSS_ATTENTION = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")


@dataclass(frozen=True)
class AttentionMap:
    """One map as the attention wrapper needs it: factors (or the map itself) and how to read it.

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
        make = full_rank_map if len(factors) == 1 else low_rank_map
        return make(*factors, self.inverse_scale, position=position)

    @property
    def stays_low_rank(self) -> bool:
        """Whether nothing stands in the way of W_a (W_b V)."""
        return self.baked is None and self.ablation in (None, "no_position")


class MapLayer(Protocol):
    """What the wrapper asks of the child ``lmam`` of an attention module."""

    def maps(self) -> list[AttentionMap]:
        """The maps that are active now; empty when the adapter is disabled."""
        ...


@dataclass(frozen=True)
class Observation:
    """What one attention call computed, for ``observe``."""

    module: nn.Module
    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    causal: bool
    window: int | None
    span: TokenSpan
    attention_map: AttentionMap
    output: Tensor  # (B, T, H, D), Attn·V
    term: Tensor  # (B, T, H, D), tile(Attn_s)·V


_observers: list[Callable[[Observation], None]] = []


@contextmanager
def observe(observer: Callable[[Observation], None]) -> Iterator[None]:
    """Call ``observer`` after every attention call that added a map, while the context lasts."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def install() -> None:
    """Wrap every registered attention function that is not wrapped yet, and ``eager``."""
    for name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        function = ALL_ATTENTION_FUNCTIONS[name]
        if not hasattr(function, "adds_map"):
            AttentionInterface.register(name, _with_map(function))
    if "eager" not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register("eager", _with_map(_eager))


def uninstall() -> None:
    """Put the original functions back."""
    mapping = AttentionInterface._global_mapping
    for name in list(ALL_ATTENTION_FUNCTIONS.valid_keys()):
        function = mapping[name]
        if name == "eager":
            del mapping[name]
        elif hasattr(function, "adds_map"):
            AttentionInterface.register(name, function.__wrapped__)


def dispatches(module: nn.Module) -> bool:
    """Whether a module calls its attention through the interface, so that a map reaches it."""
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(forward, "__code__", _eager.__code__).co_names


def self_attentions(model: nn.Module) -> list[str]:
    """Names of all self-attention modules of a model that can hold a map."""
    return [
        name
        for name, module in model.named_modules()
        if dispatches(module) and name.rsplit(".", 1)[-1] not in CROSS_ATTENTION
        and not any(f".{cross}." in f".{name}." for cross in CROSS_ATTENTION)
    ]


def head_count(module: nn.Module) -> int:
    """Query heads of an attention module."""
    for source in (module, getattr(module, "config", None)):
        for name in ("num_heads", "num_attention_heads", "n_heads"):
            if isinstance(getattr(source, name, None), int):
                return int(getattr(source, name))
    raise ValueError(f"{type(module).__name__} does not say how many attention heads it has")


def is_installed(implementation: str | None) -> bool:
    """Whether calls under this implementation name go through the wrapper."""
    name = (implementation or "eager").removeprefix("paged|")
    name = name if name != "eager" else (implementation or "eager")
    known = ALL_ATTENTION_FUNCTIONS.valid_keys()
    return name in known and hasattr(ALL_ATTENTION_FUNCTIONS[name], "adds_map")


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The eager function of the file that defines ``module``."""
    own = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
    result: tuple[Tensor, Tensor | None] = own(module, *args, **kwargs)
    return result


def _with_map(attend: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., Any]:
    @functools.wraps(attend)
    def attend_with_map(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layer: MapLayer | None = getattr(module, CHILD, None)
        maps = layer.maps() if layer is not None else []
        if not maps:
            return attend(module, query, key, value, attention_mask, **kwargs)
        if kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError(
                "cu_seq_lens_q was passed: several sequences packed into one row are not "
                "supported by LMAM yet; pass one sequence per row"
            )
        call = _Call(module, query, key, value, attention_mask, kwargs)
        inside = [m for m in maps if m.ablation == "no_negative"]
        mask = attention_mask
        for attention_map in inside:
            mask = call.mask_with(attention_map, mask)
        if inside:
            kwargs = {**kwargs, "is_causal": False}
        output, weights = attend(module, query, key, value, mask, **kwargs)
        result = output
        for attention_map in maps:
            if attention_map.ablation != "no_negative":
                result = call.add_term(attention_map, output, result)
        return result, weights

    attend_with_map.adds_map = True  # type: ignore[attr-defined]
    return attend_with_map


class _Call:
    """One call of an attention function, and what the maps of its module add to it."""

    def __init__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> None:
        self.module, self.query, self.key, self.value, self.mask = module, query, key, value, mask
        # The module knows whether it is a decoder; a call may say False for a mask that is causal.
        causal = getattr(module, "is_causal", None)
        self.causal = bool(kwargs.get("is_causal", True) if causal is None else causal)
        self.window: int | None = kwargs.get("sliding_window")
        self.position_ids: Tensor | None = kwargs.get("position_ids")
        self.scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        self.heads = query.shape[1]

    def span(self, attention_map: AttentionMap) -> TokenSpan:
        return locate(
            self.query.shape[2],
            self.key.shape[2],
            self.mask,
            self.position_ids,
            length=attention_map.length,
            align=attention_map.align,
            positions=attention_map.positions,
            window=self.window,
        )

    def add_term(self, attention_map: AttentionMap, output: Tensor, result: Tensor) -> Tensor:
        """``result`` (B, T, H, D) plus tile(Attn_s)·V, rounded to its dtype once, at the end."""
        span = self.span(attention_map)
        with torch.autocast(self.query.device.type, enabled=False):
            if isinstance(span.start, int) and isinstance(span.first, int):
                term, at = self._plain_term(attention_map, span)
            else:
                term, at = self._located_term(attention_map, span), 0
        if term is None and not _observers:
            return result
        full = _place(term, at, output)
        full = self.for_its_samples(attention_map, full)
        for observer in _observers:
            observer(
                Observation(
                    self.module, self.query, self.key, self.mask, self.scaling, self.causal,
                    self.window, span, attention_map, output.detach(), full.detach(),
                )
            )  # fmt: skip
        return (result + full).to(result.dtype)

    def _plain_term(
        self, attention_map: AttentionMap, span: TokenSpan
    ) -> tuple[Tensor | None, int]:
        """The term where one set of numbers holds for the whole batch: only slices are needed.

        Returns:
            The rows that the map touches, (B, M, H, D), and the first query row they belong to;
            None for the rows when there are none.
        """
        assert isinstance(span.stop, int) and isinstance(span.origin, int)
        assert isinstance(span.first, int) and isinstance(span.start, int)
        queries, length = self.query.shape[2], attention_map.length
        begin = max(span.origin, span.start)
        end = min(span.origin + length, span.stop)
        row = max(begin, span.first)  # first key slot that is also a query under the map
        if row >= end:
            return None, 0
        value = self.value[:, :, begin:end].float()
        if attention_map.stays_low_rank and row == begin:
            w_a, w_b = (factor.float() for factor in attention_map.factors)
            term = map_value_product(
                w_a, w_b, value, attention_map.inverse_scale, heads=self.heads,
                align=attention_map.align, causal=self.causal, window=self.window,
                position=attention_map.ablation != "no_position",
            )  # fmt: skip
        else:
            low, high = begin - span.origin, end - span.origin
            map_ = self._masked(attention_map, attention_map.dense()[:, low:high, low:high], None)
            term = apply_map(map_[:, row - begin :], value, self.heads)
        assert row - span.first + term.shape[2] <= queries
        return term.transpose(1, 2), row - span.first

    def _located_term(self, attention_map: AttentionMap, span: TokenSpan) -> Tensor:
        """The term for samples that sit differently in their rows: gather, multiply, put back."""
        length, queries = attention_map.length, self.query.shape[2]
        device = self.value.device
        slots, real = span.key_slots(length, self.key.shape[2], device)
        batch, groups, _, width = self.value.shape
        index = slots.expand(batch, -1)[:, None, :, None].expand(-1, groups, -1, width)
        value = self.value.gather(2, index).float() * real[:, None, :, None]
        rows, inside = span.query_rows(length, queries, device)
        rows, inside = rows.expand(batch, -1), inside.expand(batch, -1)
        keys = real.expand(batch, -1) if attention_map.ablation == "softmax" else None
        if attention_map.stays_low_rank and queries >= length:
            w_a, w_b = (factor.float() for factor in attention_map.factors)
            term = map_value_product(
                w_a, w_b, value, attention_map.inverse_scale, heads=self.heads,
                causal=self.causal, window=self.window,
                position=attention_map.ablation != "no_position",
            )  # fmt: skip
            return _pick(term.transpose(1, 2), rows, inside)
        map_ = self._masked(attention_map, attention_map.dense(), keys)
        if queries < length:
            # Few queries (decoding): only their rows of the map are multiplied.
            map_ = _map_rows(map_, rows)
            term = apply_map(map_, value, self.heads)
            return term.transpose(1, 2) * inside[..., None, None]
        return _pick(apply_map(map_, value, self.heads).transpose(1, 2), rows, inside)

    def _masked(self, attention_map: AttentionMap, map_: Tensor, keys: Tensor | None) -> Tensor:
        if attention_map.ablation == "softmax":
            return softmax_map(map_, self.causal, self.window, keys)
        return mask_map(map_, self.causal, self.window)

    def for_its_samples(self, attention_map: AttentionMap, full: Tensor) -> Tensor:
        """Zero for the samples that other maps serve; beam search repeats each sample."""
        if attention_map.samples is None:
            return full
        beams = self.query.shape[0] // len(attention_map.samples)
        return full * attention_map.samples.repeat_interleave(beams)[:, None, None, None]

    def mask_with(self, attention_map: AttentionMap, mask: Tensor | None) -> Tensor:
        """The additive mask of ¬N: the map goes into the scores (B, H, T, K), before the softmax."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        dtype, device = self.query.dtype, self.query.device
        full = spread_map(attention_map, self.span(attention_map), queries, keys, self.causal,
                          self.window, self.heads)  # fmt: skip
        full = self.for_its_samples(attention_map, full)
        blocked = torch.finfo(dtype).min
        if mask is None:
            if not self.causal or queries == 1:
                return full.to(dtype)
            see = torch.arange(queries, device=device)[:, None] >= torch.arange(keys, device=device)
            return torch.where(see, full.to(dtype), blocked)
        if mask.dim() != 4:
            raise ValueError(
                f"the no_negative ablation needs a (B, 1, T, K) mask, not shape "
                f"{tuple(mask.shape)}: use attn_implementation='sdpa' or 'eager'"
            )
        mask = mask[..., :keys]
        if mask.dtype == torch.bool:
            return torch.where(mask, full.to(dtype), blocked)
        return mask + full.to(dtype)


def spread_map(
    attention_map: AttentionMap,
    span: TokenSpan,
    queries: int,
    keys: int,
    causal: bool,
    window: int | None,
    heads: int,
) -> Tensor:
    """A map laid out on the (B, H, T, K) attention map it is added to; zero where it is not."""
    length, device = attention_map.length, attention_map.factors[0].device
    slots, real = span.key_slots(length, keys, device)
    if attention_map.ablation == "softmax":
        map_ = softmax_map(attention_map.dense(), causal, window, real)
    else:
        map_ = mask_map(attention_map.dense(), causal, window)
    rows, inside = span.query_rows(length, queries, device)
    batch = max(len(rows), len(real))
    picked = _map_rows(map_, rows.expand(batch, -1)) * inside.expand(batch, -1)[:, None, :, None]
    picked = picked * real.expand(batch, -1)[:, None, None]
    full = picked.new_zeros(*picked.shape[:-1], keys)
    index = slots.expand(batch, -1)[:, None, None].expand_as(picked)
    return full.scatter_add(-1, index, picked).repeat(1, heads // picked.shape[1], 1, 1)


def _map_rows(map_: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, T) of a (S, N, N) or (B, S, N, N) map, as (B, S, T, N)."""
    if map_.dim() == 3:
        return map_[:, rows].transpose(0, 1)
    index = rows[:, None, :, None].expand(-1, map_.shape[1], -1, map_.shape[-1])
    return map_.gather(2, index)


def _pick(term: Tensor, rows: Tensor, inside: Tensor) -> Tensor:
    """Rows (B, T) of a (B, N, H, D) term, zero where a query has none."""
    index = rows[..., None, None].expand(-1, -1, *term.shape[2:])
    return term.gather(1, index) * inside[..., None, None]


def _place(term: Tensor | None, at: int, output: Tensor) -> Tensor:
    """A term of some query rows, padded with zeros to all rows of ``output`` (B, T, H, D)."""
    if term is None:
        return torch.zeros_like(output, dtype=torch.float32)
    after = output.shape[1] - at - term.shape[1]
    if at == 0 and after == 0:
        return term
    return nn.functional.pad(term, (0, 0, 0, 0, at, after))
