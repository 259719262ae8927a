"""``groups_of_step``: which tokens of a step of vLLM lie under the map, and where their values are.

A step runs several sequences at once, and of each some tokens that follow each other: all of a
prompt, a chunk of it, or the one token that is decoded. A token at position p of its sequence lies
under a map of length n if p < n, and then reads the values of positions 0 … p.

Made once per step, from numbers that the host has anyway, and used by every layer. A CPU computes
prompts one by one, an accelerator together, as each call there costs more than its work. A step in
which every sequence is longer than the map has no groups, and costs nothing.

Shapes: Q sequences of a step, R sequences of a group, C blocks of the cache per sequence,
H query heads, G key/value heads, N map length, D head width, T tokens of a span, P pairs of a query
head and a map column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Rows of one product, so that a long map is never made whole.
MOST_ROWS = 256
# Rows that are computed together for several sequences, for each one that is needed: a group takes
# another sequence only up to here. So one long prompt does not make many short ones as long.
MOST_COMPUTED = 4


@dataclass(frozen=True)
class Cache:
    """The sizes of the cache of values: tokens per block, G and D."""

    block: int
    heads: int
    width: int


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
class Pairs:
    """Every pair of a head of a row and a column that it sees, by row, head and column.

    Attributes:
        places: (P,) where the value of the column is, in vectors of D numbers from the first of the
            cache.
        entries: (P,) where the entry of the map is, in the flat map or in its flat rows.
        begins: (T·H + 1,) the number of the first pair of each head of each token of the span, and
            P at the end.
    """

    places: Tensor
    entries: Tensor
    begins: Tensor


@dataclass(frozen=True)
class Copies:
    """How values in half precision are copied on a CPU, where this is faster than an index.

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
        span: the places from the first of them to the last.
        rows: (R,) their map rows.
        blocks: (R, C) as in ``Part``.
        keys: how many values are read of the longest sequence.
        cache: its sizes.
        on_cpu: whether numbers can be read without waiting for a device.
    """

    tokens: Tensor
    span: slice
    rows: Tensor
    blocks: Tensor
    keys: int
    cache: Cache
    on_cpu: bool

    @cached_property
    def beyond(self) -> Tensor:
        """(R, 1, keys, 1) booleans, values that are not of the sequence."""
        return ~self._seen[:, None, :, None]

    @cached_property
    def _seen(self) -> Tensor:
        return torch.arange(self.keys, device=self.rows.device) <= self.rows[:, None]

    @cached_property
    def copies(self) -> Copies:
        """How a CPU copies the values of a cache in half precision."""
        return _copies(self.blocks.tolist(), self.rows.tolist(), self.keys, self.cache)

    def pairs(self, strides: tuple[int, ...], shape: torch.Size, chosen: bool) -> Pairs:
        """The pairs of the rows' heads and columns, made once for all layers.

        Args:
            strides: of the cache's values (blocks, G, block size, D).
            shape: of the whole map (G, N, H/G, N), or of its rows (G, R, H/G, keys).
            chosen: whether it is that of the rows.
        """
        key = strides, shape, chosen
        if key not in self._pairs:
            self._pairs[key] = self._make_pairs(*key)
        return self._pairs[key]

    @cached_property
    def _pairs(self) -> dict[tuple[tuple[int, ...], torch.Size, bool], Pairs]:
        return {}

    def _make_pairs(self, strides: tuple[int, ...], shape: torch.Size, chosen: bool) -> Pairs:
        groups, rows, share, columns = shape
        size, width = self.cache.block, self.cache.width
        to_block, to_group, to_token = (step // width for step in strides[:3])
        # numpy, since small operations of torch take several times as long.
        column, head = np.arange(self.keys), np.arange(groups * share)
        row = self.rows.numpy()
        # Every column for every head of every row, (R, H, keys), of which some are seen.
        seen = np.broadcast_to(self._seen.numpy()[:, None], (len(row), len(head), self.keys))
        values = self.blocks.long().numpy()[:, column // size] * to_block + column % size * to_token
        places = values[:, None] + (head // share * to_group)[:, None]
        at = np.arange(rows) if chosen else row
        first = ((head // share * rows + at[:, None]) * share + head % share) * columns
        entries = first[..., None] + column
        counts = np.zeros(self.span.stop - self.span.start, dtype=np.int64)
        counts[self.tokens.numpy() - self.span.start] = row + 1
        begins = np.concatenate([[0], counts.repeat(len(head)).cumsum()])
        return Pairs(*map(torch.from_numpy, (places[seen], entries[seen], begins)))

    def entries(self, maps: Tensor, pairs: Pairs) -> Tensor:
        """The entries (L, P) of the maps (L, …) of all layers, read once for all."""
        key = maps.data_ptr()
        if key not in self._entries:
            every = pairs.entries.expand(len(maps), -1)
            self._entries[key] = maps.flatten(1).gather(1, every)
        return self._entries[key]

    @cached_property
    def _entries(self) -> dict[int, Tensor]:
        return {}


@dataclass(frozen=True)
class Joined:
    """Tokens that follow each other of each of R sequences, on an accelerator.

    The rows of the map from the first of them to the last are multiplied with the values of all
    sequences in one product, and each token takes its own row of its own sequence.

    Attributes:
        tokens: (T,) their places among the tokens of the step.
        own: (T,) the map row of each, counted from the first of ``rows``.
        sequence: (T,) the sequence of each, from 0 to R-1.
        rows: from the first map row to the last.
        blocks: (R, C) as in ``Part``.
        ends: (R,) how many values each sequence has.
        keys: how many values are read of the longest sequence.
    """

    tokens: Tensor
    own: Tensor
    sequence: Tensor
    rows: slice
    blocks: Tensor
    ends: Tensor
    keys: int

    @cached_property
    def beyond(self) -> Tensor:
        """(R, 1, keys, 1) booleans, values that are not of the sequence."""
        seen = torch.arange(self.keys, device=self.ends.device) < self.ends[:, None]
        return ~seen[:, None, :, None]


Group = Part | Together | Joined


@dataclass(frozen=True)
class Span:
    """Tokens of a sequence that follow each other: the first one's place, their map rows."""

    place: int
    begin: int
    end: int
    sequence: int


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
    spans: list[list[Span]] = [[] for _ in range(0, reach, MOST_ROWS)]
    alone: list[Span] = []  # tokens that are decoded
    for i, length in enumerate(lengths):
        place, count = starts[i], starts[i + 1] - starts[i]
        first = length - count
        if count == 1 and first < reach:
            alone.append(Span(place, first, length, i))
            continue
        begin, last = first, min(length, reach)
        while begin < last:
            end = min((begin // MOST_ROWS + 1) * MOST_ROWS, last)
            spans[begin // MOST_ROWS].append(Span(place + begin - first, begin, end, i))
            begin = end
    groups = [group for same in spans for group in _of_prompts(same, blocks, cache)]
    if len(alone) == 1:
        groups.append(_part(alone[0], blocks, cache))
    elif alone:
        groups.append(_together(alone, blocks, cache))
    return groups


def _of_prompts(spans: list[Span], blocks: Tensor, cache: Cache) -> list[Group]:
    """Spans of the same rows or nearly: each for itself on a CPU, where a call costs little."""
    if on_cpu(blocks):
        return [_part(span, blocks, cache) for span in spans]
    joined: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.begin, span.end)):
        more = [*joined[-1], span] if joined else []
        if more and _computed(more) <= MOST_COMPUTED * sum(one.end - one.begin for one in more):
            joined[-1] = more
        else:
            joined.append([span])
    return [
        _joined(same, blocks, cache) if len(same) > 1 else _part(same[0], blocks, cache)
        for same in joined
    ]


def _computed(spans: list[Span]) -> int:
    rows = max(span.end for span in spans) - min(span.begin for span in spans)
    return rows * len(spans)


def on_cpu(blocks: Tensor) -> bool:
    """Whether numbers can be read without waiting for a device."""
    return blocks.device.type == "cpu"


def _on_device(numbers: list[Any], device: torch.device) -> Tensor:
    """Numbers of the host on a device, which nothing waits for: the copy is from pinned memory."""
    made = torch.tensor(numbers)
    return made if device.type == "cpu" else made.pin_memory().to(device, non_blocking=True)


def _part(span: Span, blocks: Tensor, cache: Cache) -> Part:
    count, used = span.end - span.begin, blocks[span.sequence, : -(-span.end // cache.block)]
    only = int(used[0]) if len(used) == 1 and on_cpu(blocks) else None
    tokens, rows = slice(span.place, span.place + count), slice(span.begin, span.end)
    return Part(tokens, rows, used, span.end, only)


def _together(alone: list[Span], blocks: Tensor, cache: Cache) -> Together:
    numbers = [(span.place, span.begin, span.sequence) for span in alone]
    tokens, rows, chosen = _on_device(numbers, blocks.device).unbind(1)
    keys = max(span.end for span in alone)
    used = blocks[chosen, : -(-keys // cache.block)]
    span = slice(alone[0].place, alone[-1].place + 1)
    return Together(tokens, span, rows, used, keys, cache, on_cpu(blocks))


def _joined(spans: list[Span], blocks: Tensor, cache: Cache) -> Joined:
    rows = slice(min(span.begin for span in spans), max(span.end for span in spans))
    of_tokens = [
        (span.place + i, span.begin + i - rows.start, number)
        for number, span in enumerate(spans)
        for i in range(span.end - span.begin)
    ]
    of_sequences = [(span.sequence, span.end, 0) for span in spans]
    # One copy for all.
    numbers = _on_device(of_tokens + of_sequences, blocks.device)
    tokens, own, sequence = numbers[: len(of_tokens)].unbind(1)
    chosen, ends, _ = numbers[len(of_tokens) :].unbind(1)
    used = blocks[chosen, : -(-rows.stop // cache.block)]
    return Joined(tokens, own, sequence, rows, used, ends, rows.stop)


def _copies(blocks: list[list[int]], rows: list[int], keys: int, cache: Cache) -> Copies:
    values = torch.zeros(len(blocks), cache.heads, keys, cache.width)
    parts = []
    for sequence, used, row in zip(values, blocks, rows, strict=True):
        for begin, block in zip(range(0, row + 1, cache.block), used, strict=False):
            end = min(begin + cache.block, row + 1)
            parts.append((sequence[:, begin:end], block, end - begin))
    return Copies(values, parts)
