"""How many training rows had each position of a map: counted, and put into words.

What a map learned at a position that few rows had is little more than chance. The config of a map
keeps the counts (``rows_by_position``), and ``min_rows`` leaves out the positions with fewer.
"""

from collections.abc import Iterable

import numpy as np

from lorada.tuners.lmam import LmamConfig


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
            longer = np.bincount(np.clip(lengths, 0, config.length), minlength=config.length + 1)
            counts = longer[::-1].cumsum()[::-1][1:].tolist()  # the rows with 1, 2 … tokens or more
            if config.align == "end":
                counts = counts[::-1]
            before = config.rows_by_position or [0] * config.length
            config.rows_by_position = [old + new for old, new in zip(before, counts, strict=True)]


def reach(config: LmamConfig) -> str:
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
