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
    taps: Float[Tensor, "S W"],
    rows: Tensor,
    columns: Tensor,
    causal: bool,
    seen: Tensor | None = None,
) -> Float[Tensor, "*B S T K"]:
    """The map, entry by entry, from the numbers of the tokens in their sequence.

    Args:
        taps: the weights.
        rows: (*B, T) number of each query.
        columns: (*B, K) number of each key.
        causal: which window it is; later keys of causal attention lie beyond it.
        seen: (*B, T, K) booleans: which keys a query sees; None for all.
    """
    size = taps.shape[1]
    tap = columns[..., None, :] - rows[..., :, None] - first_distance(size, causal)
    inside = (tap >= 0) & (tap < size)
    inside = inside if seen is None else inside & seen
    # A tap more, of zero, for all other pairs, so that the map is written once.
    map_: Tensor = F.pad(taps, (0, 1))[:, torch.where(inside, tap, size)]
    return map_.movedim(0, -3)  # the map heads behind the samples


def distance_product(
    taps: Float[Tensor, "S W"],
    value: Float[Tensor, "B G M D"],
    heads: int,
    *,
    causal: bool,
    window: int | None = None,
) -> Float[Tensor, "B H M D"]:
    """tile(map)·V of whole, unpadded sequences, at a cost linear in their tokens.

    The same as ``apply_map`` with ``distance_weights`` of all tokens: the slow twin.

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
    rows, columns = (torch.arange(n, device=taps.device) for n in (BLOCK, width))
    band = distance_weights(taps, rows, columns + first, causal)
    product = apply_map(band, pieces, heads)  # (B · blocks, H, C, D)
    term: Tensor = product.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
    return term[:, :, :tokens]
