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
pad_left = partial(pad_sequence, batch_first=True, padding_side="left")


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
class _Batch:
    """Rows that are being written."""

    prompt_numbers: list[int]  # of each row's prompt
    written: list[int]  # how many of its tokens are answer
    done: list[bool]  # whether its answer has ended
    ids: Tensor  # (B, T); the cache has all but the last slot
    mask: Tensor  # (B, T): 1 for tokens, 0 for pads
    cache: RefilledCache  # keys and values of the first T-1 slots

    def unfinished(self) -> list[int]:
        """Which rows have not ended."""
        return [row for row, done in enumerate(self.done) if not done]


@torch.no_grad()
def write_answers(writer: Writer, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
    """Answer prompts of token ids, the longest first: the index of each, and its answer's ids (N,).

    They come in the order in which they end.

    An answer ends where ``writer.ended`` says so, or after ``writer.limit`` tokens.
    """
    if not prompts:
        return
    waiting = deque(sorted(range(len(prompts)), key=lambda number: -len(prompts[number])))
    longest = len(prompts[waiting[0]])
    slot_budget = writer.size * (longest + writer.limit)
    first = [waiting.popleft() for _ in range(min(writer.size, len(waiting)))]
    batch = _read_prompts(writer, first, prompts)
    yield from _newly_ended(writer, batch)
    while waiting or not all(batch.done):
        joining = _take_joining(writer, prompts, waiting, batch, slot_budget)
        # With no prompt left to join, ended rows are dropped once they are 1/SHARE of the batch:
        # making the batch smaller copies the cache.
        enough_ended = not waiting and sum(batch.done) * SHARE >= len(batch.done)
        if joining or enough_ended:
            batch = _refill(writer, batch, joining, prompts)
        else:
            _step(writer, batch)
        yield from _newly_ended(writer, batch)


def _take_joining(
    writer: Writer,
    prompts: Sequence[Sequence[int]],
    waiting: deque[int],
    batch: _Batch,
    slot_budget: int,
) -> list[int]:
    """Take the prompts that join now from those that wait; none until enough have room.

    Args:
        writer: how answers are written.
        prompts: the token ids of all prompts.
        waiting: the numbers of prompts that wait, the longest first; those that join leave it.
        batch: the rows that are being written.
        slot_budget: the most slots that the cache may have, of all rows together.
    """
    if not waiting:
        return []
    staying = [batch.prompt_numbers[row] for row in batch.unfinished()]
    longest = max(len(prompts[number]) for number in (*staying, waiting[0]))
    most_rows = slot_budget // (longest + writer.limit)
    join_count = min(most_rows - len(staying), len(waiting))
    # A prompt that is read alone costs almost as much as a step of the whole batch.
    worth_it = min(len(waiting), max(1, most_rows // SHARE))
    if staying and join_count < worth_it:
        return []
    return [waiting.popleft() for _ in range(join_count)]


def _refill(
    writer: Writer, batch: _Batch, joining: list[int], prompts: Sequence[Sequence[int]]
) -> _Batch:
    """The rows that have not ended and, behind them, those that join."""
    new = _read_prompts(writer, joining, prompts) if joining else None
    staying = batch.unfinished()
    if new is not None and not staying:
        return new
    # The longest row that stays needs all of its slots; pads before it are dropped.
    slots = 0
    for row in staying:
        prompt = prompts[batch.prompt_numbers[row]]
        slots = max(slots, len(prompt) + batch.written[row])
    batch.cache.refill(staying, slots - 1, None if new is None else new.cache)
    prompt_numbers = [batch.prompt_numbers[row] for row in staying]
    written = [batch.written[row] for row in staying]
    ids = batch.ids[staying, -slots:]
    mask = batch.mask[staying, -slots:]
    if new is not None:
        prompt_numbers += new.prompt_numbers
        written += new.written
        ids = _stack(ids, new.ids, writer.pad)
        mask = _stack(mask, new.mask, 0)
    done = [False] * len(prompt_numbers)
    return _Batch(prompt_numbers, written, done, ids, mask, batch.cache)


def _read_prompts(writer: Writer, numbers: list[int], prompts: Sequence[Sequence[int]]) -> _Batch:
    """Make a batch of some prompts: read them into a cache, and write each answer's first token.

    ``numbers`` are the places of these prompts among all ``prompts``.
    """
    count = len(numbers)
    prompt_ids = [torch.tensor(prompts[number]) for number in numbers]
    device = writer.model.device
    ids = pad_left(prompt_ids, padding_value=writer.pad).to(device)
    mask = pad_left([torch.ones_like(each) for each in prompt_ids]).to(device)
    batch = _Batch(numbers, [0] * count, [False] * count, ids, mask, RefilledCache())
    _write_token(writer, batch, ids, positions_of(mask))
    return batch


def _step(writer: Writer, batch: _Batch) -> None:
    """Write one more token behind every row; those that have ended get one to no use."""
    positions = batch.mask.sum(-1, keepdim=True) - 1  # (B, 1), of the last token
    # An ended row must not run out of the positions that the model has.
    done = torch.tensor(batch.done, device=positions.device)
    _write_token(writer, batch, batch.ids[:, -1:], positions.masked_fill(done[:, None], 0))


def _write_token(writer: Writer, batch: _Batch, ids: Tensor, positions: Tensor) -> None:
    """Give the model these ids (B, ·), and write the likeliest next token behind each row."""
    model = writer.model
    # Models differ in the name of the cache and in whether they take positions.
    cache_name = "cache" if "cache" in accepted(model, cache=None) else "past_key_values"
    inputs = {
        "input_ids": ids,
        "attention_mask": batch.mask,
        "use_cache": True,
        cache_name: batch.cache,
        **accepted(model, position_ids=positions),
        **only_last(model, 1, ids.device),
    }
    tokens = model(**inputs).logits[:, -1:].float().argmax(-1)  # (B, 1)
    batch.ids = torch.cat([batch.ids, tokens], -1)
    batch.mask = torch.cat([batch.mask, torch.ones_like(tokens)], -1)
    batch.written = [count + 1 for count in batch.written]


def _newly_ended(writer: Writer, batch: _Batch) -> Iterator[tuple[int, Tensor]]:
    """Mark the rows whose answers end with their last token, and yield these answers."""
    for row, is_end in enumerate(writer.ended(batch.ids).tolist()):
        if batch.done[row]:
            continue
        # The answer is what stands behind the prompt: the last ``written`` slots.
        written = batch.written[row]
        if is_end or written == writer.limit:
            batch.done[row] = True
            yield batch.prompt_numbers[row], batch.ids[row, -written:]


def _stack(above: Tensor, below: Tensor, fill: int) -> Tensor:
    """Rows of two lengths below each other, with ``fill`` before the shorter ones."""
    longest = max(above.shape[1], below.shape[1])
    parts = []
    for part in (above, below):
        parts.append(pad(part, (longest - part.shape[1], 0), value=fill))
    return torch.cat(parts)
