"""Can three training sizes say what doubling the rows brings? Made-up worlds whose truth is known.

A method is trained on a quarter, a half and all of the rows, and scored on the same held-out rows.
The log-odds of a right answer are a sum, as in ``made_up_worlds.py``: how easy the row is, how much
is learned from so many training rows, how well the training suits that row, and the run's luck.
Printed is, for three ways to say what twice the rows would bring, and for the measured gain of the
last doubling, how often the 95 % interval holds the truth, and the bias.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from lorada.decision.run_variances import Common, Scores
from lorada.decision.statistics import Estimate, difference

DRAWS = 400  # comparisons of each world
SHARES = (0.25, 0.5, 1.0)  # of the training rows that there are
SEEDS = (2, 2, 3)  # runs of each share
EASE, TASTE, NOISE = 1.2, 0.3, 0.5  # standard deviations, in log-odds
MIDDLE = 0.8  # log-odds of a right answer on a middling row, with all training rows
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
# What the shrunk power law assumes: each doubling brings this share of what the last one brought.
# 2 ** -0.5 is that of an error that falls as one over the root of the rows.
PRIOR_RATIO, PRIOR_SPREAD = 2**-0.5, 0.3
PRIOR_GAIN = 15.0  # points; standard deviation of what the first doubling brings

Curve = Callable[[float], float]  # share of the training rows → log-odds above those at all rows


def _linear_in_log(share: float) -> float:
    return 0.2 * float(np.log2(share))


def _power_law(share: float) -> float:
    return 0.6 * (1.0 - share**-0.5)


def _saturated(share: float) -> float:
    return 0.6 * (1.0 - share**-2) / 15


def _flat(share: float) -> float:
    return 0.0


def _step_before_all(share: float) -> float:
    return float(expit(8 * np.log2(share / 0.7)) - expit(8 * np.log2(1 / 0.7)))


def _step_beyond_all(share: float) -> float:
    return float(expit(8 * np.log2(share / 1.4)) - expit(8 * np.log2(1 / 1.4)))


CURVES: dict[str, Curve] = {
    "linear in log rows": _linear_in_log,
    "power law": _power_law,
    "saturated": _saturated,
    "flat": _flat,
    "step before all rows": _step_before_all,
    "step beyond all rows": _step_beyond_all,
}

WAYS = (
    "half to all, measured",
    "next: as the last one",
    "next: slope on log rows",
    "next: shrunk power law",
)


@dataclass(frozen=True)
class Prediction:
    """What is said of a doubling, in points: its value and its 95 % interval."""

    value: float
    low: float
    high: float


def true_score(curve: Curve, share: float, run: float) -> float:
    """The mean score in percent over all rows and all runs with so many training rows."""
    spread = float(np.sqrt(EASE**2 + TASTE**2 + NOISE**2 + run**2))
    right = expit(MIDDLE + curve(share) + spread * NODES)
    return 100 * float(WEIGHTS @ right / WEIGHTS.sum())


def draw(curve: Curve, rows: int, run: float, random: np.random.Generator) -> list[Scores]:
    """Scores of the runs of each share, runs × held-out rows: 100 or 0."""
    ease = random.normal(MIDDLE, EASE, rows)
    tables = []
    for share, seeds in zip(SHARES, SEEDS, strict=True):
        taste = random.normal(0, TASTE, rows)
        luck = random.normal(0, run, (seeds, 1))
        noise = random.normal(0, NOISE, (seeds, rows))
        odds = ease + curve(share) + taste + luck + noise
        tables.append(100.0 * (random.random((seeds, rows)) < expit(odds)))
    return tables


def _of_estimate(estimate: Estimate, factor: float = 1.0) -> Prediction:
    low, high = estimate.interval()
    return Prediction(factor * estimate.value, factor * low, factor * high)


def shrunk_power_law(first: Estimate, second: Estimate, both: Estimate) -> Prediction:
    """The posterior of the third doubling, where each brings a share of what the last one brought.

    Args:
        first: what the doubling from a quarter to a half has brought.
        second: what that from a half to all rows has brought.
        both: what both have brought together, from which the covariance of the two follows.
    """
    covariance = (both.error**2 - first.error**2 - second.error**2) / 2
    matrix = np.array([[first.error**2, covariance], [covariance, second.error**2]])
    # Rounding, or degrees of freedom that differ, may leave it singular.
    precision = np.linalg.inv(matrix + 1e-6 * np.eye(2))
    gains = np.linspace(-40, 40, 401)[:, None]  # of the first doubling
    ratios = np.linspace(0, 1.6, 81)[None, :]
    off_first = first.value - gains + 0 * ratios
    off_second = second.value - gains * ratios
    misfit = precision[0, 0] * off_first**2 + precision[1, 1] * off_second**2
    misfit = misfit + 2 * precision[0, 1] * off_first * off_second
    prior = (gains / PRIOR_GAIN) ** 2 + ((ratios - PRIOR_RATIO) / PRIOR_SPREAD) ** 2
    log_posterior = -(misfit + prior) / 2
    posterior = np.exp(log_posterior - log_posterior.max()).ravel()
    third = (gains * ratios**2).ravel()

    order = np.argsort(third)
    cumulative = np.cumsum(posterior[order]) / posterior.sum()
    low, high = np.interp([0.025, 0.975], cumulative, third[order])
    return Prediction(float(third @ posterior / posterior.sum()), float(low), float(high))


def predictions(tables: list[Scores]) -> dict[str, Prediction]:
    """What each way says: of the measured doubling, and of the one to come."""
    quarter, half, whole = tables
    common = Common.of(tables)
    first = difference(half, quarter, common)
    second = difference(whole, half, common)
    both = difference(whole, quarter, common)
    said = (
        _of_estimate(second),
        _of_estimate(second),
        _of_estimate(both, 0.5),  # least squares of equal steps
        shrunk_power_law(first, second, both),
    )
    return dict(zip(WAYS, said, strict=True))


def main() -> None:
    """Print the table."""
    print(f"| curve | rows | runs | {' | '.join(WAYS)} |")
    print(f"|---|--:|--:|{'--:|' * len(WAYS)}")
    for name, curve in CURVES.items():
        for rows, run in ((100, 0.13), (300, 0.13), (1000, 0.05), (1000, 0.13)):
            print(f"| {name} | {rows:,} | {run} | {' | '.join(_cells(curve, rows, run))} |")


def _cells(curve: Curve, rows: int, run: float) -> list[str]:
    """How often each interval holds the truth, and the bias in points, over ``DRAWS`` draws."""
    random = np.random.default_rng(66)
    at_all = true_score(curve, 1.0, run)
    measured_truth = at_all - true_score(curve, 0.5, run)
    next_truth = true_score(curve, 2.0, run) - at_all
    held: dict[str, list[bool]] = {way: [] for way in WAYS}
    errors: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(DRAWS):
        for way, said in predictions(draw(curve, rows, run, random)).items():
            truth = next_truth if way.startswith("next") else measured_truth
            held[way].append(said.low <= truth <= said.high)
            errors[way].append(said.value - truth)
    return [f"{100 * np.mean(held[way]):.1f} % ({np.mean(errors[way]):+.1f})" for way in WAYS]


if __name__ == "__main__":
    main()
