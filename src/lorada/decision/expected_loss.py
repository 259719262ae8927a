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

An expected loss is a mean, and an interval is not. Student's t with few degrees of freedom is a
mixture of normal distributions whose variances have a long tail; of two degrees their mean is
infinite, and so would be what is lost. The draws, with the moderated value as their median, have a
shorter tail. Intervals of true means need the whole of it: they are as much wider than the draws
are as Student's interval of the measured mean (``statistics``) is wider than the drawn errors.

The draws have a fixed seed, so that a report is the same each time.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorada.decision.run_variances import Common, Runs, Scores
from lorada.decision.statistics import LEVEL, mean_score

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
        widening: of each method, how many times as wide as the draws its interval is.
    """

    means: Scores
    later: Scores
    widening: Scores

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
        of_method = self.means[:, place]
        middle = of_method.mean()
        deviations = np.quantile(of_method, [(1 - level) / 2, (1 + level) / 2]) - middle
        low, high = middle + self.widening[place] * deviations
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
    errors = _error_covariances(methods, by_seed, random)
    means = _draw_true_means(measured, errors.rows + errors.runs, random)
    widening = _widening(methods, errors)
    if not more_runs:
        return Posterior(means, means[:0], widening)
    luck = _draw_luck_of_runs(measured - means, errors, counts / more_runs, random)
    share_of_new_runs = more_runs / (counts + more_runs)
    later = measured + share_of_new_runs * luck
    return Posterior(means, later, widening)


@dataclass(frozen=True)
class _ErrorAxes:
    """The errors of the methods' means, in axes in which they are independent of each other.

    Attributes:
        turn: from these axes to methods: draws × methods × axes.
        variances: of the errors along each axis: draws × axes.
        scores: the measured means in these axes: draws × axes.
        ones: one point more for every method, in these axes: draws × axes. The level lies along it.
    """

    turn: Scores
    variances: Scores
    scores: Scores
    ones: Scores

    @classmethod
    def of(cls, measured: Scores, covariance: Scores) -> "_ErrorAxes":
        """Those of mean scores with a covariance: draws × methods × methods."""
        variances, turn = np.linalg.eigh(covariance)
        return cls(
            turn=turn,
            variances=np.maximum(variances, 0.0),  # rounding makes some a little negative
            scores=turn.swapaxes(1, 2) @ measured,
            ones=turn.sum(axis=1),
        )

    def repeated(self) -> "_ErrorAxes":
        """``DRAWS`` times those of each draw."""
        return _ErrorAxes(
            turn=self.turn.repeat(DRAWS, axis=0),
            variances=self.variances.repeat(DRAWS, axis=0),
            scores=self.scores.repeat(DRAWS, axis=0),
            ones=self.ones.repeat(DRAWS, axis=0),
        )


def _draw_true_means(measured: Scores, covariance: Scores, random: np.random.Generator) -> Scores:
    """Draws of the true means: draws × methods.

    Args:
        measured: the mean score of each method.
        covariance: draws of the covariance of its errors: variances × methods × methods.
        random: source of random numbers.
    """
    count = len(measured)
    # Of the variance of an error, the part that all methods share tells nothing of differences.
    shared = covariance.sum(axis=(1, 2)) / count
    whole = np.trace(covariance, axis1=1, axis2=2)
    unit = float((whole - shared).mean()) / max(1, count - 1)
    if unit < NOTHING:
        deviation = np.sqrt(np.maximum(shared / count, 0.0).repeat(DRAWS))
        shift = deviation * random.standard_normal(len(deviation))
        shifted: Scores = measured + shift[:, None]
        return shifted

    axes = _ErrorAxes.of(measured, covariance)
    spread = _draw_spreads(axes, unit)[:, None]
    axes = axes.repeated()
    total = spread**2 + axes.variances
    # The level, given the spread: the mean weighted by precision, and how far that is uncertain.
    precision = (axes.ones**2 / total).sum(axis=1)
    level = (axes.ones * axes.scores / total).sum(axis=1) / precision
    level += random.standard_normal(len(level)) / np.sqrt(precision)
    # The means, given both: between the level and what was measured.
    prior = level[:, None] * axes.ones
    pull = spread**2 / total  # 1: the measured mean is right; 0: the level is
    drawn = prior + pull * (axes.scores - prior)
    drawn += np.sqrt(pull * axes.variances) * random.standard_normal(drawn.shape)
    means: Scores = np.einsum("dmk,dk->dm", axes.turn, drawn)
    return means


def _draw_spreads(axes: _ErrorAxes, unit: float) -> Scores:
    """Draws of the spread of true means, ``DRAWS`` for each of the variances.

    Args:
        axes: the measured means and their errors.
        unit: the mean variance of errors, without what all methods share.
    """
    # Axes of the arrays: variances, spreads, axes of the errors.
    total = unit * SPREADS[:, None] ** 2 + axes.variances[:, None, :]
    scores, ones = axes.scores[:, None, :], axes.ones[:, None, :]
    # The likelihood of each spread, with the level integrated out.
    precision = (ones**2 / total).sum(axis=2)
    fitted = (ones * scores / total).sum(axis=2) ** 2 / precision
    squares = (scores**2 / total).sum(axis=2) - fitted
    log_likelihood = -0.5 * (np.log(total).sum(axis=2) + np.log(precision) + squares)
    # The grid has equal steps of the logarithm, so a density counts times the spread: the prior
    # s² / (1 + s²)² becomes s³ / (1 + s²)².
    weight = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    weight = weight * SPREADS**3 / (1 + SPREADS**2) ** 2
    # Quantiles in equal steps instead of random draws: fewer of them are as exact.
    cumulated = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
    quantiles = (np.arange(DRAWS) + 0.5) / DRAWS
    places = [np.searchsorted(of_variance, quantiles) for of_variance in cumulated]
    spreads: Scores = np.sqrt(unit) * SPREADS[np.concatenate(places)]
    return spreads


def _draw_luck_of_runs(
    error: Scores, covariances: "_ErrorCovariances", runs_per_new_one: Scores,
    random: np.random.Generator,
) -> Scores:  # fmt: skip
    """By how much new runs would score above those that were measured: draws × methods.

    The luck of the measured runs is a part of their error; the other part is that of the rows,
    which new runs have, too.

    Args:
        error: of the measured means, in each draw.
        covariances: of the errors that rows and runs cause.
        runs_per_new_one: measured runs of each method, for each new one.
        random: source of random numbers.
    """
    runs = covariances.runs
    # Given the whole error, that of the runs is normal about its regression on the whole.
    regression = runs @ np.linalg.pinv(covariances.rows + runs, hermitian=True)
    unexplained = runs - regression @ runs
    luck = np.einsum("dmk,dk->dm", regression.repeat(DRAWS, axis=0), error)
    luck += _draw_normal(unexplained, random)
    # The mean of fewer new runs varies more than that of those which were measured.
    scale = np.sqrt(runs_per_new_one)
    luck_of_new_runs = _draw_normal(runs * scale[:, None] * scale, random)
    gain: Scores = luck_of_new_runs - luck
    return gain


def _draw_normal(covariance: Scores, random: np.random.Generator) -> Scores:
    """Normal draws with these covariances, ``DRAWS`` of each."""
    symmetric = (covariance + covariance.swapaxes(1, 2)) / 2
    variances, turn = np.linalg.eigh(symmetric)
    root = turn * np.sqrt(np.maximum(variances, 0.0))[:, None, :]
    standard = random.standard_normal((len(covariance) * DRAWS, covariance.shape[-1]))
    drawn: Scores = np.einsum("dmk,dk->dm", root.repeat(DRAWS, axis=0), standard)
    return drawn


@dataclass(frozen=True)
class _ErrorCovariances:
    """Covariances of the errors of the methods' means: variances × methods × methods.

    Attributes:
        rows: of the errors that the choice of rows causes, the same for all variances.
        runs: of those that runs cause, as the noise of single runs is among them.
    """

    rows: Scores
    runs: Scores


def _error_covariances(
    methods: Sequence[Scores], by_seed: Collection[tuple[int, int]], random: np.random.Generator
) -> _ErrorCovariances:
    """The covariances of the errors of the methods' means; see ``posterior`` for the arguments."""
    common = Common.of(methods)
    if common is None:
        raise ValueError("no method has two runs, so it is unknown how much runs vary")
    row_count = methods[0].shape[1]
    moderated = [common.moderate(Runs.of(scores)) for scores in methods]
    counts = np.array([runs.count for runs in moderated])
    between = np.array([runs.between for runs in moderated])
    noise = np.array([runs.noise for runs in moderated]) / row_count
    freedom = np.array([max(1.0, runs.freedom) for runs in moderated])

    # Means over rows hold the noise of single runs, and so do means of runs: it counts once.
    row_means = np.stack([scores.mean(axis=0) for scores in methods])
    over_rows = np.cov(row_means) / row_count
    rows = np.atleast_2d(over_rows) - np.diag(noise / counts)

    # Noise is known from all rows, so only what is above it is drawn.
    above_noise = np.maximum(between - noise, 0.0)
    median_chi_square = np.maximum(freedom - 2 / 3, freedom / 3)
    drawn = above_noise * median_chi_square / _draw_chi_squares(freedom, random)
    deviations = np.sqrt((drawn + noise) / counts)
    correlation = _correlation_by_seed(methods, by_seed)
    runs: NDArray[np.float64] = deviations[:, :, None] * deviations[:, None, :] * correlation
    return _ErrorCovariances(rows=np.broadcast_to(rows, runs.shape), runs=runs)


def _widening(methods: Sequence[Scores], errors: "_ErrorCovariances") -> Scores:
    """How many times as wide Student's interval of each measured mean is as the drawn errors."""
    from scipy.stats import norm

    common = Common.of(methods)
    quantiles = norm.ppf((np.arange(DRAWS) + 0.5) / DRAWS)
    variances = np.maximum(np.diagonal(errors.rows + errors.runs, axis1=1, axis2=2), 0.0)
    widening = np.ones(len(methods))
    for place, scores in enumerate(methods):
        low, high = mean_score(scores, common).interval(LEVEL)
        drawn_errors = np.outer(np.sqrt(variances[:, place]), quantiles)
        reach = np.quantile(drawn_errors, (1 + LEVEL) / 2)
        if reach**2 > NOTHING:
            widening[place] = max(1.0, (high - low) / 2 / reach)
    return widening


def _correlation_by_seed(
    methods: Sequence[Scores], by_seed: Collection[tuple[int, int]]
) -> NDArray[np.float64]:
    """How the mean scores of runs correlate between methods; 0 of those that are no pairs."""
    correlation = np.eye(len(methods))
    for a, b in by_seed:
        means_of_a, means_of_b = methods[a].mean(axis=1), methods[b].mean(axis=1)
        correlation[a, b] = correlation[b, a] = np.corrcoef(means_of_a, means_of_b)[0, 1]
    return correlation


def _draw_chi_squares(freedom: Scores, random: np.random.Generator) -> Scores:
    """Draws of chi² with these degrees of freedom: ``VARIANCES`` × methods, spread evenly."""
    from scipy.stats import chi2

    quantiles = (np.arange(VARIANCES) + 0.5) / VARIANCES
    # Each method has all quantiles, in an order of its own.
    shuffled = np.stack([random.permutation(quantiles) for _ in freedom], axis=1)
    drawn: Scores = chi2.ppf(shuffled, freedom)
    return drawn
