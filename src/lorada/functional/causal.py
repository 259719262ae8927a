"""In which form a map meets the values, and the form of causal ones: by blocks of tokens.

Shapes: B batch, H query heads, G key/value heads, S map heads, M tokens, R rank, D head width.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Matmul = Callable[[Tensor, Tensor], Tensor]

# Tokens that meet each other through a piece of the map in the causal product: as fast as 16 on
# processors, with half as many blocks, and faster than 64 and 128 (docs/performance.md).
BLOCK = 32


def product_form(
    size: int, rank: int, share: int, *, causal: bool, window: int | None = None
) -> Literal["dense", "low_rank", "blocks"]:
    """The form in which a map of ``size`` tokens meets the values with the fewest multiplications.

    For each number of the term these are ``size`` for the map itself; 2R for W_a (W_b V), which
    sees every key; and where only earlier keys are seen BLOCK, R for the sums, and as many as there
    are sums. A window narrower than the map needs the map itself.

    Args:
        size: M.
        rank: R.
        share: query heads of a key/value head, H / G.
        causal: whether a row sees only its own and earlier keys.
        window: how many keys back a row sees; None for all.
    """
    if window is not None and window < size:
        return "dense"
    if causal:
        sums = rank if _outgrow(share, rank) else share * rank
        return "blocks" if BLOCK + rank + sums < size else "dense"
    return "low_rank" if 2 * rank < size else "dense"


def _outgrow(share: int, rank: int) -> bool:
    """Whether the sums of a group's heads would outgrow a block, so that each has its own V."""
    return share * rank > BLOCK


def causal_blocks(
    left: Float[Tensor, "*B S M R"],
    right: Float[Tensor, "*B S R M"],
    value: Float[Tensor, "B G M D"],
    heads: int,
    matmul: Matmul = torch.matmul,
) -> Float[Tensor, "B H M D"]:
    """tile(tril(left right)) · V without the map, whose cost is then linear in M.

    A token meets the keys of its own block through a small lower triangle, and all keys before
    that block through the running sum of ``right``·V, R rows for each head. Both are one product:
    the triangle beside ``left``, times the values above the sums.
    """
    batch, groups, size, width = value.shape
    share, rank = heads // groups, left.shape[-1]
    if _outgrow(share, rank):
        value, groups, share = value.repeat_interleave(share, dim=1), heads, 1
    samples = 1
    if left.dim() == 3:
        samples = batch
        left, right, value = left[None], right[None], side_by_side(value)
    blocks = -(-size // BLOCK)
    fill = blocks * BLOCK - size
    if fill:
        left, right = F.pad(left, (0, 0, 0, fill)), F.pad(right, (0, fill))
        value = F.pad(value, (0, 0, 0, fill))

    def tiled(pieces: Tensor) -> Tensor:  # (·, S, blocks, p, q) → (·, G, blocks, H/G, p, q)
        tiles = heads // left.shape[1]
        pieces = pieces.repeat(1, tiles, 1, 1, 1) if tiles > 1 else pieces
        return pieces.view(pieces.shape[0], groups, share, *pieces.shape[2:]).transpose(2, 3)

    rows = left.unflatten(2, (blocks, BLOCK))
    columns = right.unflatten(3, (blocks, BLOCK)).transpose(2, 3)
    values = value.unflatten(2, (blocks, BLOCK))
    sums = (tiled(columns).flatten(3, 4) @ values).cumsum(2)
    sums = F.pad(sums, (0, 0, 0, 0, 1, -1))  # of the blocks before
    # Of the sums of its group a head sees its own.
    own = torch.eye(share, dtype=left.dtype, device=left.device)[:, None, :, None]
    spread = (tiled(rows).unsqueeze(5) * own).flatten(5)
    beside = torch.cat((tiled((rows @ columns).tril()), spread), -1).flatten(3, 4)
    output = matmul(beside, torch.cat((values, sums), 3))
    # Copied once, into the order that attention's output has: (batch, tokens, heads, D).
    output = output.view(left.shape[0], groups, blocks, share, BLOCK, samples, width)
    output = output.permute(0, 5, 2, 4, 1, 3, 6).reshape(batch, blocks * BLOCK, heads, width)
    return (output[:, :size] if fill else output).transpose(1, 2)


def side_by_side(value: Tensor) -> Tensor:
    """Values (B, G, M, D) as those of one sample, (1, G, M, B·D)."""
    return value.permute(1, 2, 0, 3).flatten(2)[None]


def apart(product: Tensor, value: Tensor) -> Tensor:
    """What became of them, (1, H, M, B·D), sample by sample again, (B, H, M, D)."""
    sample_by_sample: Tensor = product[0].unflatten(2, (value.shape[0], value.shape[-1]))
    return sample_by_sample.permute(2, 0, 1, 3)
