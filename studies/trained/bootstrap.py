"""The intervals of the study's pages: of a mean score, by a bootstrap of rows and seeds.

Of two or three seeds they are too narrow (docs/studies/decision.md), so comparisons have others.
"""

import numpy as np
from numpy.typing import NDArray

from lorada.decision.statistics import LEVEL, Scores

DRAWS = 10_000
PART = 200_000  # rows drawn at once: few enough for the processor's cache
SEED = 0  # of the random draws, so that a page is the same each time


def interval(scores: Scores, level: float = LEVEL) -> tuple[float, float]:
    """The interval of the mean score, by a bootstrap over rows and seeds; of one seed, over rows.

    Args:
        scores: seeds × rows.
        level: of confidence.

    Returns:
        Its lower and upper end: percentiles of 10,000 draws.
    """
    random = np.random.default_rng(SEED)
    rows = scores.shape[1]
    # Rows with the same scores in all seeds are drawn together, which is fast for right and wrong.
    patterns, counts = np.unique(scores, axis=1, return_counts=True)
    together = 4 * len(counts) < rows
    means = []
    per_part = max(1, PART // rows)
    for start in range(0, DRAWS, per_part):
        draws = min(per_part, DRAWS - start)
        if together:
            drawn = random.multinomial(rows, counts / rows, size=draws) @ patterns.T
        else:
            drawn = _row_counts(random, rows, draws) @ scores.T
        means.append(drawn / rows)
    by_seed = np.concatenate(means)  # draws × seeds
    seeds = random.integers(len(scores), size=by_seed.shape)
    drawn = np.take_along_axis(by_seed, seeds, axis=1).mean(axis=1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _row_counts(random: np.random.Generator, rows: int, draws: int) -> NDArray[np.float64]:
    """How often each row is drawn: draws × rows."""
    drawn = random.integers(rows, size=(draws, rows))
    drawn += np.arange(draws)[:, None] * rows
    counts = np.bincount(drawn.ravel(), minlength=draws * rows)
    return counts.reshape(draws, rows).astype(float)
