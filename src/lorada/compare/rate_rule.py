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

import numpy as np

from lorada.compare.stored_plan import Trial

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
    name: str, tried: Sequence[Trial], first: Sequence[float], trials: int, *, fills: bool = True
) -> float | None:
    """The next learning rate, or another factor, to try; None if that is enough.

    A trial that diverged or failed is worse than any other; below only such, lower ones follow.
    While no trial has learned anything, what follows is lower and higher in turn.

    Args:
        name: of the value in the trials.
        tried: the trials so far in which nothing else differs.
        first: the values to begin with.
        trials: how many there are, without up to ``FURTHER`` beyond an end of those before.
        fills: whether a gap of more than ``FACTOR`` beside the best value is divided in any case.
    """
    if len(tried) < len(first):
        return first[len(tried)]
    if trials < 2 or len(tried) >= trials + FURTHER:
        return None
    values = sorted(getattr(trial, name) for trial in tried)
    if all(trial.loss is None for trial in tried):
        return float(values[0] / FACTOR)
    if not has_learned(tried):
        return _in_turn(name, tried, values, turns=len(tried) - len(first))
    losses = smoothed_losses(name, tried, values)
    lowest = losses.min()
    # A loss may be negative in a unit of the user's own, so the tie is a share of its size.
    place = int(np.flatnonzero(losses <= lowest + TIE * abs(lowest))[-1])
    if place == 0:
        return float(values[0] / FACTOR)
    if place == len(values) - 1:
        return float(values[-1] * FACTOR)
    return _beside(values, losses, place, halves=len(tried) < trials, fills=fills)


def _in_turn(name: str, tried: Sequence[Trial], values: list[float], turns: int) -> float:
    """A rate below all others or above them, in turn; none above a trial that diverged."""
    highest = max(tried, key=lambda trial: getattr(trial, name))
    goes_down = turns % 2 == 0 or highest.loss is None
    return float(values[0] / TURN if goes_down else values[-1] * TURN)


def _beside(
    values: list[float], losses: np.ndarray, place: int, *, halves: bool, fills: bool
) -> float | None:
    """The middle of the wider gap beside the best value, of equal ones on the better side."""
    gaps = {
        side: round(abs(math.log10(values[side] / values[place])), 6)
        for side in (place - 1, place + 1)
    }
    side = min(gaps, key=lambda side: (-gaps[side], losses[side]))
    is_wide = gaps[side] > round(math.log10(FACTOR), 6)
    if not halves and not (fills and is_wide):
        return None
    return math.sqrt(values[place] * values[side])


def taken_value(name: str, tried: Sequence[Trial], *, between: bool = True) -> Taken | None:
    """The value with the lowest smoothed loss; None if no trial has ended with a loss.

    Args:
        name: of the value in the trials.
        tried: the trials in which nothing else differs.
        between: whether it may lie between values that were tried.
    """
    values = sorted(getattr(trial, name) for trial in tried if trial.loss is not None)
    if not values:
        return None
    best = _lowest(name, tried, values)
    all_values = [getattr(trial, name) for trial in tried]
    # Beyond an end there may be better ones, so there the end itself is taken, and said to be one.
    if not between or best.value in (min(all_values), max(all_values)):
        return best
    candidates = list(values)
    for low, high in pairwise(values):
        inner = np.geomspace(low, high, BETWEEN + 2)[1:-1]
        candidates += [float(f"{value:.3g}") for value in inner]
    return _lowest(name, tried, candidates)


def _lowest(name: str, tried: Sequence[Trial], values: Sequence[float]) -> Taken:
    losses = smoothed_losses(name, tried, values)
    best = int(losses.argmin())
    return Taken(values[best], float(losses[best]))


def has_learned(tried: Sequence[Trial]) -> bool:
    """Whether a trial is clearly below the loss of guessing, where that is known."""
    guessing = guessing_loss_of(tried)
    losses = [trial.loss for trial in tried if trial.loss is not None]
    return guessing is None or min(losses) < guessing - LEARNED * abs(guessing)


def guessing_loss_of(tried: Sequence[Trial]) -> float | None:
    """The loss of guessing on the rows set aside; None if no trial has measured it."""
    return next((trial.guessing for trial in tried if trial.guessing is not None), None)


def smoothed_losses(name: str, tried: Sequence[Trial], values: Sequence[float]) -> np.ndarray:
    """The smoothed loss at each of some values, of trials of which one has ended at least."""
    measured = np.log10([getattr(trial, name) for trial in tried])
    losses = _bounded_losses(tried)
    inverse = np.linalg.inv(_covariance(measured, measured) + NOISE**2 * np.eye(len(tried)))
    mean = inverse.sum(axis=0) @ losses / inverse.sum()
    smooth: np.ndarray = mean + _covariance(np.log10(values), measured) @ inverse @ (losses - mean)
    return smooth


def _covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    covariance: np.ndarray = np.exp(-((a[:, None] - b) ** 2) / (2 * LENGTH**2))
    return covariance


def _bounded_losses(tried: Sequence[Trial]) -> np.ndarray:
    """The losses, none far above the lowest or above that of guessing; failed trials above all.

    How far a loss is above that says nothing of the rates beside it, and would outweigh the rest.
    """
    ended = [trial.loss for trial in tried if trial.loss is not None]
    guessing, lowest = guessing_loss_of(tried), min(ended)
    # Twice the lowest is far. Where the lowest is next to 0 every loss would be, so the distance of
    # the median counts there, twice.
    highest = lowest + max(abs(lowest), 2 * (float(np.median(ended)) - lowest))
    if guessing is not None:
        highest = max(lowest, min(highest, guessing))
    failed = highest + max((highest - lowest) / 2, LEARNED * abs(highest))
    bounded = [failed if trial.loss is None else min(trial.loss, highest) for trial in tried]
    return np.array(bounded)
