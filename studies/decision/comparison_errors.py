"""Measures how often the tests of `lorada compare` are wrong, on made-up scores.

`python studies/decision/comparison_errors.py TABLE` prints a table as Markdown: `tests`, `rates`
(of the choice of learning rates), `worlds` or `atlas` (of the decision), `margins` (of cheaper
methods), `letters` (of tests, and of the score of the pick), or `until` (of the runs that are
spared). All numbers are points of the score or percent of the made-up comparisons. For each number
of seeds and rows `tests` has:

- spread: the standard deviation between the runs of a method, in points;
- rows swapped: how often two copies of one method are called different by a test over rows alone;
- `paired_p`: how often they are called different by our test; 5 is right;
- unlike spread: the same if the runs of one of them vary five times as much (in log-odds);
- failing seeds: the same if one run in five answers the same class for all rows;
- one class: the same if every run does;
- other rows: the same for two methods with one expected score, each good at rows of its own;
- six: how often any pair of six copies is called different, with Holm's correction;
- detectable: the median of the smallest detectable difference, as six methods show it, in points;
- found: how often a true difference of that size is found; 80 is right;
- in interval: how often the true score is in the 95 % interval; 95 is right.

`rates` has pairs of equally good methods after each kind of search for a learning rate, as
`search_errors.py` describes them, and then the curves with cliffs of `search_worlds.py`:

- trials: their mean number;
- points lost, above 2: the mean points that the chosen rate loses against the best one, and how
  often that is more than 2;
- once, each: how often the two are called different with one search for all seeds, and with a
  search for every seed, at so many seeds and rows; 5 is right.

`worlds` has made-up comparisons of each kind in `made_up_worlds.py`, whose true scores are known:

- pair, any: how often a pair of methods that are equally good is called different, and how often
  any pair of all of them is, with Holm's correction;
- in interval: how often a method's true score is in its 95 % interval;
- power: how often a true difference larger than the methods' standard deviation is found;
- cheaper, wrong: how often a method is taken because it is cheaper and "not worse by more than the
  margin", and how often that is not true;
- the points by which the pick of each rule is truly below the best method;
- claimed: the expected loss of the verdict's pick, which should be what the verdict loses.

`atlas` has the rows that the atlas has kept: a method is chosen on three seeds and some rows of
each, and the table has its mean score on the other rows and seeds, beside that of the best. The
rules are in `decision_errors.py`.

`letters` has comparisons of many kinds whose true scores are known, as `letter_worlds.py` says.

`margins` has comparisons in which a method and others that are cheaper truly differ by so many
points, and the rules for "not worse by more than the margin" that `margin_errors.py` describes:

- taken, wrong, by each rule: how often a cheaper method is taken, and how often it is one that
  truly costs more than the margin;
- lost, claimed, by one level and by `decide`: the points that the pick is truly below the best
  method, and what is said of it: the expected loss, and the larger of that and the bound.
"""

import sys
from collections.abc import Iterable
from itertools import combinations

import numpy as np
from decision_errors import print_atlas, print_worlds
from letter_worlds import print_letters
from margin_errors import print_margins
from scipy.stats import permutation_test
from search_errors import print_rates
from until_errors import print_until

from lorada.decision.statistics import ALPHA, Common, detectable, holm, mean_score, paired_p

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


def one_class_scores(
    random: np.random.Generator, seeds: int, rows: int, failing: float
) -> list[np.ndarray]:
    """Two copies of one method, a part of whose runs answer one of two classes for all rows."""
    first_class = random.random(rows) < 0.5
    found = []
    for scores in made_up_scores(random, seeds, rows):
        answers = np.where(random.random((seeds, 1)) < 0.5, first_class, ~first_class)
        found.append(np.where(random.random((seeds, 1)) < failing, 100.0 * answers, scores))
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
    unlike = [made_up_scores(random, seeds, rows, run=run, ratio=5.0) for _ in range(repeats)]
    some, every = (
        [one_class_scores(random, seeds, rows, failing) for _ in range(repeats)]
        for failing in (0.2, 1.0)
    )
    few = repeats // 5  # for what takes longer
    six = {"methods": 6, "run": run}
    alike = [made_up_scores(random, seeds, rows, **six) for _ in range(few)]
    unequal = [made_up_scores(random, seeds, rows, **six, taste=0.5) for _ in range(few)]
    step = np.median([detectable(each) for each in unequal])
    true = np.mean([made_up_scores(random, 1, 20_000, run=run) for _ in range(100)])
    intervals = [mean_score(a, Common.of(pair)).interval() for pair in copies[:few] for a in pair]
    return [
        float(np.mean([a.mean(axis=1).std(ddof=1) for a, _ in copies])),
        percent(swapped_rows_p(a, b) < ALPHA for a, b in copies[: repeats // 20]),
        *(percent(paired_p(a, b) < ALPHA for a, b in pairs)
          for pairs in (copies, unlike, some, every, other)),
        percent(any_pair_p(each) < ALPHA for each in alike),
        float(step),
        percent(paired_p(each[0], each[1] + step, Common.of(each)) < ALPHA for each in unequal),
        percent(low <= true <= high for low, high in intervals),
    ]  # fmt: skip


def any_pair_p(methods: list[np.ndarray]) -> float:
    """The smallest p-value of all pairs of methods, corrected for their number."""
    common = Common.of(methods)
    return min(holm([paired_p(a, b, common) for a, b in combinations(methods, 2)]))


def percent(found: Iterable[bool]) -> float:
    """How many are true, in percent."""
    return 100 * float(np.mean(list(found)))


def table(names: list[str]) -> None:
    """Print the head of a table."""
    print(f"| {' | '.join(names)} |\n|{'--:|' * len(names)}", flush=True)


def print_tests(repeats: int = 2000) -> None:
    """Print the table of the tests."""
    table(["seeds", "rows", "spread", "rows swapped", "`paired_p`", "unlike spread",
           "failing seeds", "one class", "other rows", "six", "detectable", "found",
           "in interval"])  # fmt: skip
    for run in (0.0, 0.3):
        for seeds in (2, 3, 5):
            for rows in (50, 200, 2000):
                numbers = [f"{value:.1f}" for value in measure(seeds, rows, run, repeats)]
                print(f"| {seeds} | {rows} | {' | '.join(numbers)} |", flush=True)


TABLES = {
    "tests": print_tests, "rates": print_rates, "worlds": print_worlds, "atlas": print_atlas,
    "margins": print_margins, "until": print_until, "letters": print_letters,
}  # fmt: skip

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in TABLES:
        sys.exit(f"name a table: {', '.join(TABLES)}; then the number of repeats, if you like")
    TABLES[sys.argv[1]](*map(int, sys.argv[2:]))
