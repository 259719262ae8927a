"""The product of a causal map with the values, in blocks, at a cost linear in the tokens.

A causal mask forbids W_a (W_b V), in which every row sees all keys. So the tokens are cut into
blocks. For the keys of its own block a row uses the lower triangle of a small map; for the keys of
all earlier blocks it uses a running sum of W_b V.

Shapes: B batch, H query heads, G key/value heads, S map heads, M tokens, R rank, D head width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Tokens in a block. On CPUs 32 is as fast as 16, with half as many blocks, and faster than 64 and
# 128 (benchmarks/NOTES.md).
BLOCK = 32
# Up to so many tokens an accelerator makes the map: its multiplications take less time there than
# the 20 launches by which the blocks are more.
DENSE = 512


def product_form(
    size: int,
    rank: int,
    share: int,
    *,
    causal: bool,
    window: int | None = None,
    device: str = "cpu",
) -> Literal["dense", "low_rank", "blocks"]:
    """The form of the product of a map with the values that costs least.

    ``dense`` makes the map, ``low_rank`` is W_a (W_b V), ``blocks`` is ``causal_blocks``.
    ``size`` is M, ``share`` the query heads of a key/value head, ``window`` how many keys
    back a row sees. Costs are counted in multiplications for each number of the result.
    """
    if window is not None and window < size:
        return "dense"  # W_b V and the running sum include keys that the window hides
    if causal and device != "cpu" and size <= DENSE:
        return "dense"
    if causal:
        sums = rank if _outgrow(share, rank) else share * rank
        return "blocks" if BLOCK + rank + sums < size else "dense"
    return "low_rank" if 2 * rank < size else "dense"


def _outgrow(share: int, rank: int) -> bool:
    """Whether a group's running sums have more rows than a block; then each head gets its own V."""
    return share * rank > BLOCK


def causal_blocks(
    left: Float[Tensor, "S M R"],
    right: Float[Tensor, "S R M"],
    value: Float[Tensor, "B G M D"],
    heads: int,
) -> Float[Tensor, "B H M D"]:
    """tile(tril(left right)) · V.

    Both parts of a block are one product: [triangle, left] times the values of the block stacked on
    the running sum of ``right``·V, which has R rows for each head.
    """
    batch, groups, size, width = value.shape
    share, rank = heads // groups, left.shape[-1]
    # All query heads of a group share one V, unless their sums would have more rows than a block.
    if _outgrow(share, rank):
        value, groups, share = value.repeat_interleave(share, dim=1), heads, 1
    value = side_by_side(value)
    # The last block is filled up with zeros, which add nothing.
    blocks = -(-size // BLOCK)
    fill = blocks * BLOCK - size
    if fill:
        left, right = F.pad(left, (0, 0, 0, fill)), F.pad(right, (0, fill))
        value = F.pad(value, (0, 0, 0, fill))

    def tiled(pieces: Tensor) -> Tensor:  # (S, blocks, p, q) → (G, blocks, H/G, p, q)
        tiles = heads // left.shape[0]
        pieces = pieces.repeat(tiles, 1, 1, 1) if tiles > 1 else pieces
        return pieces.view(groups, share, *pieces.shape[1:]).transpose(1, 2)

    rows = left.unflatten(1, (blocks, BLOCK))
    columns = right.unflatten(2, (blocks, BLOCK)).transpose(1, 2)
    values = value.unflatten(1, (blocks, BLOCK))
    sums = (tiled(columns).flatten(2, 3) @ values).cumsum(1)
    sums = F.pad(sums, (0, 0, 0, 0, 1, -1))  # shifted by one: a block gets the sum of those before
    # The sums of a group's heads are stacked. The identity places each head's ``left`` on its own R
    # of them, and zeros on those of the other heads.
    identity = torch.eye(share, dtype=left.dtype, device=left.device)[:, None, :, None]
    own_rows = (tiled(rows).unsqueeze(4) * identity).flatten(4)
    beside = torch.cat((tiled((rows @ columns).tril()), own_rows), -1).flatten(2, 3)
    output = beside @ torch.cat((values, sums), 2)
    # Copied once, into the order that attention's output has: (batch, tokens, heads, D).
    output = output.view(groups, blocks, share, BLOCK, batch, width)
    output = output.permute(4, 1, 3, 0, 2, 5).reshape(batch, blocks * BLOCK, heads, width)
    return (output[:, :size] if fill else output).transpose(1, 2)


def side_by_side(value: Tensor) -> Tensor:
    """Values (B, G, M, D) as those of one sample that is B times as wide, (G, M, B·D)."""
    return value.permute(1, 2, 0, 3).flatten(2)
