r"""Statistics of scores: intervals, tests of pairs, letters, and the difference they could show.

Scores are arrays of shape seeds × rows, in percent, higher is better. A run is one training with
one seed. The score of one row in one run is modelled as

    y[method, run, row] = mean[method] + row + method×row + run + noise.

A difference between two methods is due to chance if other rows, or other runs of the same methods,
could have turned it round. Both are covered:

- ``mean_score`` and ``difference`` have the standard error and degrees of freedom of this test, and
  Student's intervals.
- ``paired_p`` is a t-test of the difference in means, paired by row. Its standard error adds the
  variance between the runs of each method to the variance that the choice of rows causes; its
  degrees of freedom are Welch's and Satterthwaite's, because the runs of one method may vary more
  than those of the other. This is how readers and cases are treated where several doctors judge the
  same images (Hillis, 2007, "A comparison of denominator degrees of freedom methods for multiple
  observer ROC analysis"; here runs are the readers), with a variance of its own for each method.
- Where several methods are compared, ``common`` moderates these variances: see ``run_variances``.

Where no run differs from another of its method in any row, runs tell nothing, and the test is the
exact sign test over rows.

Why it is no permutation test: swapping the two methods' scores of whole rows takes the runs as they
are, and so takes a lucky run for a better method. Swapping whole runs is right, but three runs of
each of two methods can be split in only 20 ways, so p could not fall below 0.1. The t-test assumes
instead that the mean scores of runs are normally distributed. Runs of two methods with the same
seed are treated as pairs only where ``by_seed`` asks for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from lorada.decision.run_variances import TINY, Common, Runs, Scores
from lorada.support.error_messages import needs_extra

LEVEL = 0.95  # of intervals
ALPHA = 0.05  # a p-value below it is a difference
POWER = 0.8  # of the smallest detectable difference


def paired_p(a: Scores, b: Scores, common: Common | None = None, by_seed: bool = False) -> float:
    """The probability of a difference in means at least as large if the methods did not differ.

    It is two-sided. It is never below 2 / 2^k, where k is the number of rows with a difference,
    because a coin for each of these rows would put them all on one side that often.

    Args:
        a: seeds × rows of one method, two of each or more.
        b: the same of the other, with the same rows; it may have another number of seeds.
        common: how the runs of all methods that are compared vary, which moderates those of two.
        by_seed: whether runs in one place of both have one seed, and are taken as pairs.
    """
    if min(*a.shape, *b.shape) < 2:
        raise ValueError("a test needs two rows, and two seeds of each method")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} rows cannot be compared")
    return _p_value(*_paired(a, b, common, by_seed))


@dataclass(frozen=True)
class Estimate:
    """A mean score, or a difference of two: its value, standard error and degrees of freedom."""

    value: float
    error: float
    freedom: float
    alike: int = 0  # rows, if all of them score 0, or all 100

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Its two-sided confidence interval, by Student's t.

        Where nothing varies it is Clopper and Pearson's (1934) of a share: so many rows may be all
        right, or all wrong, by luck.
        """
        if self.alike:
            reach = 100 * (1 - ((1 - level) / 2) ** (1 / self.alike))
            return (100 - reach, 100.0) if self.value > 50 else (0.0, reach)
        with needs_extra("compare"):
            from scipy.stats import t

        half = float(t.isf((1 - level) / 2, self.freedom)) * self.error if self.error else 0.0
        return self.value - half, self.value + half


def mean_score(scores: Scores, common: Common | None = None, share: bool = False) -> Estimate:
    """The mean of seeds × rows, two rows or more.

    Of one run without others in ``common``, the error is that over rows alone. ``share`` says that
    scores lie between 0 and 100.
    """
    runs = [_runs(scores, common)] if len(scores) > 1 or common is not None else []
    found = _estimate(scores.mean(axis=0), runs)
    if share and min(float(np.abs(scores - end).max()) for end in (0, 100)) < TINY:
        return replace(found, alike=scores.shape[1])
    return found


def difference(
    a: Scores, b: Scores, common: Common | None = None, by_seed: bool = False
) -> Estimate:
    """The difference in means of two methods, with the error that ``paired_p`` tests it by."""
    return _estimate(*_paired(a, b, common, by_seed))


def _paired(
    a: Scores, b: Scores, common: Common | None, by_seed: bool
) -> tuple[Scores, list[Runs]]:
    """The difference of each row, and the runs that it comes from: of both methods, or of pairs."""
    runs = [Runs.of(a - b)] if by_seed else [_runs(a, common), _runs(b, common)]
    return a.mean(axis=0) - b.mean(axis=0), runs


def _estimate(rows: Scores, runs: Sequence[Runs]) -> Estimate:
    return Estimate(float(rows.mean()), *_standard_error(runs, float(rows.var(ddof=1)), len(rows)))


def by_group(scores: Scores, groups: Sequence[object]) -> Scores:
    """Scores of groups of rows that are not independent of each other: seeds × groups.

    The mean over groups is the mean over rows, whatever their sizes, and the variance over groups
    is that of a mean over rows which come in groups (a ratio, linearised).

    Args:
        scores: seeds × rows.
        groups: of each row, what the rows of its group share, such as the name of a passage.
    """
    names, place = np.unique(np.array([str(one) for one in groups]), return_inverse=True)
    means = scores.mean(axis=1, keepdims=True)
    sums = np.zeros((len(scores), len(names)))
    np.add.at(sums.T, place, (scores - means).T)
    found: Scores = means + sums * (len(names) / scores.shape[1])
    return found


def seeds_correlate(a: Scores, b: Scores) -> bool:
    """Whether two methods' runs with one seed (in one order) have correlated means."""
    with needs_extra("compare"):
        from scipy.stats import pearsonr

    means = a.mean(axis=1), b.mean(axis=1)
    if len(a) < 3 or min(np.ptp(each) for each in means) < TINY:
        return False
    return bool(pearsonr(*means, alternative="greater").pvalue < ALPHA)


def rows_needed(tests: int = 1) -> int:
    """How many rows it takes that the p-value of the first of Holm's tests can be below 5 %.

    With fewer, no number of seeds can show a difference: see ``paired_p``.
    """
    return math.floor(math.log2(tests / ALPHA)) + 2


def has_no_spread(scores: Scores) -> bool:
    """Whether all runs of a method give each row the same score."""
    return bool(np.ptp(scores, axis=0).max() < TINY)


def _runs(scores: Scores, common: Common | None) -> Runs:
    """The runs of a method, moderated by those of all."""
    own = Runs.of(scores)
    return own if common is None else common.moderate(own)


def _p_value(differences: Scores, runs: Sequence[Runs]) -> float:
    """The two-sided p-value of the mean of differences by row, averaged over runs."""
    with needs_extra("compare"):
        from scipy.stats import t

    if all(max(each.between, each.noise) < TINY for each in runs):
        return _sign_p(differences)
    error, freedom = _standard_error(runs, float(differences.var(ddof=1)), len(differences))
    if error < TINY:
        return _sign_p(differences)
    p = 2 * float(t.sf(abs(differences.mean()) / error, freedom))
    return min(1.0, max(p, 2.0 ** (1 - np.count_nonzero(np.abs(differences) > TINY))))


def _sign_p(differences: Scores) -> float:
    """The exact sign test: how often coins would put as many rows on the side of the mean."""
    with needs_extra("compare"):
        from scipy.stats import binom

    side = np.sign(differences.mean()) * differences
    count, on_side = np.count_nonzero(np.abs(side) > TINY), np.count_nonzero(side > TINY)
    return min(1.0, 2 * float(binom.sf(on_side - 1, count, 0.5)))


def _standard_error(runs: Sequence[Runs], over_rows: float, rows: int) -> tuple[float, float]:
    """The standard error of a difference in means, and its degrees of freedom.

    ``over_rows`` is the variance of the difference over rows, with the noise of single runs in it.
    """
    between = sum(each.between / each.count for each in runs)
    noise = sum(each.noise / each.count for each in runs)
    # Both variances have the noise in them, which must count once. Runs that answer one class each
    # have much noise and may still have equal means, or equal sums in each row: then the other two
    # hold none of it, and the error is not below what each of the three alone would cause.
    whole = between + (over_rows - noise) / rows
    variance = max(whole, between, over_rows / rows, noise / rows)
    least = min((each.freedom for each in runs), default=1)
    limit = min((each.pooled_freedom for each in runs), default=np.inf)
    squares = sum((each.between / each.count) ** 2 / max(1, each.freedom) for each in runs)
    # Both of two moderated variances have the pooled one in them.
    squares = max(squares, between**2 / limit)
    noises = sum((each.noise / each.count) ** 2 / max(1, each.count - 1) for each in runs)
    squares += (over_rows**2 + noises) / rows**2 / (rows - 1)
    # Where rows add nothing this is a t-test of the runs, so there are never fewer degrees.
    freedom = variance**2 / squares if squares > 0 else 0.0
    return float(np.sqrt(variance)), max(freedom, least)


def detectable(methods: Sequence[Scores], tests: int = 1) -> float:
    """The smallest difference in percent that a test of two such methods finds with 80 % power.

    It uses the errors and degrees of freedom that were measured, as means over all pairs.

    Args:
        methods: seeds × rows of each; those with one seed are left out.
        tests: how many tests share the level of 5 %: the first of Holm's must reach 5 % / tests.
    """
    several = [scores for scores in methods if min(scores.shape) > 1]
    if len(several) < 2:
        raise ValueError("fewer than two methods have two seeds and two rows")
    common = Common.of(several)
    pairs = [difference(a, b, common) for a, b in combinations(several, 2)]
    return detectable_by([(each.error, each.freedom) for each in pairs], tests)


def detectable_by(pairs: Sequence[tuple[float, float]], tests: int) -> float:
    """The same from the standard error and degrees of freedom of each pair of methods."""
    with needs_extra("compare"):
        from scipy.optimize import brentq
        from scipy.stats import nct, t

    error = float(np.sqrt(np.mean([error**2 for error, _ in pairs])))
    freedom = float(np.median([freedom for _, freedom in pairs]))
    limit = float(t.isf(ALPHA / tests / 2, freedom))
    errors = brentq(lambda x: nct.sf(limit, freedom, x) - POWER, 0.0, 4 * limit + 4)
    return float(errors) * error


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values corrected for their number by Holm's method, in the order given."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, largest = [0.0] * len(ps), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[index]))
        corrected[index] = largest
    return corrected


def letters(names: Sequence[str], different: set[frozenset[str]]) -> dict[str, str]:
    """Letters such that two names share one if, and only if, they are not different.

    A letter stands for a largest group of names of which no two are different. Groups that
    are not needed to show a pair are left out. The first of the names has an ``a``.
    """
    groups = [set(names)] if names else []
    for pair in sorted(map(sorted, different)):
        split = []
        for group in groups:
            split += [group - {name} for name in pair] if group.issuperset(pair) else [group]
        groups = [g for i, g in enumerate(split) if not _covered(g, split[:i], split[i + 1 :])]
    for group in list(groups):
        others = [other for other in groups if other is not group]
        pairs = [{x, y} for x in group for y in group]  # of a name with itself, too
        if all(any(pair <= other for other in others) for pair in pairs):
            groups = others
    place = {name: index for index, name in enumerate(names)}
    groups.sort(key=lambda group: sorted(place[name] for name in group))
    return {
        name: "".join(_letter(i) for i, group in enumerate(groups) if name in group)
        for name in names
    }


def _covered(group: set[str], before: list[set[str]], after: list[set[str]]) -> bool:
    """Whether another group holds all of this one; of two equal groups the first stays."""
    return any(group <= other for other in before) or any(group < other for other in after)


def _letter(index: int) -> str:
    """A to z, then a2 to z2 and so on."""
    turn, place = divmod(index, 26)
    return chr(ord("a") + place) + (str(turn + 1) if turn else "")
