r"""What the true mean scores of methods may be, and what is expected to be lost by taking one.

    loss[m] = E[max over k of mean[k]  -  mean[m]]

The true mean scores are uncertain in a normal model, fitted to the scores (empirical Bayes):

    measured mean = true mean + error,   error ~ N(0, rows + runs),   true mean ~ N(level, spread²)

- ``rows`` is the covariance over rows of the methods' scores: methods share easy and hard rows.
- ``runs`` is diagonal: each method's variance between runs. It is drawn from a scaled inverse chi²
  distribution with the moderated value (``run_variances``) as its median, as a few runs show little
  of it.
  Methods whose runs are pairs by seed have a covariance, too.
- ``spread`` of the true means is not known either, and is drawn from its posterior on a grid. Its
  prior, s² / (1 + s²)² in mean errors, keeps it from zero, where a few methods that score alike
  would put it: methods are seldom equal. So the highest of several scores is pulled towards the
  others by as much as it is likely to be luck.
- ``level`` may be anything, all values alike.

The draws have a fixed seed, so that a report is the same each time.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorada.decision.run_variances import Common, Runs, Scores

VARIANCES = 100  # draws of the variances between runs
DRAWS = 40  # of true means, for each of these
SEED = 0
SPREADS = np.geomspace(0.02, 100.0, 60)  # of true means that are tried, in mean errors
NOTHING = 1e-18  # a variance that is smaller is a rounding error


@dataclass(frozen=True)
class Posterior:
    """Draws of what the true mean scores of methods may be.

    Attributes:
        means: draws × methods, in the unit of the scores.
        later: the mean scores that would be measured after more runs of each method, in a world
            with these true means: draws × methods, or of no draw.
    """

    means: Scores
    later: Scores

    @property
    def losses(self) -> Scores:
        """The expected loss of taking each method."""
        lost: Scores = (self.means.max(axis=1, keepdims=True) - self.means).mean(axis=0)
        return lost

    @property
    def best(self) -> Scores:
        """How probable it is that each method is the best; equal ones share it."""
        is_best = self.means >= self.means.max(axis=1, keepdims=True)
        probability: Scores = (is_best / is_best.sum(axis=1, keepdims=True)).mean(axis=0)
        return probability

    @property
    def later_loss(self) -> float:
        """The expected loss of taking the method that scores highest after more runs."""
        taken = self.later.argmax(axis=1)
        lost = self.means.max(axis=1) - self.means[np.arange(len(taken)), taken]
        return float(lost.mean())

    def interval(self, place: int, level: float) -> tuple[float, float]:
        """Between which values the true mean of a method is, with this probability."""
        low, high = np.quantile(self.means[:, place], [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def expected_losses(methods: Sequence[Scores], by_seed: Collection[tuple[int, int]] = ()) -> Scores:
    """The expected loss of taking each method, in the unit of the scores; see ``posterior``."""
    if len(methods) == 1:
        return np.zeros(1)
    return posterior(methods, by_seed).losses


def posterior(
    methods: Sequence[Scores], by_seed: Collection[tuple[int, int]] = (), more_runs: int = 0
) -> Posterior:
    """What the true mean scores of methods may be.

    Args:
        methods: seeds × rows of each, of the same rows; some method has two seeds or more.
        by_seed: places of methods whose runs with one seed are alike, with these runs in order.
        more_runs: of each method, after which scores are foretold.

    Raises:
        ValueError: if no method has two seeds.
    """
    measured = np.array([scores.mean() for scores in methods])
    counts = np.array([len(scores) for scores in methods])
    random = np.random.default_rng(SEED)
    rows, runs = _errors(methods, by_seed, random)
    means = _true_means(measured, rows + runs, random)
    if not more_runs:
        return Posterior(means, means[:0])
    more = more_runs / (counts + more_runs)
    luck = _luck_of_runs(measured - means, rows, runs, counts / more_runs, random)
    return Posterior(means, measured + more * luck)


def _true_means(measured: Scores, error: Scores, random: np.random.Generator) -> Scores:
    """Draws of the true means: draws × methods.

    Args:
        measured: the mean score of each method.
        error: draws of the covariance of its errors: variances × methods × methods.
        random: source of random numbers.
    """
    count = len(measured)
    # In these axes the errors are independent; the level lies along ``ones``.
    variances, turn = np.linalg.eigh(error)
    variances = np.maximum(variances, 0.0)
    scores = turn.swapaxes(1, 2) @ measured
    ones = turn.sum(axis=1)
    of_all = error.sum(axis=(1, 2)) / count
    unit = float((np.trace(error, axis1=1, axis2=2) - of_all).mean()) / max(1, count - 1)
    if unit < NOTHING:  # nothing is uncertain but what all methods share
        shared = np.sqrt(np.maximum(of_all / count, 0.0).repeat(DRAWS))
        alike: Scores = measured + (shared * random.standard_normal(len(shared)))[:, None]
        return alike
    spread = _spreads(scores, ones, variances, unit)
    scores, ones, variances = (each.repeat(DRAWS, axis=0) for each in (scores, ones, variances))
    total = spread[:, None] ** 2 + variances
    precision = (ones**2 / total).sum(axis=1)
    level = (ones * scores / total).sum(axis=1) / precision
    level += random.standard_normal(len(level)) / np.sqrt(precision)
    prior = level[:, None] * ones
    pull = spread[:, None] ** 2 / total  # 1: the measured mean is right; 0: the level is
    drawn = prior + pull * (scores - prior)
    drawn += np.sqrt(pull * variances) * random.standard_normal(drawn.shape)
    means: Scores = np.einsum("dmk,dk->dm", turn.repeat(DRAWS, axis=0), drawn)
    return means


def _spreads(scores: Scores, ones: Scores, variances: Scores, unit: float) -> Scores:
    """Draws of the spread of true means, ``DRAWS`` for each of the variances.

    Args:
        scores: the measured means in the axes of the errors: variances × axes.
        ones: the level in these axes.
        variances: of the errors in these axes.
        unit: the mean variance of errors, without what all methods share.
    """
    # Axes: variances, spreads, axes of the errors. The level is integrated out.
    total = unit * SPREADS[:, None] ** 2 + variances[:, None, :]
    scores, ones = scores[:, None, :], ones[:, None, :]
    precision = (ones**2 / total).sum(axis=2)
    squares = (scores**2 / total).sum(axis=2) - (ones * scores / total).sum(axis=2) ** 2 / precision
    likelihood = -0.5 * (np.log(total).sum(axis=2) + np.log(precision) + squares)
    # The grid has equal steps of the logarithm, so a density counts times the spread.
    weight = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    weight = weight * SPREADS**3 / (1 + SPREADS**2) ** 2
    reached = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
    places = (np.arange(DRAWS) + 0.5) / DRAWS
    drawn = [np.searchsorted(row, places) for row in reached]
    found: Scores = np.sqrt(unit) * SPREADS[np.concatenate(drawn)]
    return found


def _luck_of_runs(
    error: Scores, rows: Scores, runs: Scores, share: Scores, random: np.random.Generator
) -> Scores:
    """By how much new runs would score above those that were measured: draws × methods.

    The luck of the measured runs is a part of their error; the other part is that of the rows,
    which new runs have, too.

    Args:
        error: of the measured means, in each draw.
        rows: covariance of the errors that rows cause: variances × methods × methods.
        runs: the same of runs.
        share: measured runs of each method, for each new one.
        random: source of random numbers.
    """
    of_runs = runs @ np.linalg.pinv(rows + runs, hermitian=True)
    left = runs - of_runs @ runs
    scale = np.sqrt(share)
    fresh = runs * scale[:, None] * scale
    luck = np.einsum("dmk,dk->dm", of_runs.repeat(DRAWS, axis=0), error)
    luck += _normal(left, random)
    new: Scores = _normal(fresh, random) - luck
    return new


def _normal(covariance: Scores, random: np.random.Generator) -> Scores:
    """Normal draws with these covariances, ``DRAWS`` of each."""
    variances, turn = np.linalg.eigh((covariance + covariance.swapaxes(1, 2)) / 2)
    root = turn * np.sqrt(np.maximum(variances, 0.0))[:, None, :]
    normal = random.standard_normal((len(covariance) * DRAWS, covariance.shape[-1]))
    drawn: Scores = np.einsum("dmk,dk->dm", root.repeat(DRAWS, axis=0), normal)
    return drawn


def _errors(
    methods: Sequence[Scores], by_seed: Collection[tuple[int, int]], random: np.random.Generator
) -> tuple[Scores, Scores]:
    """Covariances of the errors of the methods' means that rows cause, and that runs cause.

    Each is variances × methods × methods; those of rows differ only in the noise of single runs.
    """
    common = Common.of(methods)
    if common is None:
        raise ValueError("no method has two runs, so it is unknown how much runs vary")
    count = methods[0].shape[1]
    moderated = [common.moderate(Runs.of(scores)) for scores in methods]
    counts = np.array([each.count for each in moderated])
    noise = np.array([each.noise for each in moderated]) / count
    freedom = np.array([max(1.0, each.freedom) for each in moderated])
    # Means over rows hold the noise of single runs, and so do means of runs: it counts once. Noise
    # is known from all rows, so only what is above it is drawn.
    over_rows = np.cov(np.stack([scores.mean(axis=0) for scores in methods])) / count
    above = np.maximum([each.between for each in moderated] - noise, 0.0)
    median = np.maximum(freedom - 2 / 3, freedom / 3)  # of chi²
    alone = above * median / _chi_squares(freedom, random) + noise
    deviations = np.sqrt(alone / counts)
    correlation = np.eye(len(methods))
    for a, b in by_seed:
        both = np.corrcoef(methods[a].mean(axis=1), methods[b].mean(axis=1))[0, 1]
        correlation[a, b] = correlation[b, a] = both
    runs: NDArray[np.float64] = deviations[:, :, None] * deviations[:, None, :] * correlation
    rows = np.atleast_2d(over_rows) - np.diag(noise / counts)
    return np.broadcast_to(rows, runs.shape), runs


def _chi_squares(freedom: Scores, random: np.random.Generator) -> Scores:
    """Draws of chi² with these degrees of freedom: ``VARIANCES`` × methods, spread evenly."""
    from scipy.stats import chi2

    places = (np.arange(VARIANCES) + 0.5) / VARIANCES
    shuffled = np.stack([random.permutation(places) for _ in freedom], axis=1)
    drawn: Scores = chi2.ppf(shuffled, freedom)
    return drawn
