"""The map of LoRaDA as pure functions of tensors (Eqs. 6-17), and the paper's own sum with it.

    Attn_s = s (W_a + PE)(W_b + PE),   s = 1 / inverse_scale              (Eqs. 6-10)
    Attn^  = Attn + repeat(Attn_s, h / h_s)                               (Eqs. 12, 14-17)
    O      = Attn^ V = Attn V + repeat(Attn_s, h / h_s) V                 (Eq. 13)

By the last line the second term can be computed alone (``product.py``) and added to the output of
any kernel, so no attention map is ever made. ``add_map_reference`` keeps the paper's form, on a
full attention map, and the tests compare the two.

Shapes: B batch, H query heads, S map heads, T queries, K keys, N map length, R rank. Readings of
what the paper leaves open: docs/readings.md.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Align = Literal["start", "end"]
Ablation = Literal["no_negative", "softmax", "full_rank", "no_position"]


def position_embedding(length: int, like: Tensor) -> Float[Tensor, " N"]:
    """PE(pos) = 10000^(-2 pos / length) for pos = 0 … length-1 (Eq. 7), like ``like``."""
    # In fp64: lower precision would round the exponents of a long map. Not every device has fp64.
    position = torch.arange(length, device="cpu", dtype=torch.float64)
    return torch.pow(10000.0, -2.0 * position / length).to(like.dtype).to(like.device)


def position_factors(
    w_a: Float[Tensor, "S N R"], w_b: Float[Tensor, "S R N"], pe: Float[Tensor, " N"] | None = None
) -> tuple[Float[Tensor, "S N R"], Float[Tensor, "S R N"]]:
    """Both factors with PE added along their token dimension (Eqs. 8-9), out of place.

    ``pe`` is PE, if it was computed before.
    """
    # The paper's printed code adds PE in place, so a second call would add it twice.
    pe = position_embedding(w_a.shape[1], w_a) if pe is None else pe
    return w_a + pe[:, None], w_b + pe


def low_rank_map(
    w_a: Float[Tensor, "S N R"],
    w_b: Float[Tensor, "S R N"],
    inverse_scale: float,
    *,
    position: bool = True,
    pe: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, "S N N"]:
    """Attn_s = (W_a + PE)(W_b + PE) / inverse_scale (Eqs. 7-10), before any causal mask."""
    if position:
        w_a, w_b = position_factors(w_a, w_b, pe)
    # The entries may be negative; those of a softmax map cannot.
    return w_a @ w_b / inverse_scale


def full_rank_map(
    w: Float[Tensor, "H N N"],
    inverse_scale: float,
    *,
    position: bool = True,
    pe: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, "H N N"]:
    """The map of the ¬L ablation (FMAM): (W + PE(i) PE(j)) / inverse_scale."""
    # With W = 0 this equals the low-rank map of rank 1 with factors of zero: both are PE alone.
    if position:
        pe = position_embedding(w.shape[-1], w) if pe is None else pe
        w = w + pe[:, None] * pe
    return w / inverse_scale


def visible_pairs(
    rows: Tensor, size: int, causal: bool, window: int | None
) -> Bool[Tensor, "*B T N"] | None:
    """Booleans: which of ``size`` keys the map rows (*B, T) see; None if each row sees all.

    A causal row sees its own and earlier keys, the lower triangle of Eq. 11. ``window`` is how many
    keys back a row sees, its own included; None for all.
    """
    if not causal and window is None:
        return None
    distance = rows[..., None] - torch.arange(size, device=rows.device)
    if window is None:
        return distance >= 0
    # Encoders with a window look as far ahead as back.
    near = distance.abs() < window
    return near & (distance >= 0) if causal else near


def _all_pairs(map_: Tensor, causal: bool, window: int | None) -> Tensor | None:
    """``visible_pairs`` of all rows of a map."""
    size = map_.shape[-1]
    return visible_pairs(torch.arange(size, device=map_.device), size, causal, window)


def mask_map(map_: Float[Tensor, "*S N N"], causal: bool, window: int | None) -> Tensor:
    """Attn_s ⊙ M (Eq. 11), and zero outside of the sliding window, if any."""
    if causal and window is None:
        return map_.tril()
    keep = _all_pairs(map_, causal, window)
    return map_ if keep is None else map_ * keep


def softmax_map(
    map_: Float[Tensor, "S N N"],
    causal: bool,
    window: int | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """The map of the ¬S ablation: a softmax over the keys that a row sees (reading 17).

    ``map_`` is the map before any mask, cut to a sequence; ``keys`` (B, N) are booleans, the map
    columns that hold a token, None for all. With ``keys`` each sample has a map, (B, S, N, N).
    """
    keep = _all_pairs(map_, causal, window)
    # Which columns hold a token differs by sample, so from here on each sample has its own map.
    if keys is not None:
        keep = keys[:, None, None, :] if keep is None else keep & keys[:, None, None, :]
    # A row that sees no key is padding, and its softmax over -∞ would be NaN. With the least finite
    # number it is uniform instead, and the product makes it zero.
    if keep is not None:
        map_ = torch.where(keep, map_, torch.finfo(map_.dtype).min)
    weights = map_.softmax(-1)
    return weights if keep is None else weights * keep


def add_map_reference(
    attention: Float[Tensor, "B H T K"],
    map_: Float[Tensor, "S N N"],
    *,
    align: Align = "start",
    causal: bool = False,
    ablation: Ablation | None = None,
) -> Float[Tensor, "B H T K"]:
    """Eqs. 12-17 in the paper's own form, on a full attention map: the slow twin of the fast term.

    For unpadded sequences; with a cache (T < K) the queries are the last T tokens. The ablations
    ¬L and ¬P change how ``map_`` is made (``full_rank_map``, ``position=False``), not this step.

    Args:
        attention: probabilities after the softmax.
        map_: Attn_s without any mask.
        align: whether the map lies on the first (Eqs. 14-15) or the last (Eq. 16) tokens.
        causal: whether the model is causal (Eq. 11).
        ablation: ``softmax`` (¬S) normalises the map before adding it; ``no_negative`` (¬N) adds it
            to the scores before the softmax. On probabilities p = softmax(x) that is
            softmax(x + a) = p·exp(a) / Σ p·exp(a).

    Returns:
        The fused map Attn^.
    """
    heads, queries, keys = attention.shape[1:]
    length = map_.shape[-1]
    # A sequence shorter than the map uses its first, or its last, rows and columns.
    size = min(length, keys)
    piece = map_[:, :size, :size] if align == "start" else map_[:, length - size :, length - size :]
    # The map is cut before a softmax, so each row's weights sum to 1 over tokens that are there.
    piece = softmax_map(piece, causal) if ablation == "softmax" else mask_map(piece, causal, None)
    # A longer sequence gets zeros beyond the map (Eqs. 14, 16).
    covered = slice(size) if align == "start" else slice(keys - size, None)
    full = attention.new_zeros(heads, keys, keys)
    full[:, covered, covered] = piece.repeat(heads // map_.shape[0], 1, 1)
    # With a cache only the last tokens are queries.
    full = full[:, keys - queries :]
    if ablation == "no_negative":
        weighted = attention * full.exp()
        return weighted / weighted.sum(-1, keepdim=True)
    return attention + full
