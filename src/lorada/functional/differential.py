"""Differential attention (Eqs. 3-4): the difference of two softmax maps, which may be negative.

    Diff = softmax(Q_1 K_1ᵀ / √(d/2)) - λ softmax(Q_2 K_2ᵀ / √(d/2))      (Eq. 3)
    λ    = exp(λ_q1 · λ_k1) - exp(λ_q2 · λ_k2) + λ_init                   (Eq. 4)

The paper starts from it and replaces the second map by a learned one, which can be negative too and
costs less.

Shapes: B batch, H query heads, G key/value heads, S number of λ (1 or H), T queries, K keys, W
width of Q and K (twice d/2), D head width of the values.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def differential_lambda(
    lambda_q1: Float[Tensor, "*H D"],
    lambda_k1: Float[Tensor, "*H D"],
    lambda_q2: Float[Tensor, "*H D"],
    lambda_k2: Float[Tensor, "*H D"],
    initial: float,
) -> Float[Tensor, "*H"]:
    """λ = exp(λ_q1 · λ_k1) - exp(λ_q2 · λ_k2) + λ_init (Eq. 4), one for all heads or one each."""
    # Each exponential is positive, so only their difference lets λ fall below its start λ_init.
    first = (lambda_q1 * lambda_k1).sum(-1).exp()
    second = (lambda_q2 * lambda_k2).sum(-1).exp()
    result: Tensor = first - second + initial
    return result


def differential_attention(
    query: Float[Tensor, "B H T W"],
    key: Float[Tensor, "B G K W"],
    value: Float[Tensor, "B G K D"],
    lambda_: Float[Tensor, "*S"],
    *,
    causal: bool = False,
) -> Float[Tensor, "B H T D"]:
    """Diff · V (Eq. 3) by two calls of a fused kernel, so that no map is made.

    The norm of each head's output, which the DIFF Transformer adds, is left out.

    Args:
        query: [Q_1; Q_2], whose halves have the width d/2 of Eq. 3; the last T of K tokens.
        key: [K_1; K_2].
        value: V.
        lambda_: λ, one number or one per query head.
        causal: whether a token sees only its own and earlier keys.

    Raises:
        ValueError: if W is odd.
    """
    queries, keys = query.shape[2], key.shape[2]
    # (A - λB)V = AV - λBV, so each map can stay inside a kernel. A kernel's own causal mask is
    # right only where T = K: behind a cache it would align the queries to the first keys.
    whole = causal and queries == keys
    keep = last_rows(queries, keys, query) if causal and not whole else None
    outputs = [
        F.scaled_dot_product_attention(
            q, k, value, attn_mask=keep, is_causal=whole, enable_gqa=query.shape[1] != key.shape[1]
        )
        for q, k in zip(halves(query), halves(key), strict=True)
    ]
    result: Tensor = outputs[0] - lambda_.reshape(-1, 1, 1) * outputs[1]
    return result


def differential_map_reference(
    query: Float[Tensor, "B H T W"],
    key: Float[Tensor, "B G K W"],
    lambda_: Float[Tensor, "*S"],
    *,
    causal: bool = False,
) -> Float[Tensor, "B H T K"]:
    """softmax(Q_1 K_1ᵀ / √(d/2)) - λ softmax(Q_2 K_2ᵀ / √(d/2)) (Eq. 3): the slow twin.

    Raises:
        ValueError: if W is odd.
    """
    # Each group of consecutive query heads shares a key head.
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    keep = last_rows(query.shape[2], key.shape[2], query)
    maps = []
    for q, k in zip(halves(query), halves(key), strict=True):
        # The width of a half, d/2, and not that of the whole query.
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        maps.append((scores.masked_fill(~keep, -torch.inf) if causal else scores).softmax(-1))
    result: Tensor = maps[0] - lambda_.reshape(-1, 1, 1) * maps[1]
    return result


def halves(x: Float[Tensor, "B H T W"]) -> tuple[Tensor, Tensor]:
    """[X_1; X_2] as two tensors of half the width."""
    # ``chunk`` would split an odd width into unequal parts without an error.
    if x.shape[-1] % 2:
        raise ValueError(
            f"a width of {x.shape[-1]} is odd: differential attention splits it in halves"
        )
    first, second = x.chunk(2, -1)
    return first, second


def last_rows(queries: int, keys: int, like: Tensor) -> Bool[Tensor, "T K"]:
    """Which keys the last ``queries`` of ``keys`` tokens see, as booleans."""
    position = torch.arange(keys, device=like.device)
    # With a cache the queries are the last tokens, so row 0 is token K - T.
    return position[keys - queries :, None] >= position
