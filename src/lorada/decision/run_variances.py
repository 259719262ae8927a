r"""How much the runs of each method vary, where it has only a few, from those of all methods.

Three runs may be alike by luck, and of many methods some are. Their own variance alone would then
take luck for a difference, and it has few degrees of freedom, which costs power. So the variances
of methods are moderated, as the t-test of Smyth (2004), "Linear models and empirical Bayes methods
for assessing differential expression in microarray experiments", moderates those of genes:

    moderated = (weight × pooled + freedom × own) / (weight + freedom),   with freedom + weight

degrees of freedom. Three things are added, because methods are fewer than genes, and less alike:

- ``weight`` is not fixed. It follows from how much the variances of methods differ: own variances
  scatter as those of an F distribution with (freedom, weight) degrees around a level. Weights from
  2 on are averaged by their posterior; the prior falls as 1 / √weight. The weight is at most the
  degrees of freedom of the other methods' runs, so of few methods little is borrowed.
- The pooled variance is the mean of all, and not the level of that distribution, which is lower
  where few methods vary much: where some runs collapse, or learn in some seeds and not in others, a
  method whose runs are alike is not trusted.
- A method that varies more than the moderated value is taken to vary half-way between this and its
  own. The two mistakes are not alike: too small a variance calls luck a difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorada.support.error_messages import needs_extra

Scores = NDArray[np.float64]
TINY = 1e-9  # percent; differences below it are rounding errors
WEIGHTS = 2.0 ** np.arange(1, 8)  # degrees of freedom that pooled runs may count
LEVELS = np.geomspace(0.02, 3.0, 40)  # of variances between runs, in pooled variances
PRIOR = WEIGHTS**-0.5  # of the weights
UPWARDS = 0.5  # how far a method that varies more than its moderated variance is moved to its own


@dataclass(frozen=True)
class Runs:
    """How the runs of one method differ, as variances in squared points; 0 of a single run.

    Attributes:
        count: of runs.
        between: variance of the mean score of one run.
        noise: variance of single scores that neither their row nor their run explains.
        freedom: degrees of freedom of ``between``.
        pooled_freedom: those of all runs that it was computed from; no test has more.
    """

    count: int
    between: float
    noise: float
    freedom: float
    pooled_freedom: float = math.inf

    @classmethod
    def of(cls, scores: Scores) -> "Runs":
        """The runs of seeds × rows, without those of other methods."""
        count, rows = scores.shape
        if min(count, rows) < 2:
            return cls(count, between=0.0, noise=0.0, freedom=0)
        run_means = scores.mean(axis=1, keepdims=True)
        row_means = scores.mean(axis=0)
        # What neither the run nor the row explains, as in an analysis of variance in two ways.
        residuals = scores - run_means - row_means + scores.mean()
        noise = float((residuals**2).sum() / ((count - 1) * (rows - 1)))
        between = float(run_means.var(ddof=1))
        return cls(count, between, noise, freedom=count - 1)


@dataclass(frozen=True)
class Common:
    """How the runs of all methods vary together.

    Attributes:
        between: the pooled variance of the mean score of one run, in squared points.
        noise: the pooled variance of single scores, as in ``Runs``.
        freedom: degrees of freedom of both: runs less methods.
        weights: the posterior probability of each of ``WEIGHTS``.
    """

    between: float
    noise: float
    freedom: float
    weights: tuple[float, ...]

    @classmethod
    def of(cls, methods: Sequence[Scores]) -> "Common | None":
        """That of methods, each seeds × rows; None if none of them has two runs and two rows."""
        return cls.of_runs([Runs.of(scores) for scores in methods])

    @classmethod
    def of_runs(cls, methods: Sequence[Runs]) -> "Common | None":
        """That of the runs of each method."""
        with_variance = [runs for runs in methods if runs.freedom]  # of two runs or more
        if not with_variance:
            return None
        freedom = np.array([runs.freedom for runs in with_variance])
        between = np.array([runs.between for runs in with_variance])
        noise = np.array([runs.noise for runs in with_variance])
        pooled_between = float(freedom @ between / freedom.sum())
        pooled_noise = float(freedom @ noise / freedom.sum())
        return cls(
            between=pooled_between,
            noise=pooled_noise,
            freedom=float(freedom.sum()),
            weights=_posterior_of_weights(between, freedom, pooled_between),
        )

    def moderate(self, own: Runs) -> Runs:
        """The runs of one of the methods, with a variance that borrows from those of all.

        A single run has the noise of all methods, as it shows none itself.
        """
        noise = own.noise if own.count > 1 else self.noise
        freedom_of_others = self.freedom - own.freedom
        if self.between < TINY**2 or not freedom_of_others:  # there is nothing to borrow
            return replace(own, noise=noise, pooled_freedom=self.freedom)
        # The precision 1 / variance has a gamma distribution for each weight, and so about the
        # one with their mean and variance, by which the degrees of freedom are counted.
        weights = np.minimum(WEIGHTS, freedom_of_others)
        shape = (weights + own.freedom) / 2
        rate = (weights * self.between + own.freedom * own.between) / 2
        mean_precision = float(np.dot(self.weights, shape / rate))
        mean_square = float(np.dot(self.weights, shape * (shape + 1) / rate**2))
        variance_of_precision = mean_square - mean_precision**2
        moderated = 1 / mean_precision
        above_moderated = max(0.0, own.between - moderated)
        freedom = 2 * mean_precision**2 / variance_of_precision
        return Runs(
            count=own.count,
            between=moderated + UPWARDS * above_moderated,
            noise=noise,
            freedom=min(freedom, self.freedom),  # no more than all runs have
            pooled_freedom=self.freedom,
        )


def _posterior_of_weights(between: Scores, freedom: Scores, pooled: float) -> tuple[float, ...]:
    """How probable each of ``WEIGHTS`` is, given the variances of methods."""
    with needs_extra("compare"):
        from scipy.special import gammaln

    if pooled < TINY**2:
        return tuple((PRIOR / PRIOR.sum()).tolist())
    # Axes: weights, levels, methods. The level is not known and is averaged over.
    weight = WEIGHTS[:, None, None]
    level = (pooled * LEVELS)[:, None]
    # The log density of an F distribution, without the terms that all weights and levels share.
    total = weight + freedom
    scaled = weight * level
    log_density = gammaln(total / 2) - gammaln(weight / 2) + weight / 2 * np.log(scaled)
    log_density = log_density - total / 2 * np.log(scaled + freedom * between)
    log_likelihood = log_density.sum(axis=-1)
    # Less the largest, since the exponential of a large negative number is 0 for all of them.
    likelihood = np.exp(log_likelihood - log_likelihood.max()).sum(axis=1)
    posterior = likelihood * PRIOR
    return tuple((posterior / posterior.sum()).tolist())
