"""Statistics of the studies that the package itself does not need: tests against fixed scores, and
what more seeds or rows would show.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from lorada.decision.statistics import (
    Common,
    Scores,
    _p_value,
    _runs,
    _standard_error,
    detectable_by,
)


def fixed_p(scores: Scores, fixed: Scores, common: Common | None = None) -> float:
    """The p-value of ``paired_p`` against scores without training, which no seed changes."""
    if min(scores.shape) < 2 or fixed.shape != scores.shape[1:]:
        raise ValueError("a test needs two seeds of the method, and two rows, the same for both")
    return _p_value(scores.mean(axis=0) - fixed, [_runs(scores, common)])


def detectable(
    methods: Sequence[Scores],
    tests: int = 1,
    seeds: int | None = None,
    rows: int | None = None,
    common: Common | None = None,
) -> float:
    """The smallest difference in percent that a test of two such methods finds with 80 % power.

    It uses the variances between runs and rows that were measured, as means over all pairs.

    Args:
        methods: seeds × rows of each; those with one seed are left out.
        tests: how many tests share the level of 5 %: the first of Holm's must reach 5 % / tests.
        seeds: how many seeds each method would have; None for as many as most have.
        rows: how many rows would be scored; None for as many as were.
        common: how the runs of all methods of the comparison vary, if these two are of one.
    """
    several = [scores for scores in methods if min(scores.shape) > 1]
    if len(several) < 2:
        raise ValueError("fewer than two methods have two seeds and two rows")
    count = round(np.median([len(s) for s in several])) if seeds is None else seeds
    scored = several[0].shape[1] if rows is None else rows
    pairs = [_foretold(a, b, common, count, scored) for a, b in combinations(several, 2)]
    return detectable_by(pairs, tests)


def _foretold(
    a: Scores, b: Scores, common: Common | None, seeds: int, rows: int
) -> tuple[float, float]:
    """The standard error and degrees of freedom of two methods with so many seeds and rows."""
    measured = [_runs(a, common), _runs(b, common)]
    over_rows = float((a.mean(axis=0) - b.mean(axis=0)).var(ddof=1))
    noise = sum(each.noise / each.count for each in measured)
    # More seeds average the noise of single runs; the rows themselves differ as before. The means
    # of runs differ by the noise of their rows, too, which more rows average.
    rows_alone = max(over_rows - noise, 0.0)
    fewer = a.shape[1] / rows
    runs = [
        replace(each, count=seeds, between=max(
            each.between - each.noise / a.shape[1] * (1 - fewer), each.between * min(1.0, fewer)
        ), freedom=each.freedom + seeds - each.count)
        for each in measured
    ]  # fmt: skip
    over_rows = rows_alone + sum(each.noise / seeds for each in runs)
    return _standard_error(runs, over_rows, rows)
