"""What is expected to be lost by taking one of several methods."""

import numpy as np
import pytest
from scipy import integrate, stats

from lorada.compare.expected_loss import DRAWS, expected_losses

SAME = 1e-9  # relative; two ways to compute one number


def two_methods(apart):
    random = np.random.default_rng(3)
    rows = random.normal(70, 20, 200)
    return [
        rows + mean + random.normal(0, 1.5, (runs, 1)) + random.normal(0, 9, (runs, 200))
        for mean, runs in ((apart, 3), (0.0, 5))
    ]


@pytest.mark.parametrize("apart", [0.0, 2.0])
def test_of_two_methods_it_is_the_integral_over_their_difference_and_its_spread(apart):
    methods = two_methods(apart)
    runs = [each.mean(axis=1).var(ddof=1) for each in methods]
    shared = (2 * runs[0] + 4 * runs[1]) / 6
    variance = (methods[0].mean(axis=0) - methods[1].mean(axis=0)).var(ddof=1) / 200
    for each, own in zip(methods, runs, strict=True):
        count = len(each)
        rest = each - each.mean(axis=1, keepdims=True) - each.mean(axis=0) + each.mean()
        noise = (rest**2).sum() / ((count - 1) * 199) / 200
        shrunk = (4 * shared + (count - 1) * own) / (count + 3)
        variance += max(shrunk - noise, 0) / count
    measured = methods[0].mean() - methods[1].mean()

    def density(spread):
        likelihood = stats.norm.pdf(measured, scale=np.sqrt(variance * (1 + spread**2)))
        return likelihood * spread**2 / (1 + spread**2) ** 2

    def lost(spread, sign):  # E[max(sign × difference, 0)] of a normal posterior
        kept = spread**2 / (1 + spread**2)
        mean, deviation = sign * kept * measured, np.sqrt(kept * variance)
        at = mean / deviation
        return density(spread) * (mean * stats.norm.cdf(at) + deviation * stats.norm.pdf(at))

    whole = integrate.quad(density, 0.02, 100, limit=200)[0]
    expected = [integrate.quad(lost, 0.02, 100, (sign,), limit=200)[0] / whole for sign in (-1, 1)]
    found = expected_losses(methods)
    assert found == pytest.approx(expected, abs=4 * np.sqrt(variance / DRAWS))
    assert found.min() > 0


def test_runs_that_are_pairs_by_seed_leave_less_to_lose():
    random = np.random.default_rng(4)
    luck, rows = random.normal(0, 4, (5, 1)), random.normal(70, 9, 300)
    methods = [rows + luck + random.normal(0, 0.3, (5, 1)) for _ in range(2)]
    assert expected_losses(methods, [(0, 1)]).min() < 0.5 * expected_losses(methods).min()


def test_nothing_is_lost_with_one_method_and_the_gap_where_nothing_varies():
    assert expected_losses([np.ones((1, 3))]).tolist() == [0.0]
    steady = [np.full((2, 30), mean) for mean in (70.0, 68.5)]
    assert expected_losses(steady) == pytest.approx([0.0, 1.5], abs=SAME)


def test_without_a_second_run_the_luck_of_runs_is_unknown():
    with pytest.raises(ValueError, match="no method has two runs"):
        expected_losses([np.ones((1, 3)), np.ones((1, 3))])
