"""The held-out loss of an answer that does not depend on the row: what is above it learned nothing.

H = −Σ_a p_a log p_a                                         for classes, p_a their frequencies
Σ_rows H / Σ_rows tokens                                       for texts with few different ones
mean over labels of −p log p − (1 − p) log(1 − p)                   for several labels of a row
mean of (y − ȳ)²                                                                     for scores
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from datasets import Dataset

from lorada.data.batches import IGNORED
from lorada.support.row_sources import Form

# How many rows must share an answer on average. Of texts that are all different the frequencies say
# nothing about new ones.
MIN_ROWS_PER_ANSWER = 5


def guessing_loss(form: Form, held_out: Dataset) -> float | None:
    """The loss of the best answer that is the same for all held-out rows.

    Args:
        form: of the rows.
        held_out: the rows as they are measured, with their ``labels``.

    Returns:
        Nats, as the training's loss counts them (of scores their variance as they are learned);
        None where answers hardly repeat, or are candidates that differ from row to row.
    """
    if form == "choice" or "labels" not in held_out.column_names:
        return None
    labels = held_out["labels"]
    if form == "score":
        return float(np.var(list(labels)))
    if form == "labels":
        return _loss_of_several_labels(np.array(list(labels), dtype=float))
    return _loss_of_frequencies([_counted_tokens(label) for label in labels])


def _counted_tokens(label: Any) -> tuple[int, ...]:
    """The tokens of an answer that count in the loss; a class counts as one."""
    # The label of a class is one number, that of a text a list.
    tokens: Iterable[int] = label if isinstance(label, list) else [label]
    return tuple(token for token in tokens if token != IGNORED)


def _loss_of_frequencies(answers: list[tuple[int, ...]]) -> float | None:
    """Σ_rows H / Σ_rows tokens; None where answers hardly repeat, or no token counts."""
    row_counts = Counter(answers)
    token_count = sum(len(answer) for answer in answers)
    hardly_repeats = len(row_counts) * MIN_ROWS_PER_ANSWER > len(answers)
    if hardly_repeats or token_count == 0:
        return None
    # Each of the rows with an answer of frequency p adds -log p.
    nats = sum(rows * math.log(len(answers) / rows) for rows in row_counts.values())
    return nats / token_count


def _loss_of_several_labels(labels: np.ndarray) -> float:
    """The mean over labels of the entropy of having it, from 0 or 1 for each (rows, labels)."""
    share = labels.mean(axis=0)
    probabilities = np.stack([share, 1 - share])
    # 0 log 0 is 0: a label that no row has, or every row, costs nothing.
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    nats = -probabilities * logs
    return float(nats.sum(axis=0).mean())
