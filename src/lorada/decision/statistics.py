r"""Statistics of scores: intervals, tests of pairs, letters, and the difference they could show.

Scores are arrays of shape seeds × rows, in percent, higher is better. A run is one training with
one seed. The score of one row in one run is modelled as

    y[method, run, row] = mean[method] + row + method×row + run + noise.

A difference between two methods is due to chance if other rows, or other runs of the same methods,
could have turned it round. Both are covered:

- ``mean_score`` and ``difference`` have the standard error and degrees of freedom of this test, and
  Student's intervals.
- ``paired_p`` is a t-test of the difference in means, paired by row. Its standard error adds the
  variance between the runs of each method to the variance that the choice of rows causes. This is
  how readers and cases are treated where several doctors judge the same images (Hillis, 2007, "A
  comparison of denominator degrees of freedom methods for multiple observer ROC analysis"; here
  runs are the readers), with a variance of its own for each method.
- Degrees of freedom of the runs are Welch's and Satterthwaite's, because those of one method may
  vary more than those of the other. The whole error has those by which Student's quantile is the
  mean of two, that of the runs and that of the rows, weighted by the variances that they cause
  (Cochran and Cox, 1950, "Experimental designs"). Satterthwaite's of the whole would be too many
  where a few runs are alike by luck: their small variance then counts for little beside the rows.
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
from itertools import combinations, combinations_with_replacement

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
        outside = (1 - level) / 2  # on each side of a two-sided interval
        if self.alike:
            reach = 100 * most_unseen(self.alike, outside)
            return (100 - reach, 100.0) if self.value > 50 else (0.0, reach)
        if not self.error:
            return self.value, self.value
        with needs_extra("compare"):
            from scipy.stats import t

        half_width = float(t.isf(outside, self.freedom)) * self.error
        return self.value - half_width, self.value + half_width


def most_unseen(count: int, level: float) -> float:
    """The largest share of cases that may be of a kind of which ``count`` cases show none.

    It is the end of Clopper and Pearson's (1934) interval of 0 of ``count``, one-sided:
    (1 - share)^count = level. ``scipy.stats.binomtest`` searches it numerically, to eleven digits.
    """
    share: float = 1 - level ** (1 / count)
    return share


def mean_score(scores: Scores, common: Common | None = None, share: bool = False) -> Estimate:
    """The mean of seeds × rows, two rows or more.

    Of one run without others in ``common``, the error is that over rows alone. ``share`` says that
    scores lie between 0 and 100.
    """
    runs = []
    if len(scores) > 1 or common is not None:
        runs.append(_runs(scores, common))
    estimate = _estimate(scores.mean(axis=0), runs)
    if share and _all_right_or_all_wrong(scores):
        return replace(estimate, alike=scores.shape[1])
    return estimate


def _all_right_or_all_wrong(scores: Scores) -> bool:
    farthest_from_0, farthest_from_100 = np.abs(scores).max(), np.abs(scores - 100).max()
    return bool(min(farthest_from_0, farthest_from_100) < TINY)


def difference(
    a: Scores, b: Scores, common: Common | None = None, by_seed: bool = False
) -> Estimate:
    """The difference in means of two methods, with the error that ``paired_p`` tests it by."""
    return _estimate(*_paired(a, b, common, by_seed))


def gain(scores: Scores, baseline: Scores, others: Sequence[Scores] = ()) -> Estimate:
    """The difference in means of a method and scores without training, paired by row.

    Args:
        scores: seeds × rows of the method.
        baseline: draws × rows. One draw is all there is of it: only other rows could change it.
            Several vary as the runs of one more method do.
        others: seeds × rows of each other method, whose variances moderate those of both.
    """
    are_drawn = len(baseline) > 1
    common = Common.of([scores, *others, *([baseline] if are_drawn else [])])
    runs = []
    if common is not None:
        runs.append(_runs(scores, common))
    if are_drawn:
        runs.append(_runs(baseline, common))
    return _estimate(scores.mean(axis=0) - baseline.mean(axis=0), runs)


def _paired(
    a: Scores, b: Scores, common: Common | None, by_seed: bool
) -> tuple[Scores, list[Runs]]:
    """The difference of each row, and the runs that it comes from: of both methods, or of pairs."""
    row_differences = a.mean(axis=0) - b.mean(axis=0)
    if by_seed:
        return row_differences, [Runs.of(a - b)]
    return row_differences, [_runs(a, common), _runs(b, common)]


def _estimate(row_means: Scores, runs: Sequence[Runs]) -> Estimate:
    """The mean of what each row has, as a mean over runs, with the error that both cause."""
    over_rows = float(row_means.var(ddof=1))
    error, freedom = _standard_error(runs, over_rows, len(row_means))
    return Estimate(float(row_means.mean()), error, freedom)


def by_group(scores: Scores, groups: Sequence[object]) -> Scores:
    """Scores of groups of rows that are not independent of each other: seeds × groups.

    They are not the means of the groups, unless these are of equal size. The mean over groups is
    the mean over rows, whatever their sizes, and the variance over groups is that of a mean over
    rows which come in groups: each is the mean over all rows, plus groups / rows times the sum of
    what its own rows are above that mean (a ratio, linearised).

    Args:
        scores: seeds × rows.
        groups: of each row, what the rows of its group share, such as the name of a passage.
    """
    group_names = np.array([str(group) for group in groups])
    names, place_of_row = np.unique(group_names, return_inverse=True)
    means = scores.mean(axis=1, keepdims=True)
    sums = np.zeros((len(scores), len(names)))
    # Unlike ``sums[:, place] += …``, this adds up what several rows put in one place. It adds along
    # the first axis, so both are transposed; ``sums.T`` is a view, through which ``sums`` changes.
    np.add.at(sums.T, place_of_row, (scores - means).T)
    group_scores: Scores = means + sums * (len(names) / scores.shape[1])
    return group_scores


def seeds_correlate(a: Scores, b: Scores) -> bool:
    """Whether two methods' runs with one seed (in one order) have correlated means."""
    with needs_extra("compare"):
        from scipy.stats import pearsonr

    if len(a) < 3:
        return False
    means_of_a, means_of_b = a.mean(axis=1), b.mean(axis=1)
    if min(np.ptp(means_of_a), np.ptp(means_of_b)) < TINY:  # a constant correlates with nothing
        return False
    return bool(pearsonr(means_of_a, means_of_b, alternative="greater").pvalue < ALPHA)


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
    """The two-sided p-value of the mean of differences.

    Args:
        differences: of each row, averaged over runs.
        runs: those of both methods, or those of the pairs of runs with one seed.
    """
    with needs_extra("compare"):
        from scipy.stats import t

    # Where no run differs from another in any row, there is no error to measure differences by.
    if all(max(of_method.between, of_method.noise) < TINY for of_method in runs):
        return _sign_p(differences)
    error, freedom = _standard_error(runs, float(differences.var(ddof=1)), len(differences))
    p = 2 * float(t.sf(abs(differences.mean()) / error, freedom))
    rows_that_differ = np.count_nonzero(np.abs(differences) > TINY)
    least_p = 2.0 ** (1 - rows_that_differ)  # coins would put all of these rows on one side
    return min(1.0, max(p, least_p))


def _sign_p(differences: Scores) -> float:
    """The exact sign test, two-sided: how often coins put that many rows on the mean's side."""
    with needs_extra("compare"):
        from scipy.stats import binomtest

    mean = differences.mean()
    if abs(mean) < TINY:  # a mean of 0 is on no side, also where rounding has given it a sign
        return 1.0
    rows_that_differ = np.count_nonzero(np.abs(differences) > TINY)
    on_side = np.count_nonzero(np.sign(mean) * differences > TINY)
    # One-sided and doubled: where the mean and most rows have different sides, this is 1.
    one_sided = binomtest(on_side, rows_that_differ, alternative="greater")
    return min(1.0, 2 * float(one_sided.pvalue))


def _standard_error(runs: Sequence[Runs], over_rows: float, rows: int) -> tuple[float, float]:
    """The standard error of a mean or of a difference in means, and its degrees of freedom.

    Args:
        runs: of one method, of both methods, of the pairs of runs with one seed, or of none, where
            rows alone cause the error.
        over_rows: the variance of the mean or difference over rows, with the noise of runs in it.
        rows: their number.
    """
    between = sum(of_method.between / of_method.count for of_method in runs)
    noise = sum(of_method.noise / of_method.count for of_method in runs)  # of one row
    # ``between`` and ``over_rows / rows`` both contain ``noise / rows``, which must count once.
    # Runs each of which gives all rows one class have much noise, and may still have equal means,
    # or equal sums in each row: then the other two hold none of it. So the error is never below
    # what each of the three alone would cause.
    whole = between + (over_rows - noise) / rows
    variance = max(whole, between, over_rows / rows, noise / rows)
    if not variance:
        return 0.0, 0.0
    share_of_runs = between / variance
    return float(np.sqrt(variance)), _freedom(runs, share_of_runs, rows)


def _freedom(runs: Sequence[Runs], share_of_runs: float, rows: int) -> float:
    """The degrees of freedom of an error that runs cause to a part, and rows for the rest.

    Args:
        runs: those of both methods, of one, or of the pairs of runs with one seed.
        share_of_runs: the part of the error's variance that they cause.
        rows: their number.
    """
    with needs_extra("compare"):
        from scipy.special import stdtridf, stdtrit

    inside = (1 + LEVEL) / 2  # of one side
    quantile = float(stdtrit(rows - 1, inside))
    if share_of_runs:
        quantile_of_runs = float(stdtrit(_freedom_of_runs(runs), inside))
        quantile = share_of_runs * quantile_of_runs + (1 - share_of_runs) * quantile
    # Where rows add nothing this is a t-test of the runs, so there are never fewer degrees.
    least_freedom = min((of_method.freedom for of_method in runs), default=1)
    return max(float(stdtridf(inside, quantile)), least_freedom)


def _freedom_of_runs(runs: Sequence[Runs]) -> float:
    """The degrees of freedom of the variance that runs cause, by Welch and Satterthwaite.

    They are the squared variance of the whole over the sum of the squared variance of each method
    over its own degrees.
    """
    variances = [of_method.between / of_method.count for of_method in runs]
    whole = sum(variances)
    squares = 0.0
    for of_method, variance in zip(runs, variances, strict=True):
        squares += variance**2 / max(1, of_method.freedom)
    # Both of two moderated variances have the pooled one in them.
    pooled_freedom = min((of_method.pooled_freedom for of_method in runs), default=np.inf)
    squares = max(squares, whole**2 / pooled_freedom)
    return whole**2 / squares if squares else 1.0


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
    errors_and_freedoms = []
    for a, b in combinations(several, 2):
        estimate = difference(a, b, common)
        errors_and_freedoms.append((estimate.error, estimate.freedom))
    return detectable_by(errors_and_freedoms, tests)


def detectable_by(pairs: Sequence[tuple[float, float]], tests: int) -> float:
    """The same from the standard error and degrees of freedom of each pair of methods."""
    with needs_extra("compare"):
        from scipy.optimize import brentq
        from scipy.stats import nct, t

    error = float(np.sqrt(np.mean([error**2 for error, _ in pairs])))
    if not error:  # nothing varies, and there are no degrees of freedom to count
        return 0.0
    freedom = float(np.median([freedom for _, freedom in pairs]))
    limit = float(t.isf(ALPHA / tests / 2, freedom))

    # The t-value of a true difference of so many standard errors is noncentral t.
    def power_above_wanted(errors: float) -> float:
        return float(nct.sf(limit, freedom, errors)) - POWER

    return float(brentq(power_above_wanted, 0.0, 4 * limit + 4)) * error


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values corrected for their number by Holm's method, in the order given."""
    smallest_first = sorted(range(len(ps)), key=lambda index: ps[index])
    corrected = [0.0] * len(ps)
    largest = 0.0
    for tests_before, index in enumerate(smallest_first):
        tests_left = len(ps) - tests_before
        # A test that comes later is never more significant than the one before.
        largest = max(largest, min(1.0, tests_left * ps[index]))
        corrected[index] = largest
    return corrected


def letters(names: Sequence[str], different: set[frozenset[str]]) -> dict[str, str]:
    """Letters such that two names share one if, and only if, they are not different.

    A letter stands for a largest group of names of which no two are different. Groups that
    are not needed to show a pair are left out. The first of the names has an ``a``.
    """
    groups = [set(names)] if names else []
    for pair in sorted(sorted(names_of_pair) for names_of_pair in different):
        groups = _largest(_split_by(groups, pair))
    for group in list(groups):
        others = [other for other in groups if other is not group]
        if _shows_each_pair(others, group):
            groups = others
    place = {name: index for index, name in enumerate(names)}
    groups.sort(key=lambda group: sorted(place[name] for name in group))
    texts = dict.fromkeys(names, "")
    for index, group in enumerate(groups):
        for name in group:
            texts[name] += _letter(index)
    return texts


def _split_by(groups: list[set[str]], pair: Sequence[str]) -> list[set[str]]:
    """The groups, and of one that holds both of a pair the two without one of them."""
    split = []
    for group in groups:
        if group.issuperset(pair):
            split += [group - {name} for name in pair]
        else:
            split.append(group)
    return split


def _largest(groups: list[set[str]]) -> list[set[str]]:
    """The groups that no other one holds wholly; of equal groups the first stays."""
    largest = []
    for index, group in enumerate(groups):
        is_in_earlier = any(group <= other for other in groups[:index])
        is_in_later = any(group < other for other in groups[index + 1 :])
        if not is_in_earlier and not is_in_later:
            largest.append(group)
    return largest


def _shows_each_pair(groups: list[set[str]], names: set[str]) -> bool:
    """Whether each two of the names, and each name with itself, are in one of the groups."""
    for pair in combinations_with_replacement(sorted(names), 2):
        if not any(group.issuperset(pair) for group in groups):
            return False
    return True


def _letter(index: int) -> str:
    """A to z, then a2 to z2 and so on."""
    turn, place = divmod(index, 26)
    letter = chr(ord("a") + place)
    return letter if turn == 0 else f"{letter}{turn + 1}"
