"""``in_parts``: attention of packed sequences on a CPU, a part of the row at a time.

Continuous batching lays all sequences into one row, and a mask keeps them apart. The kernel scores
every query against every key of the row, and hides most of the scores. Here a sequence with several
queries is computed alone, and of those with one query some at a time.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, D head width, P packed
sequences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lorada.attention.call import implementation_of, lengths_of
from lorada.attention.positions import can_be_read

# So many products of two numbers for hidden scores take as long as one more call of the kernel.
CALL = 3_000_000

Attend = Callable[..., tuple[Tensor, Tensor | None]]
Parts = Sequence[tuple[slice, slice]]  # queries and key slots that are computed together


@dataclass(frozen=True)
class _Plan:
    """The parts of a row, None for one part, and what they were made for."""

    lengths: tuple[Tensor, Tensor]
    versions: tuple[int, int]
    sizes: tuple[int, ...]
    parts: Parts | None

    def fits(self, lengths: tuple[Tensor, Tensor], sizes: tuple[int, ...]) -> bool:
        """Whether these are the same tensors, unchanged."""
        same = lengths[0] is self.lengths[0] and lengths[1] is self.lengths[1]
        return same and self.sizes == sizes and self.versions == _versions(lengths)


# The last plans: every layer of a forward has the same, or one of two if some have windows.
_plans: tuple[_Plan, ...] = ()


def in_parts(kernel: Attend) -> Attend:
    """An attention function that computes packed sequences in parts, by calls of ``kernel``."""

    def attend_in_parts(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        lengths = lengths_of(kwargs)
        parts = None
        if lengths is not None and isinstance(mask, Tensor) and not torch.compiler.is_compiling():
            parts = _parts_of(module, query, value, mask, lengths)
        if parts is None:
            return kernel(module, query, key, value, mask, **kwargs)
        outputs = [
            kernel(module, query[:, :, q], key[:, :, k], value[:, :, k], mask[:, :, q, k], **kwargs)
            for q, k in parts
        ]
        return torch.cat([output for output, _ in outputs], 1), None

    return attend_in_parts


def _parts_of(
    module: nn.Module, query: Tensor, value: Tensor, mask: Tensor, lengths: tuple[Tensor, Tensor]
) -> Parts | None:
    """The parts of a call, found once for all layers; None to compute it as it is."""
    global _plans
    if lengths[0].is_inference() or mask.dim() != 4 or len(value) > 1:
        return None
    sizes = *query.shape[1:], value.shape[2], *mask.shape[2:]
    for plan in _plans:
        if plan.fits(lengths, sizes):
            return plan.parts
    heads, queries, width, keys, *of_mask = sizes
    parts = None
    # The other kernels have no such mask, or return the scores too.
    if can_be_read(value) and of_mask == [queries, keys] and "sdpa" in implementation_of(module):
        by_query, by_key = (each.tolist() for each in lengths)
        parts = packed_parts(by_query, by_key, CALL / (heads * width))
    if parts is not None:  # slots behind the last sequence, as static shapes have them
        first, start = (each.start for each in parts[-1])
        parts = [*parts[:-1], (slice(first, queries), slice(start, keys))]
    _plans = (_Plan(lengths, _versions(lengths), sizes, parts), *_plans[:1])
    return parts


def packed_parts(by_query: list[int], by_key: list[int], call: float) -> Parts | None:
    """Which sequences are computed together; None if all are.

    Args:
        by_query: cumulative lengths of P sequences in queries, P+1 numbers.
        by_key: the same in keys.
        call: pairs of a query and a key that take as long as one more call.
    """
    parts: list[tuple[slice, slice]] = []
    run = 0  # the first of the sequences with one query that are not in a part yet
    counts = [stop - first for first, stop in pairwise(by_query)]

    def end_run(stop: int) -> None:
        count, keys = stop - run, by_key[stop] - by_key[run]
        # m parts of a run cost m calls and count · keys / m pairs, and this m makes that least.
        least = max(1, round(sqrt(count * keys / call)))
        ends = [run + count * part // least for part in range(least + 1)]
        for begin, end in pairwise(ends):
            if by_query[end] > by_query[begin]:  # static shapes have sequences without tokens
                parts.append(_part(by_query, by_key, begin, end))

    for sequence, count in enumerate(counts):
        if count > 1:
            end_run(sequence)
            parts.append(_part(by_query, by_key, sequence, sequence + 1))
            run = sequence + 1
    end_run(len(counts))
    return parts if len(parts) > 1 else None


def _part(by_query: list[int], by_key: list[int], begin: int, end: int) -> tuple[slice, slice]:
    return slice(by_query[begin], by_query[end]), slice(by_key[begin], by_key[end])


def _versions(lengths: tuple[Tensor, Tensor]) -> tuple[int, int]:
    return lengths[0]._version, lengths[1]._version
