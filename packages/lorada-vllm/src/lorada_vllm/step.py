"""``groups_of_step``: which tokens of a step of vLLM lie under the map, and where their values are.

A step runs several sequences at once, and of each some tokens that follow each other: all of a
prompt, a chunk of it, or the one token that is decoded. A token at position p of its sequence lies
under a map of length n if p < n, and then reads the values of positions 0 … p.

Made once per step, from numbers that the host has anyway, and used by every layer. A step in which
every sequence is longer than the map has no groups, and costs nothing.

Shapes: Q sequences of a step, R sequences of a group, C blocks of the cache per sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of one product, so that a long map is never made whole.
MOST_ROWS = 256


@dataclass(frozen=True)
class Group:
    """Tokens that are computed together: of one sequence, or one token of each of R.

    Attributes:
        tokens: their places among the tokens of the step.
        rows: their map rows, which are their positions.
        blocks: (R, C) numbers of the cache blocks with the values of positions 0 … keys-1.
        keys: how many values are read of each sequence.
        beyond: (R, 1, keys, 1) booleans, values that are not of the sequence; None without any.
    """

    tokens: slice | Tensor
    rows: slice | Tensor
    blocks: Tensor
    keys: int
    beyond: Tensor | None = None


def groups_of_step(
    starts: Sequence[int],
    lengths: Sequence[int],
    blocks: Tensor,
    block_size: int,
    reach: int,
) -> list[Group]:
    """The tokens of a step that lie under a map of length ``reach``.

    Args:
        starts: where the tokens of each sequence begin among those of the step, and where the last
            ones end; Q + 1 numbers.
        lengths: how long each sequence is after the step, Q numbers.
        blocks: (Q, …) the block table.
        block_size: tokens per block.
        reach: n, in tokens.
    """
    groups: list[Group] = []
    alone: list[tuple[int, int, int]] = []  # place, row and sequence of tokens that are decoded
    for i, length in enumerate(lengths):
        place, count = starts[i], starts[i + 1] - starts[i]
        first = length - count
        last = min(length, reach)
        if count == 1 and first < last:
            alone.append((place, first, i))
            continue
        for begin in range(first, last, MOST_ROWS):
            end = min(begin + MOST_ROWS, last)
            tokens = slice(place + begin - first, place + end - first)
            used = blocks[i : i + 1, : -(-end // block_size)]
            groups.append(Group(tokens, slice(begin, end), used, end))
    if alone:
        groups.append(_one_token_each(alone, blocks, block_size))
    return groups


def _one_token_each(alone: list[tuple[int, int, int]], blocks: Tensor, block_size: int) -> Group:
    places, positions, sequences = zip(*alone, strict=True)
    device = blocks.device
    tokens, rows, chosen = torch.tensor([places, positions, sequences], device=device)
    keys = max(positions) + 1
    used = blocks[chosen, : -(-keys // block_size)]
    if min(positions) + 1 == keys:
        return Group(tokens, rows, used, keys)
    beyond = torch.arange(keys, device=device) > rows[:, None]
    return Group(tokens, rows, used, keys, beyond[:, None, :, None])
