"""Prefix tuning inside one attention call (Li & Liang, "Prefix-Tuning", 2021).

    head = softmax(Q [P_k; K]ᵀ / √d) [P_v; V]

The prefix is put before the keys in each call. It is not stored in the cache, has no position and
no rotation, and a map of the same module does not count it.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, P prefix tokens, D head
width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lorada.attention.call import AttentionCall, form_of, implementation_of


def with_prefixes(attend: Callable[..., Any], call: AttentionCall) -> Callable[..., Any]:
    """``attend`` with the call's prefixes before its keys; it returns the weights of tokens."""
    prefixes = call.prefixes
    # Kernels without masks hide a prefix behind a window, and packed rows have no place for it.
    if call.is_paged or call.kernel in ("flash", "flex"):
        raise ValueError(
            f"a prefix cannot be put before the keys of {implementation_of(call.module)}: "
            "use attn_implementation='sdpa' or 'eager'"
        )

    def attend_with_prefixes(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        count = sum(len(prefix.key) for prefix in prefixes)
        # As in the kernels, the argument of the call goes before the attribute of the module.
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        # Without a mask sdpa aligns its causal mask to the first key, which is now a prefix's.
        if mask is None and causal and query.shape[2] > 1 and call.kernel != "eager":
            mask = key.new_ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool).tril()
        if mask is not None:
            mask = _extend_mask(mask, count, key.shape[2])
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

    return attend_with_prefixes


def prepend(parts: list[Tensor], states: Tensor) -> Tensor:
    """Keys or values (B, G, K, D) with those of prefixes (P, G·D) before them, (B, G, P+K, D)."""
    batch, groups, _, width = states.shape
    for part in parts:
        if part.shape[1] != groups * width:
            raise ValueError(
                f"a prefix {part.shape[1]} wide does not fit attention with {groups} key/value "
                f"heads of width {width}: leave this module out with exclude_modules"
            )
    joined = torch.cat([part.to(states.device, states.dtype) for part in parts])
    before = joined.view(-1, groups, width).transpose(0, 1)
    return torch.cat([before.expand(batch, -1, -1, -1), states], 2)


def _extend_mask(mask: Any, count: int, keys: int) -> Tensor:
    """A mask with ``count`` new columns on its left, which every query sees."""
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise ValueError(
            f"a prefix cannot be put before a mask of this form ({form_of(mask)}): "
            "use attn_implementation='sdpa' or 'eager'"
        )
    mask = mask[..., :keys]  # the mask of a static cache may be longer
    seen = 0 if mask.is_floating_point() else 1
    return torch.cat([mask.new_full((*mask.shape[:3], count), seen), mask], -1)
