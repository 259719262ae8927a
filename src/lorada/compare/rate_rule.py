"""Which learning rate a search tries next, and which it takes in the end.

Losses on the rows set aside differ between seeds by about as much as between neighbouring rates,
and a little above a good rate there may be one at which nothing is learned. So a rate is not judged
by its own loss alone: losses are smoothed over the logarithm of the rate by a Gaussian process, and
a rate beside one that failed looks worse. The mean of a process with covariance k, noise ν and an
unknown mean m is

    loss(x) = m + k(x, X) (K + ν² I)⁻¹ (y − m),    k(a, b) = exp(−(a − b)² / 2 ℓ²)

In it only ν, the noise in units of what the loss changes by, counts, so it fits losses of any size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from lorada.compare.stored_plan import Trial

# What a search varies: the learning rate, or by how much the rate of maps is changed on its own.
Varied = Literal["rate", "map_factor"]

FURTHER = 3  # trials at most beyond an end of the first ones
FACTOR = 10**0.5  # between a rate and the next one
TURN = 10.0  # the same while nothing is learned yet
# Losses that differ by a smaller share count as equal, and of equal ones the highest rate leads on:
# where the rates are too low to learn anything, chance alone says which loss is the lowest.
TIE = 0.005
# What a loss must be below that of guessing, as a share of it, for something to be learned.
LEARNED = 0.03
LENGTH = 0.4  # ℓ, in decades
NOISE = 0.5  # ν
BETWEEN = 8  # rates between two that were tried, of which one may be taken


@dataclass(frozen=True)
class Taken:
    """The value that a search takes."""

    value: float
    loss: float  # smoothed


def next_value(
    varied: Varied,
    trials: Sequence[Trial],
    first_values: Sequence[float],
    trial_count: int,
    *,
    divides_wide: bool = True,
) -> float | None:
    """The next learning rate, or factor of the maps' rate, to try; None if that is enough.

    A trial that diverged or failed is worse than any other; below only such, lower ones follow.
    While no trial has learned anything, what follows is lower and higher in turn.

    Args:
        varied: the field of a trial that has the value.
        trials: those so far in which nothing else differs.
        first_values: the values to begin with.
        trial_count: how many trials there are, without up to ``FURTHER`` beyond an end of those
            before.
        divides_wide: whether a gap of more than ``FACTOR`` beside the best value is divided even
            if all trials are made.
    """
    if len(trials) < len(first_values):
        return first_values[len(trials)]
    if trial_count < 2 or len(trials) >= trial_count + FURTHER:
        return None

    values = sorted(getattr(trial, varied) for trial in trials)
    if all(trial.loss is None for trial in trials):
        return float(values[0] / FACTOR)
    if not has_learned(trials):
        return _value_in_turn(varied, trials, values, turns=len(trials) - len(first_values))

    losses = smoothed_losses(varied, trials, values)
    lowest = losses.min()
    # A loss may be negative in a unit of the user's own, so the tie is a share of its size.
    best_place = int(np.flatnonzero(losses <= lowest + TIE * abs(lowest))[-1])
    # A best value at an end may have a better one beyond it.
    if best_place == 0:
        return float(values[0] / FACTOR)
    if best_place == len(values) - 1:
        return float(values[-1] * FACTOR)
    has_trials_left = len(trials) < trial_count
    return _value_beside(
        values, losses, best_place, divides_any=has_trials_left, divides_wide=divides_wide
    )


def _value_in_turn(
    varied: Varied, trials: Sequence[Trial], values: list[float], turns: int
) -> float:
    """A value below all others or above them, in turn; none above a trial that diverged."""
    highest = max(trials, key=lambda trial: getattr(trial, varied))
    goes_down = turns % 2 == 0 or highest.loss is None
    if goes_down:
        return float(values[0] / TURN)
    return float(values[-1] * TURN)


def _value_beside(
    values: list[float],
    losses: np.ndarray,
    best_place: int,
    *,
    divides_any: bool,
    divides_wide: bool,
) -> float | None:
    """The middle of the wider gap beside the best value, of equal ones on the better side.

    It is None if that gap is not to be divided. A wide gap is one of more than ``FACTOR``.

    Args:
        values: the learning rates, or factors of the maps' rate, that were tried, from the lowest
            on.
        losses: the smoothed loss at each of them.
        best_place: which of them is the best; it is at neither end.
        divides_any: whether the gap is divided even if it is not a wide one.
        divides_wide: whether it is divided if it is a wide one.
    """
    gaps: dict[int, float] = {}
    for neighbour in (best_place - 1, best_place + 1):
        decades = abs(math.log10(values[neighbour] / values[best_place]))
        gaps[neighbour] = round(decades, 6)  # gaps of one factor are equal but for rounding
    neighbour = min(gaps, key=lambda place: (-gaps[place], losses[place]))

    is_wide = gaps[neighbour] > round(math.log10(FACTOR), 6)
    if divides_any or (divides_wide and is_wide):
        return math.sqrt(values[best_place] * values[neighbour])
    return None


def taken_value(varied: Varied, trials: Sequence[Trial], *, between: bool = True) -> Taken | None:
    """The value with the lowest smoothed loss; None if no trial has ended with a loss.

    Args:
        varied: the field of a trial that has the value.
        trials: those in which nothing else differs.
        between: whether it may lie between values that were tried.
    """
    values = sorted(getattr(trial, varied) for trial in trials if trial.loss is not None)
    if not values:
        return None
    best = _lowest(varied, trials, values)
    all_values = [getattr(trial, varied) for trial in trials]
    # Beyond an end there may be better ones, so there the end itself is taken, and said to be one.
    if not between or best.value in (min(all_values), max(all_values)):
        return best
    candidates = list(values)
    for low, high in pairwise(values):
        inner_values = np.geomspace(low, high, BETWEEN + 2)[1:-1]
        candidates += [float(f"{value:.3g}") for value in inner_values]
    return _lowest(varied, trials, candidates)


def _lowest(varied: Varied, trials: Sequence[Trial], values: Sequence[float]) -> Taken:
    """The one of some values that has the lowest smoothed loss."""
    losses = smoothed_losses(varied, trials, values)
    best = int(losses.argmin())
    return Taken(values[best], float(losses[best]))


def has_learned(trials: Sequence[Trial]) -> bool:
    """Whether a trial is clearly below the loss of guessing, where that is known."""
    guessing = guessing_loss_of(trials)
    if guessing is None:
        return True
    lowest = min(trial.loss for trial in trials if trial.loss is not None)
    return lowest < guessing - LEARNED * abs(guessing)


def guessing_loss_of(trials: Sequence[Trial]) -> float | None:
    """The loss of guessing on the rows set aside; None if no trial has measured it."""
    measured = [trial.guessing for trial in trials if trial.guessing is not None]
    return measured[0] if measured else None


def smoothed_losses(varied: Varied, trials: Sequence[Trial], values: Sequence[float]) -> np.ndarray:
    """The smoothed loss at each of some values, of trials of which one has ended at least."""
    measured_at = np.log10([getattr(trial, varied) for trial in trials])
    losses = _bounded_losses(trials)
    covariance = _covariance(measured_at, measured_at) + NOISE**2 * np.eye(len(trials))
    inverse = np.linalg.inv(covariance)
    mean = inverse.sum(axis=0) @ losses / inverse.sum()
    cross_covariance = _covariance(np.log10(values), measured_at)
    smoothed: np.ndarray = mean + cross_covariance @ inverse @ (losses - mean)
    return smoothed


def _covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """k(a, b) of the equation above, for each of ``a`` with each of ``b``."""
    covariance: np.ndarray = np.exp(-((a[:, None] - b) ** 2) / (2 * LENGTH**2))
    return covariance


def _bounded_losses(trials: Sequence[Trial]) -> np.ndarray:
    """The losses, none far above the lowest or above that of guessing; failed trials above all.

    How far a loss is above that says nothing of the rates beside it, and would outweigh the rest.
    """
    losses = [trial.loss for trial in trials if trial.loss is not None]
    lowest = min(losses)
    guessing = guessing_loss_of(trials)
    # Twice the lowest is far. Where the lowest is next to 0 every loss would be, so the distance of
    # the median counts there, twice.
    highest = lowest + max(abs(lowest), 2 * (float(np.median(losses)) - lowest))
    if guessing is not None:
        highest = max(lowest, min(highest, guessing))

    loss_of_failed = highest + max((highest - lowest) / 2, LEARNED * abs(highest))
    bounded = []
    for trial in trials:
        bounded.append(loss_of_failed if trial.loss is None else min(trial.loss, highest))
    return np.array(bounded)
