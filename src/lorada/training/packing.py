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
    """
    by_space: list[list[int]] = [[] for _ in range(room + 1)]  # sequences, by their free room
    sequences: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        space = next((s for s in range(lengths[row], room + 1) if by_space[s]), None)
        if space is None:
            sequences.append([])
            at, space = len(sequences) - 1, room
        else:
            at = by_space[space].pop()
        sequences[at].append(row)
        by_space[space - lengths[row]].append(at)
    return sequences


def pack(dataset: Dataset, room: int) -> Dataset:
    """Sequences of at most ``room`` tokens from rows with ``input_ids`` and ``labels``."""

    def sequences() -> Iterator[dict[str, list[int]]]:
        for indices in best_fit(token_counts(dataset), room):
            rows = dataset[indices]
            yield {
                "input_ids": [token for ids in rows["input_ids"] for token in ids],
                # Mask each row's first token: the token before it belongs to another row.
                "labels": [x for labels in rows["labels"] for x in (IGNORED, *labels[1:])],
                "position_ids": [at for ids in rows["input_ids"] for at in range(len(ids))],
            }

    packed = dataset_of(sequences())
    assert packed is not None  # there is at least one row
    return packed


def packed_batch(features: list[dict[str, Any]], pad: int) -> dict[str, Any]:
    """A batch of sequences, padded to the longest; the pads are one more row.

    It has no mask: given one, transformers does not separate rows by positions.
    """
    longest = max(len(row["input_ids"]) for row in features)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in features:
        left = longest - len(row["input_ids"])
        batch["input_ids"].append(row["input_ids"] + [pad] * left)
        batch["labels"].append(row["labels"] + [IGNORED] * left)
        batch["position_ids"].append(row["position_ids"] + list(range(left)))
    # Nor does it with a cache, which a forward makes by default.
    return {**{key: torch.tensor(rows) for key, rows in batch.items()}, "use_cache": False}


@torch.no_grad()
def refuse_mixing(model: nn.Module, batch_size: int) -> None:
    """Refuse a model in which rows in one sequence see each other, in batches of this size."""
    # Flash kernels keep rows apart only in a batch of one sequence.
    device, training = next(model.parameters()).device, model.training
    model.eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]], device=device).expand(batch_size, -1)
    positions = torch.tensor([[0, 1, 2, 0, 1]], device=device).expand(batch_size, -1)
    together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 3:]
    alone = model(input_ids=ids[:1, 3:], position_ids=positions[:1, 3:], use_cache=False).logits
    model.train(training)
    if (together - alone).float().abs().max() > 0.05 * alone.float().std():
        raise ValueError(
            "packing=true: in this model the rows of a sequence see each other; leave it "
            "out, or try batches of one sequence (per_device_train_batch_size, eval_batch_size)"
        )
