"""The rule of the search for a learning rate, on made-up curves of the held-out loss."""

import math
import random

import pytest

from lorada.compare.rate_rule import FACTOR, next_value, taken_value
from lorada.compare.stored_plan import Trial

GUESSING, FIRST = 0.693, (1.0, FACTOR, 1 / FACTOR)


def trials_of(losses, guessing=None):
    """Trials with losses by their rates."""
    return [
        Trial(0, rate, number=number, loss=loss, guessing=guessing)
        for number, (rate, loss) in enumerate(losses.items())
    ]


def searched(curve, guessing=GUESSING):
    """The rate that a search of four trials takes; ``curve`` has losses by decades."""
    tried = []
    while (rate := next_value("rate", tried, FIRST, 4)) is not None:
        loss = curve(math.log10(rate))
        tried.append(Trial(0, rate, number=len(tried), loss=loss, guessing=guessing))
    return taken_value("rate", tried).value


def test_final_runs_rarely_fall_off_a_cliff_though_defaults_are_far_off_and_seeds_differ():
    """Of the rates with the lowest loss, climbed to from the default, 40 % are beyond it."""
    chance, falls, lost = random.Random(0), 0, []
    for number in range(60):
        best = chance.uniform(-1.5, -1) if number % 2 else chance.gauss(0, 0.5)
        cliff = best + chance.uniform(0.15, 0.7)

        def cost(decades, best=best, cliff=cliff):
            return 0.3 if decades > cliff else min(0.12 * (decades - best) ** 2, 0.3)

        def curve(decades, cost=cost):
            nats = cost(decades)
            return 0.393 + nats + chance.gauss(0, 0.06) * (1 - nats / 0.3)

        decades = math.log10(searched(curve))
        falls += decades > cliff
        lost.append(cost(decades))
    assert falls <= 1
    assert sum(lost) / len(lost) < 0.02


@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_negative_losses_are_searched_as_positive_ones(shift):
    tried = trials_of({1.0: -1.0, FACTOR: -2.0, 1 / FACTOR: -0.5})
    assert next_value("rate", tried, FIRST, 4) == pytest.approx(10)
    assert taken_value("rate", tried).value == FACTOR
    tried = trials_of({1.0: shift - 2.0, FACTOR: shift - 1.0, 1 / FACTOR: shift - 1.0})
    assert taken_value("rate", tried).value == pytest.approx(1.0, rel=0.1)


def test_a_trial_that_has_not_ended_is_taken_for_worse_than_any():
    tried = trials_of({1.0: 0.5, FACTOR: None, 1 / FACTOR: 0.7})
    assert 1 / FACTOR < taken_value("rate", tried).value <= 1.0
    assert taken_value("rate", trials_of({1.0: None})) is None
    assert next_value("rate", trials_of({1.0: None}), (1.0,), 2) == pytest.approx(1 / FACTOR)


def test_the_gap_that_a_step_of_a_decade_has_left_is_divided():
    losses = {1.0: 0.69, FACTOR: 0.69, 1 / FACTOR: 0.69, 0.0316: 0.4, 0.01: 0.5}
    tried = trials_of(losses, GUESSING)
    assert next_value("rate", tried, FIRST, 4) == pytest.approx(0.1, rel=0.01)
    assert next_value("rate", tried, FIRST, 4, divides_wide=False) is None
