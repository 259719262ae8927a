"""What a training gains over the best of what needs none, and how it is said."""

import numpy as np
import pytest
from folders import refused
from scipy import stats

from lorada.decision.decide import decide
from lorada.decision.statistics import Common, gain

ROWS = 60


def right_or_wrong(percent, seed, *, runs=None):
    """Right and wrong answers of runs × rows, or of the rows alone."""
    shape = ROWS if runs is None else (runs, ROWS)
    return 100.0 * (np.random.default_rng(seed).random(shape) < percent / 100)


def numbers(mean, seed, *, runs=None, spread=10.0, rows=ROWS):
    shape = rows if runs is None else (runs, rows)
    return np.random.default_rng(seed).normal(mean, spread, shape)


def welch(parts):
    """A standard error and degrees of freedom of independent variances with those of their own."""
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / own for variance, own in parts if own < np.inf)
    return np.sqrt(total), freedom


def test_one_run_less_one_draw_is_the_mean_of_paired_differences_with_students_interval():
    run, prompt = numbers(60, 1, runs=1), numbers(50, 2)
    measured = gain(run, prompt[None])
    differences = run[0] - prompt
    paired = stats.ttest_rel(run[0], prompt).confidence_interval(0.95)
    assert measured.value == pytest.approx(differences.mean())
    assert measured.interval() == pytest.approx((paired.low, paired.high))


def test_of_several_runs_the_variance_between_them_comes_on_top_of_that_over_rows():
    runs = numbers(60, 1, runs=3) + np.array([[0.0], [6.0], [-5.0]])
    prompt = numbers(50, 2)
    measured = gain(runs, prompt[None])
    differences = runs.mean(axis=0) - prompt
    # An analysis of variance in two ways, by hand.
    run_means = runs.mean(axis=1)
    residuals = runs - runs.mean(axis=1, keepdims=True) - runs.mean(axis=0) + runs.mean()
    noise = (residuals**2).sum() / (2 * (ROWS - 1))
    over_rows = differences.var(ddof=1) / ROWS
    over_runs = run_means.var(ddof=1) / 3
    # Noise of single scores is in both, and is counted once.
    error, _ = welch([(over_rows, ROWS - 1), (over_runs - noise / (3 * ROWS), 2)])
    assert measured.value == pytest.approx(differences.mean())
    assert measured.error == pytest.approx(error)
    low, high = measured.interval()
    assert (low + high) / 2 == pytest.approx(measured.value)
    assert high - low > 2 * 1.96 * error


def test_draws_of_examples_vary_as_the_runs_of_one_more_method_do():
    runs = numbers(60, 1, runs=3)
    draws = numbers(50, 2, runs=3) + np.array([[0.0], [8.0], [-8.0]])
    measured, of_mean = gain(runs, draws), gain(runs, draws.mean(axis=0)[None])
    assert measured.value == pytest.approx(of_mean.value)
    assert measured.error > of_mean.error
    assert measured.error == pytest.approx(gain(draws, runs).error)
    common = Common.of([runs, draws])
    assert common is not None
    assert measured.freedom < 2 * 59


def test_the_gain_of_the_pick_is_over_the_best_of_baselines_and_alternatives():
    scores = {"lora": right_or_wrong(80, 1, runs=3), "ia3": right_or_wrong(60, 2, runs=3)}
    guess, prompt = right_or_wrong(20, 3), right_or_wrong(45, 4, runs=3)
    decision = decide(
        scores, baselines={"guess": guess}, alternatives={"8 examples": prompt}, margin=0
    )
    found = decision.gain
    assert (found.method, found.over, found.is_shown) == ("lora", "8 examples", True)
    measured = gain(scores["lora"], prompt, [scores["ia3"]])
    flattery = decision.scores["lora"] - decision.expected_score
    assert found.value == pytest.approx(measured.value - flattery)
    assert (found.low, found.high) == pytest.approx([end - flattery for end in measured.interval()])
    assert decision.baselines == {"guess": pytest.approx(guess.mean())}
    assert decision.alternatives == {"8 examples": pytest.approx(prompt.mean())}


def test_the_gain_of_losses_is_how_much_lower_they_are():
    runs, prompt = numbers(1.0, 1, runs=3, spread=0.1), numbers(1.5, 2, spread=0.1)
    decision = decide({"lora": runs}, alternatives={"a prompt": prompt}, lower_is_better=True)
    found = decision.gain
    assert found.value == pytest.approx(prompt.mean() - runs.mean(), abs=0.02)
    assert 0 < found.low < found.value < found.high
    assert found.is_shown
    worse = decide({"lora": runs}, alternatives={"a prompt": prompt - 1}, lower_is_better=True)
    assert worse.gain.high < 0
    assert not worse.gain.is_shown
    best = decide(
        {"lora": runs}, alternatives={"a": prompt, "b": prompt - 0.2}, lower_is_better=True
    )
    assert best.gain.over == "b"


def test_rows_of_a_group_count_as_one_in_the_interval():
    groups = [number // 6 for number in range(ROWS)]
    runs = np.repeat(numbers(60, 1, runs=3, rows=10), 6, axis=1)
    prompt = np.repeat(numbers(50, 2, rows=10), 6)
    grouped = decide({"lora": runs}, alternatives={"a prompt": prompt}, groups=groups).gain
    alone = decide(
        {"lora": runs[:, ::6]}, alternatives={"a prompt": prompt[::6]}
    ).gain  # fmt: skip
    as_if_independent = decide({"lora": runs}, alternatives={"a prompt": prompt}).gain
    assert grouped.value == pytest.approx(alone.value)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    assert as_if_independent.high - as_if_independent.low < 0.7 * (grouped.high - grouped.low)


@pytest.mark.parametrize(("differing", "is_shown"), [(5, False), (6, True)])
def test_fewer_than_six_rows_that_differ_show_no_gain(differing, is_shown):
    runs = np.zeros((3, 20))
    runs[:, :differing] = 100.0
    found = decide({"lora": runs}, alternatives={"a rule": np.zeros(20)}).gain
    assert found.value == pytest.approx(5.0 * differing, abs=0.3)
    assert found.low > 0
    assert found.is_shown is is_shown


def test_one_method_of_one_run_has_a_gain():
    run, prompt = right_or_wrong(90, 1, runs=1), right_or_wrong(30, 2)
    decision = decide({"lora": run}, alternatives={"a prompt": prompt})
    paired = stats.ttest_rel(run[0], prompt).confidence_interval(0.95)
    assert (decision.gain.low, decision.gain.high) == pytest.approx((paired.low, paired.high))
    assert decision.gain.value == pytest.approx(run.mean() - prompt.mean())
    assert "It gains " in decision.sentence
    assert decide({"lora": run}).gain is None


def test_alternatives_change_neither_who_has_learned_nor_the_pick():
    scores = {"lora": right_or_wrong(70, 1, runs=3), "ia3": right_or_wrong(65, 2, runs=3)}
    guess = {"guess": right_or_wrong(20, 3)}
    before = decide(scores, baselines=guess)
    after = decide(scores, baselines=guess, alternatives={"gpt": right_or_wrong(99, 4)})
    for field in ("pick", "unlearned", "letters", "expected_loss", "intervals", "scores"):
        assert getattr(after, field) == getattr(before, field)
    assert before.unlearned == after.unlearned == ()
    as_baseline = decide(scores, baselines={**guess, "gpt": right_or_wrong(99, 4)})
    assert set(as_baseline.unlearned) == {"lora", "ia3"}


def test_a_name_of_both_kinds_is_refused():
    scores = {"lora": right_or_wrong(70, 1, runs=2)}
    guess = {"guess": right_or_wrong(20, 3)}
    refused(
        "guess is a baseline and an alternative: leave one of them out",
        lambda: decide(scores, baselines=guess, alternatives=guess),
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [(np.zeros(ROWS - 1), "59"), (np.full(ROWS, np.nan), "a prompt"), ("high", "a prompt")],
)
def test_an_alternative_that_is_no_table_of_the_rows_is_one_line(table, message):
    scores = {"lora": right_or_wrong(70, 1, runs=2)}
    refused(message, lambda: decide(scores, alternatives={"a prompt": table}))


def test_a_gain_that_is_not_shown_is_said_before_anything_else():
    scores = {"lora": right_or_wrong(62, 1, runs=3)}
    prompt, guess = right_or_wrong(60, 5), right_or_wrong(10, 3)
    decision = decide(scores, baselines={"guess": guess}, alternatives={"8 examples": prompt})
    value, low, high = (
        f"{end:.1f}" for end in (decision.gain.value, decision.gain.low, decision.gain.high)
    )
    assert decision.sentence.startswith(
        "Do not tune yet: lora is not shown to be better than 8 examples "
        f"({prompt.mean():.1f} %): its gain is {value} points ({low} to {high}). "
        "If you tune all the same, take lora ("
    )
    assert "It gains" not in decision.sentence


def test_a_gain_that_is_shown_stands_behind_the_pick():
    scores = {"lora": right_or_wrong(90, 1, runs=3)}
    prompt = right_or_wrong(40, 4)
    decision = decide(scores, alternatives={"8 examples": prompt})
    value, low, high = (
        f"{end:.1f}" for end in (decision.gain.value, decision.gain.low, decision.gain.high)
    )
    assert decision.sentence.startswith("Take lora (expect ")
    assert f"It gains {value} points ({low} to {high}) over 8 examples." in decision.sentence
    assert "Do not tune" not in decision.sentence


def test_where_nothing_was_learned_a_better_alternative_is_named():
    scores = {"lora": right_or_wrong(20, 1, runs=3)}
    guess, gpt = right_or_wrong(20, 3), right_or_wrong(80, 4)
    decision = decide(scores, baselines={"guess": guess}, alternatives={"the answers of gpt": gpt})
    assert decision.pick is None
    assert decision.gain.method == "lora"
    assert decision.sentence.startswith("Do not tune yet: lora is not shown to have learned")
    assert decision.sentence.endswith(
        f" The best score without training, {gpt.mean():.1f} %, is that of the answers of gpt."
    )


def test_what_the_pick_owes_to_luck_is_no_gain():
    """Of eight equal methods the highest looks better than what scores a bit less than they do."""
    lucky = 0
    for seed in range(30):
        scores = {
            f"method {place}": numbers(60, 100 * seed + place, runs=3, spread=20)
            for place in range(8)
        }
        prompt = numbers(54.5, 100 * seed + 99, spread=20)
        decision = decide(scores, alternatives={"a prompt": prompt})
        found = decision.gain
        others = [table for name, table in scores.items() if name != found.method]
        measured_low, _ = gain(scores[found.method], prompt[None], others).interval()
        assert found.is_shown is (found.low > 0)
        assert found.low < measured_low
        lucky += measured_low > 0 and not found.is_shown
    assert lucky
