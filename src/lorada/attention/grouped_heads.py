"""``with_grouped_heads``: decoding on a CPU reads keys once for all query heads that share them.

torch's kernel with grouped queries reads the keys and values of a group once for each of its query
heads. Heads with a single query each can be given to it as the queries of one head. transformers
does so itself, but not while ``TRANSFORMERS_SDPA_FORCE_GQA`` is set, which keeps it from copying
keys in longer calls (``runs/models/loading.py``).

Shapes: B batch, H query heads, G key/value heads, K key slots, D head width.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lorada.attention.packed_attention import Attend

FORCED = "TRANSFORMERS_SDPA_FORCE_GQA"


def with_grouped_heads(kernel: Attend) -> Attend:
    """``kernel``; if it is transformers' sdpa, heads of a single query become queries of a head."""
    if kernel is not sdpa_attention_forward:
        return kernel
    unchanged: Attend = kernel  # which has no types of its own

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if query.shape[2] != 1 or not _may_be_grouped(query, key, mask, kwargs):
            return unchanged(module, query, key, value, mask, **kwargs)
        batch, heads, _, width = query.shape
        groups = key.shape[1]
        grouped = query.reshape(batch, groups, heads // groups, width)
        # A token sees all keys, and several queries without a mask would be causal.
        kwargs = {**kwargs, "is_causal": False}
        output, weights = unchanged(module, grouped, key, value, mask, **kwargs)
        # (B, H/G, G, D) → (B, 1, H, D)
        return output.transpose(1, 2).reshape(batch, 1, heads, -1), weights

    return attend


def _may_be_grouped(query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call with one query (B, H, 1, D) has the same result with grouped heads."""
    if query.shape[1] == key.shape[1] or not query.is_cpu or torch.compiler.is_compiling():
        return False
    one_for_all_heads = mask is None or (mask.dim() == 4 and mask.shape[1] == 1)
    biased = kwargs.get("position_bias") is not None
    return one_for_all_heads and not biased and os.environ.get(FORCED) == "1"
