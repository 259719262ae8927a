"""Measures how often the tests of `lorada compare` are wrong, on made-up scores.

`python scripts/comparison_errors.py` prints a table as Markdown. For each number of seeds and rows
it has, in points of the score or percent of the made-up pairs:

- spread: the standard deviation between the runs of a method, in points;
- rows swapped: how often two copies of one method are called different by a test over rows alone;
- `paired_p`: how often they are called different by our test; 5 is right;
- unlike spread: the same if the runs of one of them vary three times as much (in log-odds);
- other rows: the same for two methods with one expected score, each good at rows of its own;
- detectable: the median of the smallest detectable difference, as six methods show it, in points;
- found: how often a true difference of that size is found; 80 is right;
- in interval: how often the true score is in the 95 % interval; 95 is right.
"""

import sys
from collections.abc import Iterable

import numpy as np
from scipy.stats import permutation_test

from lorada.report.comparison.statistics import (
    ALPHA,
    detectable,
    interval,
    paired_p,
)

RIGHT = 0.8  # log-odds of a right answer on a row of middling difficulty: 69 %
EASE = 1.2  # standard deviation of the rows' ease, in log-odds


def made_up_scores(
    random: np.random.Generator,
    seeds: int,
    rows: int,
    *,
    methods: int = 2,
    run: float = 0.2,
    taste: float = 0.0,
    ratio: float = 1.0,
) -> list[np.ndarray]:
    """Right and wrong answers (100 or 0) of methods with the same expected score.

    Args:
        random: source of random numbers.
        seeds: runs of each method.
        rows: held-out rows.
        methods: their number.
        run: standard deviation between runs, in log-odds; 0.2 is about 4 points.
        taste: standard deviation of what a row adds for one method alone; 0 for copies of one.
        ratio: how many times as large ``run`` is for the first method as for the others.

    Returns:
        For each method an array of seeds × rows.
    """
    ease = random.normal(RIGHT, EASE, rows)
    found = []
    for method in range(methods):
        spread = run * (1.0 if method else ratio)
        odds = ease + random.normal(0, taste, rows) + random.normal(0, spread, (seeds, 1))
        found.append(100.0 * (random.random((seeds, rows)) < 1 / (1 + np.exp(-odds))))
    return found


def swapped_rows_p(a: np.ndarray, b: np.ndarray) -> float:
    """The p-value of a permutation test that swaps the methods' scores of whole rows.

    It takes the runs as they are, so it is no test of methods: it is here to show that.
    """
    found = permutation_test(
        (a.mean(axis=0) - b.mean(axis=0),), np.mean, permutation_type="samples",
        vectorized=True, n_resamples=999, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.pvalue)


def measure(seeds: int, rows: int, run: float, repeats: int) -> list[float]:
    """How often each statistic is wrong, in percent, over made-up pairs of methods."""
    random = np.random.default_rng([seeds, rows, round(100 * run)])
    copies = [made_up_scores(random, seeds, rows, run=run) for _ in range(repeats)]
    other = [made_up_scores(random, seeds, rows, run=run, taste=0.5) for _ in range(repeats)]
    unlike = [made_up_scores(random, seeds, rows, run=run, ratio=3.0) for _ in range(repeats)]
    few = repeats // 5  # for what takes longer
    truth = np.mean([made_up_scores(random, 1, 20_000, run=run) for _ in range(100)])
    six = {"run": run, "taste": 0.5, "methods": 6}
    step = np.median([detectable(made_up_scores(random, seeds, rows, **six)) for _ in range(few)])
    ends = [interval(a) for a, _ in copies[:few]]
    return [
        float(np.mean([a.mean(axis=1).std(ddof=1) for a, _ in copies])),
        percent(swapped_rows_p(a, b) < ALPHA for a, b in copies[: repeats // 20]),
        percent(paired_p(a, b) < ALPHA for a, b in copies),
        percent(paired_p(a, b) < ALPHA for a, b in unlike),
        percent(paired_p(a, b) < ALPHA for a, b in other),
        float(step),
        percent(paired_p(a, b + step) < ALPHA for a, b in other),
        percent(low <= truth <= high for low, high in ends),
    ]


def percent(found: Iterable[bool]) -> float:
    """How many are true, in percent."""
    return 100 * float(np.mean(list(found)))


def main(repeats: int = 2000) -> None:
    """Print the table."""
    names = ["seeds", "rows", "spread", "rows swapped", "`paired_p`", "unlike spread", "other rows",
             "detectable", "found", "in interval"]  # fmt: skip
    print(f"| {' | '.join(names)} |\n|{'--:|' * len(names)}", flush=True)
    for run in (0.0, 0.3):
        for seeds in (2, 3, 5):
            for rows in (50, 200, 1000):
                numbers = [f"{value:.1f}" for value in measure(seeds, rows, run, repeats)]
                print(f"| {seeds} | {rows} | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
