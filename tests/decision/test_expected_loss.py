"""What is expected to be lost by taking one of several methods."""

import numpy as np
import pytest
from scipy import integrate, stats

from lorada.decision.decide import decide
from lorada.decision.expected_loss import DRAWS, VARIANCES, expected_losses, posterior
from lorada.decision.run_variances import Common
from lorada.decision.statistics import mean_score

SAME = 1e-9  # relative; two ways to compute one number


RUNS = (300, 500)  # so many that the variances between runs are known


def two_methods(apart):
    random = np.random.default_rng(3)
    rows = random.normal(70, 20, 200)
    return [
        rows + mean + random.normal(0, 15, (runs, 1)) + random.normal(0, 9, (runs, 200))
        for mean, runs in zip((apart, 0.0), RUNS, strict=True)
    ]


@pytest.mark.parametrize("apart", [0.0, 2.0])
def test_of_two_methods_it_is_the_integral_over_their_difference_and_its_spread(apart):
    methods = two_methods(apart)
    variance = (methods[0].mean(axis=0) - methods[1].mean(axis=0)).var(ddof=1) / 200
    variance += sum(each.mean(axis=1).var(ddof=1) / len(each) for each in methods)
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
    assert found == pytest.approx(expected, abs=4 * np.sqrt(variance / VARIANCES / DRAWS))
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


def test_of_one_method_the_true_mean_is_as_far_from_the_measured_one_as_new_runs_would_be():
    random = np.random.default_rng(5)
    runs = np.repeat(random.normal(70, 3, (40, 1)), 50, axis=1)
    found = posterior([runs])
    error = runs[:, 0].std(ddof=1) / 40**0.5
    assert found.means.mean() == pytest.approx(runs.mean(), abs=0.2 * error)
    low, high = found.interval(0, 0.95)
    assert high - low == pytest.approx(4 * error, rel=0.15)
    assert found.best.tolist() == [1.0]


@pytest.mark.parametrize("seeds", [2, 3])
def test_where_no_score_is_pulled_an_interval_of_a_true_mean_is_students(seeds):
    random = np.random.default_rng(7)
    rows = random.normal(50, 20, 300)
    methods = [rows + mean + random.normal(0, 2, (seeds, 1)) for mean in (-30.0, 30.0)]
    low, high = posterior(methods).interval(1, 0.95)
    student = mean_score(methods[1], Common.of(methods)).interval()
    assert (low, high) == pytest.approx(student, abs=0.05 * (student[1] - student[0]))


def test_the_luck_of_rows_stays_with_more_runs_and_that_of_runs_goes():
    random = np.random.default_rng(6)
    runs = [np.repeat(random.normal(70, 3, (3, 1)), 50, axis=1) for _ in range(6)]
    found = posterior(runs, more_runs=1000)
    assert found.later_loss < 0.05 < found.losses.min()
    rows = [random.normal(70, 20, 100) + random.normal(0, 0.01, (3, 1)) for _ in range(6)]
    found = posterior(rows, more_runs=1000)
    assert found.later_loss == pytest.approx(found.losses.min(), rel=0.05)


def test_noise_counts_once_as_runs_that_move_the_means_as_much_show():
    noise = np.random.default_rng(4).normal(0, 9, (2, 40, 40))
    runs = np.repeat(np.random.default_rng(13).normal(0, 9 / 40**0.5, (2, 40, 1)), 40, axis=2)
    equal = (each - each.mean(axis=(1, 2), keepdims=True) for each in (noise, runs))
    by_noise, by_runs = (expected_losses([*methods])[0] for methods in equal)
    assert by_noise == pytest.approx(by_runs, rel=0.2)  # twice: √2 times as much


def test_of_unequal_numbers_of_runs_the_least_expected_loss_leads():
    random = np.random.default_rng(2)
    rows = random.normal(70, 10, 300)

    def runs(means):
        return rows + np.array(means)[:, None] + random.normal(0, 3, (len(means), 300))

    steady = {f"m{k}": runs(random.normal(0, 1, 3)) for k in range(4)}
    lucky, long = runs([9.0, -3.0]), runs([2.4, 2.6, 2.5, 2.7, 2.3, 2.5, 2.4, 2.6])
    found = decide({**steady, "lucky": lucky, "long": long}, unit="%")
    assert found.highest == "lucky"
    assert found.leader == found.pick == min(found.expected_loss, key=found.expected_loss.get)
    assert found.pick == "long"
    assert "lucky has 2 runs and is expected to lose " in found.sentence
    equal = decide({**steady, "lucky": lucky, "long": long[:2]} | {
        name: table[:2] for name, table in steady.items()}, unit="%")  # fmt: skip
    assert equal.pick == equal.highest
