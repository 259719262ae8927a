"""The map by distance: a weight for each distance between query and key, the same for all queries.

    term_i = Σ_j t_h[j - i] v_j / inverse_scale,    over the keys j within the window

A map head has W weights, its taps. Tap m is that of the key at distance j - i = m + ``first``: in
causal attention the window ends at the query itself (``first`` = 1 - W), elsewhere the query is in
its middle (``first`` = -(W - 1)/2). This is an extension of this project, not of the paper.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K keys, M tokens of a
whole sequence, W taps, D head width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lorada.functional.product import apply_map

# Tokens in a block. A block of C tokens multiplies C + W - 1 keys, so small blocks waste much of
# a product on taps of zero at its corners and large ones even more.
BLOCK = 32


def first_distance(taps: int, causal: bool) -> int:
    """The distance j - i from the query to the key of tap 0."""
    return 1 - taps if causal else -(taps // 2)


def distance_weights(
    taps: Float[Tensor, "S W"], rows: Tensor, columns: Tensor, causal: bool
) -> Float[Tensor, "*B S T K"]:
    """The map, entry by entry, from the numbers of the tokens in their sequence.

    Args:
        taps: the weights.
        rows: (*B, T) number of each query.
        columns: (*B, K) number of each key.
        causal: which window it is; later keys of causal attention lie beyond it.
    """
    size = taps.shape[1]
    tap = columns[..., None, :] - rows[..., :, None] - first_distance(size, causal)
    inside = (tap >= 0) & (tap < size)
    # (S, *B, T, K), then the map heads behind the samples.
    map_: Tensor = taps[:, tap.clamp(0, size - 1)] * inside
    return map_.movedim(0, -3)


def distance_product(
    taps: Float[Tensor, "S W"],
    value: Float[Tensor, "B G M D"],
    heads: int,
    *,
    causal: bool,
    window: int | None = None,
) -> Float[Tensor, "B H M D"]:
    """tile(map)·V of whole, unpadded sequences, at a cost linear in their tokens.

    The tokens are cut into blocks. The part of the map that a block meets is the same for all
    blocks: a band of C rows and C + W - 1 columns.

    Args:
        taps: the weights.
        value: the values.
        heads: H, a multiple of S and of G.
        causal: which window it is.
        window: width of a sliding attention window, in tokens; None without one.
    """
    batch, _, tokens, _ = value.shape
    size, first = taps.shape[1], first_distance(taps.shape[1], causal)
    if window is not None:
        distance = torch.arange(size, device=taps.device) + first
        taps = taps * (distance.abs() < window)
    blocks = -(-tokens // BLOCK)
    # As many zeros as the first query has keys before it, and the last of a full block behind it.
    value = F.pad(value, (0, 0, -first, blocks * BLOCK - tokens + size - 1 + first))
    width = BLOCK + size - 1
    pieces = value.unfold(2, width, BLOCK).permute(0, 2, 1, 4, 3).flatten(0, 1)
    rows = torch.arange(BLOCK, device=taps.device)
    columns = torch.arange(width, device=taps.device) + first
    band = distance_weights(taps, rows, columns, causal)
    product = apply_map(band, pieces, heads)  # (B · blocks, H, C, D)
    term: Tensor = product.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
    return term[:, :, :tokens]


def distance_term_reference(
    taps: Float[Tensor, "S W"],
    value: Float[Tensor, "B G M D"],
    heads: int,
    *,
    causal: bool,
    window: int | None = None,
) -> Float[Tensor, "B H M D"]:
    """The slow twin of ``distance_product``: the sum of the module's docstring, key by key."""
    tokens, groups = value.shape[2], value.shape[1]
    first = first_distance(taps.shape[1], causal)
    rows: list[Tensor] = []
    for head in range(heads):
        own, values = taps[head % len(taps)], value[:, head // (heads // groups)]
        for i in range(tokens):
            own_term = torch.zeros_like(values[:, 0])
            for j in range(tokens):
                tap, near = j - i - first, window is None or abs(j - i) < window
                if 0 <= tap < taps.shape[1] and near:
                    own_term = own_term + own[tap] * values[:, j]
            rows.append(own_term)
    term: Tensor = torch.stack(rows, 1).unflatten(1, (heads, tokens))
    return term
