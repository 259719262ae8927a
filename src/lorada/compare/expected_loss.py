r"""How much is expected to be lost by taking one of several methods instead of the best.

    loss[m] = E[max over k of mean[k]  -  mean[m]]

The true mean scores are uncertain in a normal model, fitted to the scores (empirical Bayes):

    measured mean = true mean + error,   error ~ N(0, rows + runs),   true mean ~ N(level, spread²)

- ``rows`` is the covariance over rows of the methods' scores: methods share easy and hard rows.
- ``runs`` is diagonal: each method's variance between runs, shrunk to that of all methods, as a few
  runs show little of it. Methods whose runs are pairs by seed have a covariance, too.
- ``spread`` of the true means is not known either, and is drawn from its posterior on a grid. Its
  prior, s² / (1 + s²)² in mean errors, keeps it from zero, where a few methods that score alike
  would put it: methods are seldom equal. So the highest of several scores is pulled towards the
  others by as much as it is likely to be luck.

Only differences between methods matter, so everything is computed in contrasts, in which the errors
are independent. That leaves one Monte Carlo over contrasts, with a fixed seed.
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from lorada.compare.statistics import Runs, Scores

DRAWS = 4_000
SEED = 0  # so that a report is the same each time
PRIOR = 4  # as many degrees of freedom as all methods' variance counts beside a method's own
SPREADS = np.geomspace(0.02, 100.0, 60)  # of true means that are tried, in mean errors


def expected_losses(methods: Sequence[Scores], by_seed: Collection[tuple[int, int]] = ()) -> Scores:
    """The expected loss of taking each method, in the unit of the scores.

    Args:
        methods: seeds × rows of each, of the same rows; some method has two seeds or more.
        by_seed: places of methods whose runs with one seed are alike, with these runs in order.
    """
    if len(methods) == 1:
        return np.zeros(1)
    means = np.array([scores.mean() for scores in methods])
    error = _errors(methods, by_seed)
    # Contrasts: orthonormal, orthogonal to the common level, and with independent errors.
    count = len(methods)
    contrasts = np.linalg.svd(np.eye(count) - 1 / count)[0][:, : count - 1]
    variances, turn = np.linalg.eigh(contrasts.T @ error @ contrasts)
    contrasts = contrasts @ turn
    variances = np.maximum(variances, 0.0)
    if variances.max() < 1e-18:
        lost: Scores = means.max() - means
        return lost
    draws = _draws(contrasts.T @ means, variances) @ contrasts.T
    lost = (draws.max(axis=1, keepdims=True) - draws).mean(axis=0)
    return lost


def _draws(measured: Scores, variances: Scores) -> Scores:
    """Draws of the true contrasts: draws × contrasts."""
    unit = float(variances.mean())
    prior = unit * SPREADS[:, None] ** 2
    total = prior + variances
    likelihood = -0.5 * (np.log(total) + measured**2 / total).sum(axis=1)
    # The grid has equal steps of the logarithm, so a density counts times the spread.
    weight = np.exp(likelihood - likelihood.max()) * SPREADS**3 / (1 + SPREADS**2) ** 2
    places = (np.arange(DRAWS) + 0.5) / DRAWS
    drawn = prior[np.searchsorted(np.cumsum(weight) / weight.sum(), places)]
    kept = drawn / (drawn + variances)
    normal = np.random.default_rng(SEED).standard_normal((DRAWS, len(measured)))
    return kept * measured + np.sqrt(kept * variances) * normal


def _errors(methods: Sequence[Scores], by_seed: Collection[tuple[int, int]]) -> Scores:
    """The covariance of the errors of the methods' means: methods × methods."""
    rows = methods[0].shape[1]
    found = [Runs.of(scores) for scores in methods]
    freedom = np.array([each.count - 1.0 for each in found])
    if not freedom.any():
        raise ValueError("no method has two runs, so it is unknown how much runs vary")
    own = np.array([each.between for each in found])
    pooled = float((freedom * own).sum() / freedom.sum())
    counts = freedom + 1
    noise = np.array([each.noise for each in found])
    noise[freedom == 0] = (freedom * noise).sum() / freedom.sum()
    between = (PRIOR * pooled + freedom * own) / (PRIOR + freedom)
    # Means over rows hold the noise of single runs, and so do means of runs: it counts once.
    over_rows = np.atleast_2d(np.cov(np.stack([scores.mean(axis=0) for scores in methods]))) / rows
    alone = np.maximum(between - noise / rows, 0.0)
    runs: NDArray[np.float64] = np.diag(alone / counts)
    for a, b in by_seed:
        both = np.corrcoef(methods[a].mean(axis=1), methods[b].mean(axis=1))[0, 1]
        runs[a, b] = runs[b, a] = both * np.sqrt(alone[a] * alone[b]) / counts[a]
    both_parts: Scores = over_rows + runs
    return both_parts
