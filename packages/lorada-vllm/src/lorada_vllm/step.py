"""``groups_of_step``: which tokens of a step of vLLM lie under the map, and where their values are.

A step runs several sequences at once, and of each some tokens that follow each other: all of a
prompt, a chunk of it, or the one token that is decoded. A token at position p of its sequence lies
under a map of length n if p < n, and then reads the values of positions 0 … p.

Made once per step, from numbers that the host has anyway, and used by every layer. A step in which
every sequence is longer than the map has no groups, and costs nothing.

Shapes: Q sequences of a step, R sequences of a group, C blocks of the cache per sequence,
G key/value heads, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of one product, so that a long map is never made whole.
MOST_ROWS = 256


@dataclass(frozen=True)
class Part:
    """Tokens of one sequence that follow each other.

    Attributes:
        tokens: their places among the tokens of the step.
        rows: their map rows, which are their positions.
        blocks: (C,) the numbers of the cache blocks with the values of positions 0 … keys-1.
        keys: how many values are read.
        only: the number of the block if there is one, on a CPU; None else.
    """

    tokens: slice
    rows: slice
    blocks: Tensor
    keys: int
    only: int | None


@dataclass(frozen=True)
class Copies:
    """How the values of a ``Together`` are copied on a CPU, where this is faster than an index.

    Attributes:
        values: (R, G, keys, D) in fp32, zeros behind the end of each sequence. Every layer copies
            its own values over those of the layer before.
        parts: parts of ``values``, with the number of a block and how many of its tokens they get.
    """

    values: Tensor
    parts: list[tuple[Tensor, int, int]]


@dataclass(frozen=True)
class Together:
    """One token of each of R sequences.

    Attributes:
        tokens: (R,) their places among the tokens of the step.
        rows: (R,) their map rows.
        blocks: (R, C) as in ``Part``.
        keys: how many values are read of each sequence.
        beyond: (R, 1, keys, 1) booleans, values that are not of the sequence.
        copies: for a CPU; None on a GPU.
    """

    tokens: Tensor
    rows: Tensor
    blocks: Tensor
    keys: int
    beyond: Tensor
    copies: Copies | None


Group = Part | Together


@dataclass(frozen=True)
class Cache:
    """The sizes of the cache of values: tokens per block, G and D."""

    block: int
    heads: int
    width: int


def groups_of_step(
    starts: Sequence[int], lengths: Sequence[int], blocks: Tensor, cache: Cache, reach: int
) -> list[Group]:
    """The tokens of a step that lie under a map of length ``reach``.

    Args:
        starts: where the tokens of each sequence begin among those of the step, and where the last
            ones end; Q + 1 numbers.
        lengths: how long each sequence is after the step, Q numbers.
        blocks: (Q, …) the block table.
        cache: the sizes of the cache.
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
            groups.append(_part(place + begin - first, begin, end, blocks[i], cache))
    if len(alone) == 1:
        ((place, row, i),) = alone
        groups.append(_part(place, row, row + 1, blocks[i], cache))
    elif alone:
        groups.append(_together(alone, blocks, cache))
    return groups


def _part(place: int, begin: int, end: int, blocks: Tensor, cache: Cache) -> Part:
    used = blocks[: -(-end // cache.block)]
    only = int(used[0]) if len(used) == 1 and used.device.type == "cpu" else None
    return Part(slice(place, place + end - begin), slice(begin, end), used, end, only)


def _together(alone: list[tuple[int, int, int]], blocks: Tensor, cache: Cache) -> Together:
    device = blocks.device
    tokens, rows, chosen = torch.tensor(alone, device=device).unbind(1)
    keys = max(row for _, row, _ in alone) + 1
    used = blocks[chosen, : -(-keys // cache.block)]
    beyond = (torch.arange(keys, device=device) > rows[:, None])[:, None, :, None]
    copies = None
    if device.type == "cpu":
        copies = _copies(used.tolist(), [row + 1 for _, row, _ in alone], keys, cache)
    return Together(tokens, rows, used, keys, beyond, copies)


def _copies(blocks: list[list[int]], lengths: list[int], keys: int, cache: Cache) -> Copies:
    values = torch.zeros(len(blocks), cache.heads, keys, cache.width)
    parts = []
    for sequence, used, length in zip(values, blocks, lengths, strict=True):
        for begin, block in zip(range(0, length, cache.block), used, strict=False):
            end = min(begin + cache.block, length)
            parts.append((sequence[:, begin:end], block, end - begin))
    return Copies(values, parts)
