"""Counts how many training rows had each position of a map, which its config keeps.

What a map learned at a position that few rows had is little more than chance; ``min_rows`` of
``LmamConfig`` leaves such positions out.
"""

from collections.abc import Iterable

import numpy as np

from lorada.tuners import LmamConfig


def count_rows(configs: Iterable[LmamConfig], lengths: list[int], *, two_stacks: bool) -> None:
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
            counts = rows_by_position(lengths, config.length)
            if config.align == "end":
                counts = counts[::-1]
            before = config.rows_by_position or [0] * config.length
            config.rows_by_position = [old + new for old, new in zip(before, counts, strict=True)]


def rows_by_position(lengths: list[int], size: int) -> list[int]:
    """How many rows of these lengths have each of ``size`` positions, counted from their start."""
    longer = np.bincount(np.clip(lengths, 0, size), minlength=size + 1)[::-1].cumsum()[::-1]
    found: list[int] = longer[1:].tolist()
    return found
