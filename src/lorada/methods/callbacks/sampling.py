"""Random draws that a resumed run repeats, and training rows drawn from a Trainer's loader."""

from collections.abc import Sequence
from typing import Any

import torch


def generator_at(seed: int, step: int) -> torch.Generator:
    """A random generator for one step, so that a resumed run draws what an uninterrupted does."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def draw(weights: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Draw ``count`` different indices, one after another with these weights."""
    return sorted(torch.multinomial(weights, count, generator=generator).tolist())


def training_rows(loader: Any, count: int, generator: torch.Generator, what: str) -> list[Any]:
    """Draw up to ``count`` rows of the training set of a Trainer's ``train_dataloader``.

    ``what`` is the name of the method that needs them, for the error.

    Raises:
        ValueError: for a data set without random access.
    """
    dataset = loader.dataset
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{what} draws rows of the training set, which {type(dataset).__name__} cannot give "
            "by number: load the data without streaming"
        )
    chosen = torch.randperm(len(dataset), generator=generator)[:count].tolist()
    return [dataset[index] for index in chosen]


def collate(loader: Any, rows: Sequence[Any], device: torch.device) -> dict[str, Any]:
    """Make a batch of rows as the Trainer does, without advancing the global random generator.

    A collator for a special trainer has an attribute ``plain``: a collator for the model alone.
    """
    pad = getattr(loader.collate_fn, "plain", loader.collate_fn)
    with torch.random.fork_rng(devices=[]):  # a collator may draw, as one that masks tokens does
        batch = pad(rows)
    return {key: v.to(device) if hasattr(v, "to") else v for key, v in batch.items()}


def same_everywhere(measured: torch.Tensor) -> torch.Tensor:
    """Give every process the numbers of the first, so that all draw the same layers."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast(measured, 0)
    return measured
