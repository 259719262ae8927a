"""Prefix tuning inside one attention call (Li & Liang, "Prefix-Tuning", 2021).

    head = softmax(Q [P_k; K]ᵀ / √d) [P_v; V]

The prefix stands before the keys of each call and nowhere else: no cache holds it, it has neither
position nor rotation, and a map of the same module goes on counting real tokens.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, P prefix tokens, D head
width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

ONLY_MASKS = "use attn_implementation='sdpa' or 'eager'"


@dataclass(frozen=True)
class Prefix:
    """One prefix as an attention call needs it.

    Attributes:
        key: P_k, (P, G·D).
        value: P_v, likewise.
        samples: (B,) booleans, the samples of a mixed batch that see it; None for all.
    """

    key: Tensor
    value: Tensor
    samples: Tensor | None = None


class PrefixLayer(Protocol):
    """What the wrapper asks of the child ``prefix`` of an attention module."""

    def prefixes(self) -> list[Prefix]:
        """The prefixes that are active now; empty when the adapter is disabled."""
        ...


def behind(attend: Callable[..., Any], prefixes: list[Prefix]) -> Callable[..., Any]:
    """``attend`` over the prefixes and the tokens; the weights it returns are those of tokens."""

    def attend_behind(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        kernel = _kernel(module)
        _refuse(kernel, query, key, mask, kwargs)
        count = sum(len(prefix.key) for prefix in prefixes)
        _refuse_window(kernel, key.shape[2] + count, kwargs)
        shown = _shown(prefixes, len(key))
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        # A kernel that takes no mask for a causal one would shift it by the prefix.
        ordered = causal and query.shape[2] > 1 and kernel not in ("eager", "flash", "flex")
        if mask is None and (ordered or shown is not None):
            mask = _plain_mask(kernel, ordered, query, key)
        if mask is not None:
            mask = _extend_mask(mask, count, key.shape[2], shown)
        if kwargs.get("position_bias") is not None:  # T5: a prefix has no position
            kwargs["position_bias"] = nn.functional.pad(kwargs["position_bias"], (count, 0))
        output, weights = attend(
            module,
            query,
            prepend([prefix.key for prefix in prefixes], key),
            prepend([prefix.value for prefix in prefixes], value),
            mask,
            **kwargs,
        )
        return output, None if weights is None else weights[..., count:]

    return attend_behind


def prefix_scores(prefixes: list[Prefix], query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """The scores (B, H, T, P) of every query with the prefixes, -∞ where they are hidden.

    In fp32, or wider where the query is.
    """
    if not prefixes:
        return query.new_zeros(*query.shape[:3], 0, dtype=torch.float32)
    dtype = torch.promote_types(query.dtype, torch.float32)
    before = _heads([prefix.key for prefix in prefixes], key).to(dtype)
    before = before.repeat_interleave(query.shape[1] // len(before), 0)
    scores = query.to(dtype) @ before.transpose(-1, -2) * scaling
    shown = _shown(prefixes, len(query))
    return scores if shown is None else scores.masked_fill(~shown[:, None, None], float("-inf"))


def _heads(prefixes: list[Tensor], states: Tensor) -> Tensor:
    """All prefixes (P, G·D), one behind the other, as (G, P, D) of the dtype of ``states``."""
    _, groups, _, width = states.shape
    for prefix in prefixes:
        if prefix.shape[1] != groups * width:
            raise ValueError(
                f"a prefix {prefix.shape[1]} wide does not fit attention with {groups} key/value "
                f"heads of width {width}: leave this module out with exclude_modules"
            )
    joined = torch.cat([prefix.to(states.device, states.dtype) for prefix in prefixes])
    return joined.view(-1, groups, width).transpose(0, 1)


def prepend(prefixes: list[Tensor], states: Tensor) -> Tensor:
    """Prefixes (P, G·D) and the keys or values (B, G, K, D) behind them, (B, G, P+K, D)."""
    return torch.cat([_heads(prefixes, states).expand(len(states), -1, -1, -1), states], 2)


def _shown(prefixes: list[Prefix], batch: int) -> Tensor | None:
    """(B, P) booleans: which samples see which prefix tokens; None if all see all."""
    if all(prefix.samples is None for prefix in prefixes):
        return None
    shown = []
    for prefix in prefixes:
        mine = prefix.samples
        if mine is None:
            mine = torch.ones(batch, dtype=torch.bool, device=prefix.key.device)
        mine = mine.repeat_interleave(batch // len(mine))  # beam search repeats each sample
        shown.append(mine[:, None].expand(-1, len(prefix.key)))
    return torch.cat(shown, 1)


def _plain_mask(kernel: str, ordered: bool, query: Tensor, key: Tensor) -> Tensor:
    """What no mask means to a kernel, as a mask."""
    if kernel == "flex":
        raise ValueError(f"flex attention cannot hide a prefix from some samples: {ONLY_MASKS}")
    batch, _, keys, _ = key.shape
    if kernel == "flash":
        return torch.ones(batch, keys, dtype=torch.long, device=key.device)
    if kernel == "eager":
        return query.new_zeros(1, 1, query.shape[2], keys)
    see = torch.ones(1, 1, query.shape[2], keys, dtype=torch.bool, device=key.device)
    return see.tril() if ordered else see


def _extend_mask(mask: Any, count: int, keys: int, shown: Tensor | None) -> Tensor:
    """A mask with P columns more on its left: for all samples, or for those that ``shown`` says."""
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        form = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"a prefix cannot be put before a mask of this form ({form}): {ONLY_MASKS}"
        )
    if mask.dim() == 2:
        columns = mask.new_ones(len(mask), count) if shown is None else shown.to(mask.dtype)
        return torch.cat([columns, mask[:, -keys:]], 1)
    mask = mask[..., :keys]  # that of a static cache may be longer
    if shown is not None:
        mask = mask.expand(len(shown), -1, -1, -1)
    seen = 1 if mask.dtype == torch.bool else 0
    columns = mask.new_full((*mask.shape[:3], count), seen)
    if shown is not None:
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        columns = columns.masked_fill(~shown[:, None, None], hidden)
    return torch.cat([columns, mask], -1)


def implementation_of(module: nn.Module) -> str:
    """The name of the attention implementation that a module runs under."""
    config = getattr(module, "config", None)
    return str(getattr(config, "_attn_implementation", None) or "eager")


def _kernel(module: nn.Module) -> str:
    """How a kernel reads masks: ``eager``, ``flash``, ``flex``, or as sdpa does."""
    name = implementation_of(module)
    for kernel in ("flash", "flex"):
        if kernel in name:
            return kernel
    return name.removeprefix("paged|")


def _refuse(kernel: str, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> None:
    """Refuse calls whose sequences or keys the prefix cannot be put before.

    Raises:
        ValueError: naming what does work.
    """
    if kwargs.get("block_table") is not None:
        raise ValueError(
            f"a paged cache was passed without its keys, before a prefix: {ONLY_MASKS}"
        )
    if kernel == "flash" and mask is None:
        position_ids = kwargs.get("position_ids")
        packed = kwargs.get("cu_seq_lens_q") is not None
        if position_ids is not None and len(query) == 1 and query.shape[2] > 1:
            packed = packed or bool((position_ids.diff() != 1).any())
        if packed:
            raise ValueError(
                f"flash attention cannot put a prefix before each sequence of a packed row: "
                f"{ONLY_MASKS}"
            )


def _refuse_window(kernel: str, keys: int, kwargs: dict[str, Any]) -> None:
    window = kwargs.get("sliding_window")
    if kernel == "flash" and window is not None and keys > window:
        raise ValueError(
            f"the sliding window of {window} of flash attention would hide the prefix from later "
            f"tokens: {ONLY_MASKS}"
        )
