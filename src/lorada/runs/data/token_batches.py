"""Makes batches by tokens: as many rows as fit into a number of tokens, pads included.

    tokens of a batch = rows · longest row

Rows of a batch are of similar length, so hardly any token is a pad, and a batch of short rows has
more of them than one of long rows. Which rows share a batch depends on the seed alone, the order of
the batches also on the epoch: all epochs have equally many, from which the Trainer computes steps.
"""

from collections.abc import Iterator

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from lorada.runs.data.dataset import lengths_of
from lorada.runs.data.length_sampler import STRETCH
from lorada.runs.recipe import Recipe
from lorada.tasks.rows import Form

# Settings of the training that say in another way which rows share a batch.
OTHERS = (
    "per_device_train_batch_size", "train_sampling_strategy", "dataloader_drop_last",
    "auto_find_batch_size", "accelerator_config",
)  # fmt: skip
Lengths = tuple[int, ...]  # tokens of a row in each tensor that a batch pads for itself


def refuse_token_batches(recipe: Recipe, form: Form) -> None:
    """Refuse ``tokens_per_batch`` with rows or settings that it does not go together with.

    Raises:
        ValueError: naming what does not.
    """
    asked = f"tokens_per_batch={recipe.tokens_per_batch}"
    if form == "choice":
        raise ValueError(
            f"{asked} is not for rows with candidates: give training.per_device_train_batch_size"
        )
    others = {
        f"training.{name}": recipe.training[name] for name in OTHERS if name in recipe.training
    }
    if recipe.packing:
        others["packing"] = "true"
    for name, value in others.items():
        raise ValueError(f"{asked} and {name}={value} exclude each other: leave one out")


def row_lengths(dataset: Dataset, *, writes: bool) -> list[Lengths]:
    """Tokens of each row; with ``writes``, for encoder–decoders, of its input and of its labels."""
    inputs = lengths_of(dataset)
    if not writes:
        return [(length,) for length in inputs]
    return list(zip(inputs, map(len, dataset["labels"]), strict=True))


class TokenBatches(Sampler[list[int]]):
    """Yields batches: lists of the indices of rows.

    Args:
        lengths: of each row, as ``row_lengths`` gives them.
        tokens: the most tokens of a batch.
        seed: makes the batches and, together with the number of the epoch, their order.
        processes: how many processes take turns; the number of batches is a multiple of it.

    Raises:
        ValueError: for a row that does not fit into a batch, or fewer rows than processes.
    """

    def __init__(self, lengths: list[Lengths], tokens: int, seed: int, processes: int = 1) -> None:
        longest = max(map(sum, lengths))
        if longest > tokens:
            raise ValueError(
                f"tokens_per_batch={tokens} is less than the {longest} tokens of the longest row: "
                f"give {longest} or more, or lower max_length"
            )
        if len(lengths) < processes:
            raise ValueError(
                f"{processes} processes have no batch each of {len(lengths)} rows: start fewer"
            )
        self.seed, self.epoch = seed, 0
        self.batches = _batches(lengths, tokens, seed)
        while len(self.batches) % processes:
            _split_one(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch; each has another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for number in torch.randperm(len(self), generator=generator).tolist():
            yield self.batches[number]


def _batches(lengths: list[Lengths], tokens: int, seed: int) -> list[list[int]]:
    """All rows in batches of similar length; rows of one length are together at random."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(lengths), generator=generator).tolist()
    size = STRETCH * max(1, tokens * len(rows) // sum(map(sum, lengths)))
    batches: list[list[int]] = []
    for start in range(0, len(rows), size):
        longest: Lengths = ()  # in the last batch, which each stretch begins anew
        for row in sorted(rows[start : start + size], key=lambda row: sum(lengths[row])):
            together = tuple(map(max, longest, lengths[row])) if longest else lengths[row]
            if longest and (len(batches[-1]) + 1) * sum(together) <= tokens:
                batches[-1].append(row)
                longest = together
            else:
                batches.append([row])
                longest = lengths[row]
    return batches


def _split_one(batches: list[list[int]]) -> None:
    """Halve the batch with the most rows."""
    largest = max(range(len(batches)), key=lambda number: len(batches[number]))
    rows = batches[largest]
    batches[largest] = rows[: len(rows) // 2]
    batches.append(rows[len(rows) // 2 :])
