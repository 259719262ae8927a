"""Makes batches of rows of similar length, in random order.

transformers' sampler sorts the batches of each stretch of rows by length, the longest first. If
length depends on the task or the label, the model then sees one kind of rows after another.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

STRETCH = 50  # batches of rows that are sorted together; transformers has the same


class LengthGroupedSampler(Sampler[int]):
    """Yields the indices of rows, batch by batch; rows of a batch are of similar length.

    Args:
        lengths: tokens of each row.
        batch_size: rows in a step of the optimizer, with all batches that it accumulates.
        seed: makes the random order, together with the number of the epoch.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch; each has another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = torch.randperm(len(self), generator=generator).tolist()
        last = len(rows) % self.batch_size  # the incomplete batch has to be the last
        rows, rest = rows[: len(rows) - last], rows[len(rows) - last :]
        size, batches = self.batch_size, []
        for start in range(0, len(rows), STRETCH * size):
            stretch = sorted(rows[start : start + STRETCH * size], key=self.lengths.__getitem__)
            batches += [stretch[at : at + size] for at in range(0, len(stretch), size)]
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[number]
        yield from rest
