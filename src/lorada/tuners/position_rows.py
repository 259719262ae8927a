"""How many training rows had each position of a map: counted, put into words, and left out.

What a map learned at a position that few rows had is little more than chance. The config of a map
keeps the counts (``rows_by_position``), and ``min_rows`` leaves out the positions with fewer.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lorada.functional.maps import position_embedding
from lorada.functional.precision import wide
from lorada.tuners.base.config import require_count


class CountedMap(Protocol):
    """The fields of a map's config that its counts depend on."""

    length: int
    min_rows: int
    rows_by_position: list[int] | None

    @property
    def form(self) -> str:
        """Only ``position`` has positions."""

    @property
    def align(self) -> str:
        """Where the map lies: ``start`` or ``end``."""

    @property
    def ablation(self) -> str | None:
        """What the map lacks."""


def check_rows(config: CountedMap) -> None:
    """Check the fields ``min_rows`` and ``rows_by_position`` of a map's config.

    Raises:
        ValueError: for a map in which a zero is not nothing, or counts of another length.
    """
    if config.min_rows:
        require_count(config, "min_rows")
        if config.ablation not in (None, "no_position"):
            raise ValueError(
                f"min_rows={config.min_rows} has no meaning for ablation={config.ablation!r}: "
                "leave it out"
            )
    counts = config.rows_by_position
    if counts is not None and len(counts) != config.length:
        raise ValueError(
            f"rows_by_position has {len(counts)} positions and the map {config.length}: train "
            "again, or give length"
        )


def well_trained(
    config: CountedMap, pe: Tensor | None, w_a: Tensor, w_b: Tensor
) -> tuple[Tensor, Tensor]:
    """The factors (S, N, R) and (S, R, N) of a map that is zero where too few rows were.

    ``pe`` is PE (N,), if it was computed before.

    Raises:
        ValueError: if no rows were counted.
    """
    if config.rows_by_position is None:
        raise ValueError(
            f"min_rows={config.min_rows} needs the rows that `lorada train` counts "
            "(rows_by_position): leave it out, or give both"
        )
    keep = torch.tensor(config.rows_by_position, device=w_a.device) >= config.min_rows
    w_a, w_b = wide(w_a), wide(w_b)  # as PE is added, so that both cancel
    nothing = w_a.new_zeros(config.length)
    if config.ablation != "no_position":  # what the map adds to them later
        nothing = -(position_embedding(config.length, w_a) if pe is None else pe)
    return torch.where(keep[:, None], w_a, nothing[:, None]), torch.where(keep, w_b, nothing)


def count_rows(configs: Iterable[CountedMap], lengths: list[int], *, two_stacks: bool) -> None:
    """Add training rows of these ``lengths`` in tokens to the counts of some maps.

    Of a model with ``two_stacks``, encoder and decoder, nothing is counted: a map of its decoder
    lies on other texts than one of its encoder.

    Raises:
        ValueError: for ``min_rows`` on such a model.
    """
    for config in configs:
        if two_stacks and config.min_rows:
            raise ValueError(
                f"lmam.min_rows={config.min_rows} needs rows counted by position, which an "
                "encoder-decoder model does not have: leave it out"
            )
        if not two_stacks and config.form == "position":
            longer = np.bincount(np.clip(lengths, 0, config.length), minlength=config.length + 1)
            counts = longer[::-1].cumsum()[::-1][1:].tolist()  # the rows with 1, 2 … tokens or more
            if config.align == "end":
                counts = counts[::-1]
            before = config.rows_by_position or [0] * config.length
            config.rows_by_position = [old + new for old, new in zip(before, counts, strict=True)]


def reach(config: CountedMap) -> str:
    """In words, how far the training rows reach into a map; empty where none were counted."""
    if config.rows_by_position is None:
        return ""
    counts = config.rows_by_position[:: 1 if config.align == "start" else -1]
    rows, word = counts[0], "first" if config.align == "start" else "last"
    half, tenth, any_ = (
        sum(count >= least for count in counts) for least in (rows / 2, rows / 10, 1)
    )
    text = f"The map lies on the {word} {config.length} tokens. Of {rows:,} training rows half "
    text += f"had {half} of them or more, a tenth {tenth}, the longest {any_}."
    if config.min_rows:
        kept = sum(count >= config.min_rows for count in counts)
        text += f" It is cut to {kept}, those of {config.min_rows} rows or more."
    return text
