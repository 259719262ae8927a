"""Attention in a training on a CPU by plain products, where torch's kernels take longer.

torch's fused kernel takes several times as long for its backward pass in bfloat16 as plain products
take, until rows are so long that the map of their tokens costs more memory (docs/performance.md).
With dropout torch uses no fused kernel, and draws as slowly as its dropout does everywhere.
Query heads that share keys are the queries of one head, so keys and values are not repeated.

Shapes: B batch, H query heads, G key/value heads, T queries, K keys, D and E head widths.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lorada.functional.dropout import dropout

LONGEST = 128  # tokens of a row in bfloat16


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention on a CPU by plain products, for short rows in bfloat16 or with dropout.

    Around forward and backward pass of a training: a checkpointed layer runs again in the latter.
    """
    fused = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = partial(_attention, fused)  # what transformers calls
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def _attention(
    fused: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *rest: Any,
    **options: Any,
) -> Tensor:
    """Attention with the arguments of ``fused``, which computes it where it is faster."""
    cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if cast else query.dtype
    p = options.get("dropout_p", 0.0)
    short = dtype == torch.bfloat16 and max(query.shape[-2], key.shape[-2]) <= LONGEST
    if rest or not (p or short) or not _fit(query, key):
        return fused(query, key, value, *rest, **options)
    with torch.autocast("cpu", enabled=False):
        return plain_products(
            query.to(dtype),
            key.to(dtype),
            value.to(dtype),
            options.get("attn_mask"),
            options.get("is_causal", False),
            options.get("scale"),
            p,
        )


def _fit(query: Tensor, key: Tensor) -> bool:
    """Whether a call is one of a training on a CPU, with batches of heads."""
    return (
        query.is_cpu
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and query.dim() == key.dim() == 4
        and query.shape[0] == key.shape[0]
    )


def plain_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    p: float = 0.0,
) -> Tensor:
    """Attention by plain products, in the dtype of its inputs.

    The softmax's input is rounded to it too, as in transformers' eager attention. A query that sees
    no key gets the mean of all values.

    Args:
        query: (B, H, T, D).
        key: (B, G, K, D), where G divides H.
        value: (B, G, K, E).
        mask: broadcasts to (B, H, T, K); True for pairs that are seen, or numbers to add.
        is_causal: whether query t sees the first t + 1 keys alone, without a mask.
        scale: of the products of queries and keys; 1/√D if not given.
        p: the probability that dropout sets a weight of the attention map to 0.

    Returns:
        (B, H, T, E).
    """
    (batch, heads, length, width), groups = query.shape, key.shape[1]
    rows = batch * groups, heads // groups * length
    query, key = query.reshape(*rows, width), key.reshape(rows[0], -1, width)
    value = value.reshape(*key.shape[:2], -1)
    scale = width**-0.5 if scale is None else scale
    if mask is None and is_causal:
        mask = _causal(length, key.shape[1])
    if mask is None:
        scores = torch.bmm(query * scale, key.transpose(1, 2))
    else:
        shape = batch, groups, heads // groups, length, key.shape[1]
        added = _added(mask, shape, query)
        scores = torch.baddbmm(added, query, key.transpose(1, 2), alpha=scale)
    weights = dropout(torch.softmax(scores, -1), p, True)
    return torch.bmm(weights, value).view(batch, heads, length, -1)


@lru_cache(maxsize=8)
def _causal(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril()


def _added(mask: Tensor, shape: tuple[int, ...], query: Tensor) -> Tensor:
    """What a mask adds to the scores of a call, (B·G, H/G·T, K), for (B, G, H/G, T, K)."""
    batch, groups, shared, length, keys = shape
    lowest = torch.finfo(query.dtype).min
    if mask.dtype == torch.bool:
        mask = query.new_zeros(mask.shape).masked_fill_(~mask, lowest)
    mask = mask.to(query.dtype).clamp(min=lowest)
    mask = mask.expand(batch, groups * shared, length, keys)
    return mask.reshape(batch * groups, shared * length, keys)
