"""Greedy generation in a batch that is refilled: the next prompts take the place of ended answers.

A batch that runs until its longest answer ends computes the rows that ended earlier to no use. Here
they leave, and the next prompts join so that they end at the same slot as the rest. The model sees
what it sees in any batch with pads on the left, so each answer is that of ``generate``.

Shapes: B rows, T slots of a row: pads, its prompt, and what was written behind it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from lorada.inference.continuous_batching_cache import RefilledCache
from lorada.training.models.candidate_scores import accepted, only_last, positions_of

# A batch is refilled when 1/8 of its rows have ended: a prompt that is read alone costs almost as
# much time as a step of the whole batch.
SHARE = 8

Ended = Callable[[Tensor], Tensor]  # says which rows (B,) of ids (B, T) end with their last token
padded = partial(pad_sequence, batch_first=True, padding_side="left")


@dataclass(frozen=True)
class Writer:
    """How answers are written."""

    model: Any  # of transformers, the base under PEFT
    ended: Ended
    limit: int  # most tokens of an answer
    pad: int  # the id of pads
    # How many rows are written at once, and more if they are shorter than the longest: what the
    # cache holds is at most that of so many rows as long as the longest.
    size: int


@dataclass
class _Rows:
    """Rows that are being written."""

    numbers: list[int]  # of each row's prompt
    written: list[int]  # how many of its tokens are answer
    done: list[bool]  # whether its answer has ended
    ids: Tensor  # (B, T); the cache has all but the last slot
    mask: Tensor  # (B, T): 1 for tokens, 0 for pads
    cache: RefilledCache  # keys and values of the first T-1 slots

    def kept(self) -> list[int]:
        """Which rows have not ended."""
        return [row for row, done in enumerate(self.done) if not done]


@torch.no_grad()
def write_answers(writer: Writer, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
    """Answer prompts of token ids, the longest first: the index of each, and its answer's ids (N,).

    They come in the order in which they end.
    """
    if not prompts:
        return
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
    budget = writer.size * (len(prompts[waiting[0]]) + writer.limit)
    first = [waiting.popleft() for _ in range(min(writer.size, len(waiting)))]
    rows = _read(writer, first, prompts)
    yield from _ended(writer, rows)
    while waiting or not all(rows.done):
        joining = _next_rows(writer, prompts, waiting, rows, budget)
        # Where none may join, the others go on alone once enough have ended.
        if joining or (not waiting and sum(rows.done) * SHARE >= len(rows.done)):
            rows = _refilled(writer, rows, joining, prompts)
        else:
            _step(writer, rows)
        yield from _ended(writer, rows)


def _next_rows(
    writer: Writer, prompts: Sequence[Sequence[int]], waiting: deque[int], rows: _Rows, budget: int
) -> list[int]:
    """Take the prompts that join now from those that wait; none until enough have room."""
    if not waiting:
        return []
    staying = [rows.numbers[k] for k in rows.kept()]
    longest = max(len(prompts[n]) for n in (*staying, waiting[0]))
    most = budget // (longest + writer.limit)
    free = min(most - len(staying), len(waiting))
    if staying and free < min(len(waiting), max(1, most // SHARE)):
        return []
    return [waiting.popleft() for _ in range(free)]


def _refilled(
    writer: Writer, rows: _Rows, joining: list[int], prompts: Sequence[Sequence[int]]
) -> _Rows:
    """The rows that have not ended and, behind them, those that join."""
    new = _read(writer, joining, prompts) if joining else None
    kept = rows.kept()
    if new is not None and not kept:
        return new
    # What the longest of them needs.
    slots = max(len(prompts[rows.numbers[k]]) + rows.written[k] for k in kept)
    rows.cache.refill(kept, slots - 1, None if new is None else new.cache)
    numbers, written = [rows.numbers[k] for k in kept], [rows.written[k] for k in kept]
    ids, mask = rows.ids[kept, -slots:], rows.mask[kept, -slots:]
    if new is not None:
        numbers, written = numbers + new.numbers, written + new.written
        ids, mask = _stacked(ids, new.ids, writer.pad), _stacked(mask, new.mask, 0)
    return _Rows(numbers, written, [False] * len(numbers), ids, mask, rows.cache)


def _read(writer: Writer, numbers: list[int], prompts: Sequence[Sequence[int]]) -> _Rows:
    """Read some prompts and write the first token of each answer."""
    each, count = [torch.tensor(prompts[n]) for n in numbers], len(numbers)
    ids = padded(each, padding_value=writer.pad).to(writer.model.device)
    mask = padded([torch.ones_like(one) for one in each]).to(writer.model.device)
    rows = _Rows(numbers, [0] * count, [False] * count, ids, mask, RefilledCache())
    _write(writer, rows, ids, positions_of(mask))
    return rows


def _step(writer: Writer, rows: _Rows) -> None:
    """Write one more token behind every row; those that have ended get one to no use."""
    positions = rows.mask.sum(-1, keepdim=True) - 1
    # An ended row must not run out of the positions that the model has.
    over = torch.tensor(rows.done, device=positions.device)
    _write(writer, rows, rows.ids[:, -1:], positions.masked_fill(over[:, None], 0))


def _write(writer: Writer, rows: _Rows, ids: Tensor, positions: Tensor) -> None:
    """Give the model these ids (B, ·), and write the likeliest next token behind each row."""
    model = writer.model
    name = "cache" if "cache" in accepted(model, cache=None) else "past_key_values"
    given = {
        "input_ids": ids, "attention_mask": rows.mask, "use_cache": True, name: rows.cache,
        **accepted(model, position_ids=positions), **only_last(model, 1, ids.device),
    }  # fmt: skip
    tokens = model(**given).logits[:, -1:].float().argmax(-1)  # (B, 1)
    rows.ids = torch.cat([rows.ids, tokens], -1)
    rows.mask = torch.cat([rows.mask, torch.ones_like(tokens)], -1)
    rows.written = [count + 1 for count in rows.written]


def _ended(writer: Writer, rows: _Rows) -> Iterator[tuple[int, Tensor]]:
    """Mark the rows whose answers end with their last token, and yield these answers."""
    for row, last in enumerate(writer.ended(rows.ids).tolist()):
        if not rows.done[row] and (last or rows.written[row] == writer.limit):
            rows.done[row] = True
            yield rows.numbers[row], rows.ids[row, -rows.written[row] :]


def _stacked(above: Tensor, below: Tensor, fill: int) -> Tensor:
    """Rows of two lengths below each other, with ``fill`` before the shorter ones."""
    longest = max(above.shape[1], below.shape[1])
    parts = (pad(part, (longest - part.shape[1], 0), value=fill) for part in (above, below))
    return torch.cat(list(parts))
