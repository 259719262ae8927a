"""Packs several rows into one sequence, so that hardly any token is padding.

The positions of each row start at 0. From them transformers' masks keep the rows apart, and each
row gets its own map, so a row is read as if alone. ``refuse_mixing`` checks that on the model.
"""

from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from lorada.data.batches import IGNORED, dataset_of, token_counts


def best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Distribute rows of these lengths over sequences with ``room`` tokens, by best-fit decreasing.

    From the longest row on, each goes into the sequence that it leaves the least room in. (TRL's
    packing does the same, but then ``packing=true`` would need TRL.)

    Args:
        lengths: tokens of each row, at most ``room``.
        room: tokens of a sequence.
    """
    sequences: list[list[int]] = []  # each the numbers of its rows
    # Free tokens → the numbers of the sequences that have as many.
    by_space: list[list[int]] = [[] for _ in range(room + 1)]
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for row in longest_first:
        length = lengths[row]
        space = _least_space(by_space, length)
        if space is None:  # the row fits into none, and begins a sequence
            sequences.append([])
            space, sequence = room, len(sequences) - 1
        else:
            sequence = by_space[space].pop()
        sequences[sequence].append(row)
        by_space[space - length].append(sequence)
    return sequences


def _least_space(by_space: list[list[int]], length: int) -> int | None:
    """The fewest free tokens of a sequence that a row of a length fits into; None if none is."""
    for space in range(length, len(by_space)):
        if by_space[space]:
            return space
    return None


def pack(dataset: Dataset, room: int) -> Dataset:
    """Sequences of at most ``room`` tokens from rows with ``input_ids`` and ``labels``."""

    def sequences() -> Iterator[dict[str, list[int]]]:
        for indices in best_fit(token_counts(dataset), room):
            rows = dataset[indices]
            yield _join(rows["input_ids"], rows["labels"])

    packed = dataset_of(sequences())
    assert packed is not None  # there is at least one row
    return packed


def _join(ids_by_row: list[list[int]], labels_by_row: list[list[int]]) -> dict[str, list[int]]:
    """One sequence of several rows."""
    sequence: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for ids, labels in zip(ids_by_row, labels_by_row, strict=True):
        sequence["input_ids"] += ids
        # Mask each row's first token: the token before it belongs to another row.
        sequence["labels"] += (IGNORED, *labels[1:])
        sequence["position_ids"] += range(len(ids))
    return sequence


def packed_batch(features: list[dict[str, Any]], pad: int) -> dict[str, Any]:
    """A batch of sequences (B, longest), padded to the longest; the pads are one more row.

    It has no mask: given one, transformers does not separate rows by positions.
    """
    longest = max(len(sequence["input_ids"]) for sequence in features)
    ids, labels, positions = [], [], []
    for sequence in features:
        pads = longest - len(sequence["input_ids"])
        ids.append(sequence["input_ids"] + [pad] * pads)
        labels.append(sequence["labels"] + [IGNORED] * pads)
        positions.append(sequence["position_ids"] + list(range(pads)))
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "position_ids": torch.tensor(positions),
        # With a cache, which a forward makes by default, it does not separate them either.
        "use_cache": False,
    }


@torch.no_grad()
def refuse_mixing(model: nn.Module, batch_size: int) -> None:
    """Refuse a model in which rows in one sequence see each other, in batches of this size.

    Raises:
        ValueError: if the logits of a row beside another differ from those of the row alone.
    """
    # Flash kernels keep rows apart only in a batch of one sequence, so the size matters.
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    # A row of three tokens and one of two in each sequence, and the second row by itself.
    ids = torch.tensor([[5, 6, 7, 8, 9]], device=device).expand(batch_size, -1)
    positions = torch.tensor([[0, 1, 2, 0, 1]], device=device).expand(batch_size, -1)
    together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 3:]
    alone = model(input_ids=ids[:1, 3:], position_ids=positions[:1, 3:], use_cache=False).logits
    model.train(was_training)
    # Kernels round otherwise for other shapes; rows that see each other are off by far more.
    if (together - alone).float().abs().max() > 0.05 * alone.float().std():
        raise ValueError(
            "packing=true: in this model the rows of a sequence see each other; leave it "
            "out, or try batches of one sequence (per_device_train_batch_size, eval_batch_size)"
        )
