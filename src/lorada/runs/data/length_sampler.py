"""Batches of rows of like length, in random order.

transformers' own sampler hands out the batches of a stretch by falling length. Where length goes
with the task or the label, a model then sees one kind of rows after another.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

STRETCH = 50  # batches whose rows are sorted together, as transformers has it


class LikeLengths(Sampler[int]):
    """Indices, batch by batch: which rows share a batch is random but for their lengths.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch, all that are accumulated for a step.
        seed: of the order, with the epoch's number.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Another epoch has another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = torch.randperm(len(self), generator=generator).tolist()
        last = len(rows) % self.batch_size  # a short batch, which has to be the last
        rows, rest = rows[: len(rows) - last], rows[len(rows) - last :]
        size, batches = self.batch_size, []
        for start in range(0, len(rows), STRETCH * size):
            stretch = sorted(rows[start : start + STRETCH * size], key=self.lengths.__getitem__)
            batches += [stretch[at : at + size] for at in range(0, len(stretch), size)]
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[number]
        yield from rest
