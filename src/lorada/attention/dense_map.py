"""A map laid out on a whole (T, K) attention map, entry by entry.

The term never needs it. The ablation ¬N does, which adds the map to the scores before the softmax,
and so does ``explain``, which shows it.

Shapes: B batch, H query heads, T queries, K key slots.
"""

import torch
from torch import Tensor

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import AttentionCall
from lorada.attention.covered_tokens import covered_tokens
from lorada.attention.map_term import Term, add_term
from lorada.functional.precision import wide_dtype

NEEDS_MASK = (
    "the no_negative ablation needs a (B, 1, T, K) mask: use attn_implementation='sdpa' or 'eager'"
)


def expand_map(attention_map: AttentionMap, call: AttentionCall) -> Tensor:
    """tile(Attn_s) in the shape of the attention map, (B or 1, H, T, K), with zeros beyond it.

    That is the term of a call whose values are the identity: key slot k has the k-th unit vector.
    """
    value, shape = call.value, call.shape
    covered = covered_tokens(call, attention_map)
    alike = covered is None or isinstance(covered.keys, slice)
    values = torch.eye(shape.keys, dtype=wide_dtype(value), device=value.device)
    values = values.expand(1 if alike else value.shape[0], 1, -1, -1)
    nothing = values.new_zeros(values.shape[0], shape.queries, shape.heads, shape.keys)
    if covered is None:
        return nothing.transpose(1, 2)
    return add_term(nothing, Term(attention_map, covered, shape), values).transpose(1, 2)


def mask_with_map(mask: Tensor | None, attention_map: AttentionMap, call: AttentionCall) -> Tensor:
    """The additive mask (B, H, T, K) that adds a map to the scores before the softmax (¬N).

    ``mask`` is the mask without this map; it may hold another map.
    """
    if call.kernel in ("flash", "flex"):
        raise ValueError(NEEDS_MASK)
    # The kernel adds a mask to the scores, so a map inside the mask is a map before the softmax.
    dtype, keys = call.value.dtype, call.shape.keys
    full = expand_map(attention_map, call).to(dtype)
    hidden = torch.finfo(dtype).min
    if mask is None:
        if not call.shape.causal or call.shape.queries == 1:
            return full
        # A kernel that is given a mask does not apply its own causal mask.
        rows = torch.arange(call.shape.queries, device=full.device)
        return torch.where(rows[:, None] >= torch.arange(keys, device=full.device), full, hidden)
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise ValueError(NEEDS_MASK)
    mask = mask[..., :keys]  # the mask of a static cache may be longer
    return torch.where(mask, full, hidden) if mask.dtype == torch.bool else mask + full
