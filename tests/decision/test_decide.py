"""Which method to take: the rule, what is known of each method, and how it is said."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_worlds import WORLDS, World, made_up
from scipy import stats

from lorada.decision.decide import decide
from lorada.decision.score_format import ScoreFormat
from lorada.decision.statistics import (
    ALPHA,
    Common,
    by_group,
    difference,
    holm,
    paired_p,
    seeds_correlate,
)

SIZES = {"lora": {"parameters": 100}, "ia3": {"parameters": 33}}
SAME = 1e-9  # relative; two ways to compute one number


def steady(*means, rows=50):
    """Runs that score all rows the same, so that only runs count."""
    return np.repeat(np.array(means, dtype=float)[:, None], rows, axis=1)


def answers(right, runs=3, rows=400, seed=0):
    """Right and wrong answers, about so many percent right, with rows easy and hard for all."""
    ease = np.random.default_rng(99).normal(0, 1.5, rows)
    odds = np.quantile(-ease, right / 100) + ease
    noise = np.random.default_rng(seed).normal(0, 0.3, (runs, rows))
    return 100.0 * (odds + noise > 0)


def expected(found, unit="%", form=".1f"):
    """What the sentence says of the score of the pick."""
    score, low, high = (format(x, form) for x in (found.expected_score, *found.expected_interval))
    measured = format(found.scores[found.pick], form)
    said = "" if measured == score else f"measured {measured} {unit}; "
    return f"{said}expect {score} {unit}, {low} to {high}, on new rows and seeds"


def test_a_cheaper_method_is_taken_where_the_tests_bound_of_what_it_costs_is_within_the_margin():
    scores = {"lora": steady(80.0, 81.0, 82.5), "ia3": steady(79.5, 81.2, 81.4)}
    common = Common.of([*scores.values()])
    bound = difference(scores["lora"], scores["ia3"], common).interval(0.8)[1]
    assert decide(scores, SIZES, bound * (1 - SAME)).pick == "lora"
    assert decide(scores, SIZES, bound * (1 + SAME)).pick == "ia3"
    assert decide(scores, SIZES, 0).pick == "lora"


@pytest.mark.parametrize(
    ("lora", "ia3", "taken"),
    [
        ({"parameters": 100}, {"parameters": 79}, "ia3"),
        ({"parameters": 100}, {"parameters": 81}, "lora"),
        ({"parameters": 100, "seconds": 1.0}, {"parameters": 81, "seconds": 0.7}, "ia3"),
        ({"parameters": 79, "seconds": 1.0}, {"parameters": 100, "seconds": 0.1}, "lora"),
        ({"seconds": 1.0, "bytes": 10}, {"seconds": 0.9, "bytes": 7}, "ia3"),
        ({"seconds": 1.0}, {"bytes": 7}, "lora"),
        ({}, {}, "lora"),
    ],
)
def test_cheaper_is_a_fifth_less_of_the_first_cost_that_differs_so_much(lora, ia3, taken):
    scores = {"lora": steady(80.0, 80.1, 80.2), "ia3": steady(79.9, 80.0, 80.1)}
    assert decide(scores, {"lora": lora, "ia3": ia3}, unit="%").pick == taken


def test_each_pair_is_tested_by_the_test_of_the_report_and_corrected_for_all():
    scores = {"a": answers(80), "b": answers(70, seed=1), "c": answers(69, seed=2)}
    found = decide(scores)
    common = Common.of([*scores.values()])
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    ab, ac, bc = holm([paired_p(scores[one], scores[other], common) for one, other in pairs])
    assert found.p_highest == {"b": ab, "c": ac}
    assert max(ab, ac) < 0.05 < bc
    assert found.letters == {"a": "a", "b": "b", "c": "b"}
    few = decide({name: one[:, :4] for name, one in scores.items()})
    assert (few.letters, few.p_highest) == ({"a": "", "b": "", "c": ""}, {})


def test_of_two_cheap_methods_of_about_one_size_the_higher_score_is_taken():
    scores = {"a": steady(80.0, 80.1), "b": steady(79.8, 79.9), "c": steady(79.9, 80.0)}
    costs = {"a": {"parameters": 100}, "b": {"parameters": 40}, "c": {"parameters": 45}}
    found = decide(scores, costs, unit="%")
    assert found.not_worse == ("b", "c")
    assert found.pick == "c"


def test_the_same_answers_to_a_few_rows_do_not_show_that_methods_are_equal():
    for rows, taken in ((200, "lora"), (800, "ia3")):
        ia3 = np.repeat(answers(80, runs=1, rows=rows), 3, axis=0)
        lora = ia3.copy()
        lora[:, int(ia3[0].argmin())] = 100.0  # one more right answer
        assert decide({"lora": lora, "ia3": ia3}, SIZES).pick == taken


def test_losses_are_decided_as_scores_are_with_a_margin_of_two_percent_of_the_lowest():
    random = np.random.default_rng(1)
    rows = 1.5 + random.random(300)
    losses = {"lora": rows + random.normal(0, 0.01, (3, 1)), "ia3": rows + 0.1}
    losses["ia3"] = losses["ia3"] + random.normal(0, 0.01, (3, 1))
    found = decide(losses, SIZES, lower_is_better=True, unit="nats per token")
    mirrored = decide({name: -one for name, one in losses.items()}, SIZES, found.margin)
    assert found.margin == pytest.approx(0.02 * losses["lora"].mean(), rel=SAME)
    assert found.pick == mirrored.pick == "lora"
    assert found.expected_loss == pytest.approx(mirrored.expected_loss, rel=1e-6)
    assert found.scores["ia3"] == pytest.approx(losses["ia3"].mean(), rel=SAME)
    assert found.intervals["ia3"][0] == pytest.approx(-mirrored.intervals["ia3"][1], rel=SAME)
    assert found.sentence == (
        f"Take lora ({expected(found, 'nats per token', '.4g')}). lora is expected to be less "
        "than 0.004 nats per token above whichever of these methods is truly best; ia3 trains a "
        f"third of the parameters and is expected to lose {found.expected_loss['ia3']:.2g}."
    )


def test_shares_are_percent():
    scores = {"lora": answers(86), "ia3": answers(83, seed=1)}
    shares = {name: one / 100 for name, one in scores.items()}
    assert decide(shares, SIZES) == decide(scores, SIZES)
    assert decide(shares, SIZES, unit="").scores["lora"] < 1


SCALES = {
    "correlations": ("", lambda random, good: random.normal(good, 0.2, (4, 400)).clip(-1, 1)),
    "F1": ("F1", lambda random, good: 1.0 * (random.random((4, 400)) < good)),
    "rewards of 1 to 5": (None, lambda random, good: random.normal(1 + 4 * good, 0.7, (4, 400))),
    "negated losses": (None, lambda random, good: random.normal(good - 2, 0.2, (4, 400))),
}


@pytest.mark.parametrize("name", SCALES)
def test_scores_that_are_not_percent_have_no_margin_and_the_sentence_says_which_to_give(name):
    unit, draw = SCALES[name]
    for seed in range(5):
        random = np.random.default_rng(seed)
        scores = {"lora": draw(random, 0.8), "ia3": draw(random, 0.6)}
        found = decide(scores, SIZES, unit=unit)
        assert (found.pick, found.margin, found.not_worse) == ("lora", None, ())
        assert "no default in this unit: give what it may cost, such as 0.0" in found.sentence
        assert ("or the unit % if" in found.sentence) == (name == "rewards of 1 to 5")
    assert decide(scores, SIZES, 10, unit=unit).pick == "ia3"
    assert "margin" not in decide(scores, unit=unit).sentence  # there is nothing cheaper


def test_percent_is_what_is_right_or_wrong_or_said_to_be():
    right = answers(86)
    assert decide({"lora": right}).unit == "%"
    assert decide({"lora": right / 100}).unit == "%"
    rouge = np.random.default_rng(0).uniform(0, 90, (3, 400))
    assert (decide({"lora": rouge}).unit, decide({"lora": rouge}, unit="percent").unit) == ("", "%")
    zero, half = (
        {"lora": np.zeros((3, 400)), "ia3": np.zeros((2, 400))},
        100.0 * (np.arange(400) % 2),
    )
    for baseline in (half, half / 100):
        found = decide(zero, baselines={"commonest": baseline})
        assert (found.unit, found.baselines) == ("%", {"commonest": 50.0})
        assert "commonest (50.0 %)" in found.sentence


@pytest.mark.parametrize("unit", [None, "", "%"])
def test_shares_beside_percent_are_refused(unit):
    right = answers(86)
    for mixed in ({"lora": right, "ia3": right / 100}, {"lora": [right[0], right[1] / 100]}):
        with pytest.raises(ValueError, match=r"are shares \(0 to 1\) and those of lora.* percent"):
            decide(mixed, unit=unit)
    with pytest.raises(ValueError, match="the scores of lora, run 1 are shares"):
        decide({"lora": right / 100}, baselines={"commonest": right[0]}, unit=unit)
    assert decide({"a": right / 100, "b": 60 + right}, lower_is_better=True).pick == "a"


@pytest.mark.parametrize(
    ("best", "margin"), [(80.0, 1.0), (95.0, 1.0), (99.25, 0.15), (100.0, 0.0)]
)
def test_near_100_percent_the_default_margin_is_a_fifth_of_the_best_methods_errors(best, margin):
    runs = 100.0 * (np.arange(400) < 4 * best)
    assert decide({"lora": np.stack([runs, runs])}).margin == pytest.approx(margin)


def test_a_method_that_is_significantly_worse_is_taken_only_by_a_margin_of_the_users_own():
    random = np.random.default_rng(3)
    rows = random.normal(80, 5, 2000)
    scores = {n: rows + random.normal(m, 0.02, (4, 1)) for n, m in (("lora", 0), ("ia3", -0.4))}
    found = decide(scores, SIZES, unit="%")
    assert (found.pick, found.margin, found.letters) == ("lora", 1.0, {"lora": "a", "ia3": "b"})
    own = decide(scores, SIZES, 1, unit="%")
    assert (own.pick, own.mark("ia3")) == ("ia3", "take")
    assert "ia3 trains a third of the parameters of lora" in own.sentence
    assert "is significantly worse, but not by more than 1 point (90 % confidence)" in own.sentence


def test_no_pick_of_a_default_margin_is_significantly_worse_than_the_leader():
    random = np.random.default_rng(4)
    for name in ("steady runs, many rows", "near 100", "close methods, ten", "losses"):
        for _ in range(10):
            made = made_up(WORLDS[name], random)
            scores = {f"m{k}": one for k, one in enumerate(made.scores)}
            costs = {n: {"parameters": float(k + 1)} for k, n in enumerate(scores)}
            found = decide(scores, costs, lower_is_better=name == "losses")
            for other in found.not_worse:
                assert paired_p(scores[found.leader], scores[other]) >= ALPHA


def test_the_more_methods_are_cheaper_the_surer_it_must_be_that_one_is_not_worse():
    random = np.random.default_rng(10)
    scores = {"lora": answers(86, seed=1), "ia3": answers(86, seed=2)}

    def bounds():
        lost = difference(scores["lora"], scores["ia3"], Common.of([*scores.values()]))
        return [lost.interval(1 - 2 * 0.1 / count)[1] for count in (1, 6)]

    alone = decide(scores, SIZES, sum(bounds()) / 2)
    assert alone.pick == "ia3"
    assert alone.claimed_loss == pytest.approx(max(bounds()[0], alone.expected_loss["ia3"]))
    for k in range(5):
        scores[f"vera {k}"] = steady(*random.normal(60, 1, 3), rows=400)
    costs = SIZES | {name: {"parameters": 10} for name in scores if name.startswith("vera")}
    assert decide(scores, costs, sum(bounds()) / 2, unit="%").pick == "lora"


def test_a_cheaper_method_is_reported_by_the_larger_of_expected_loss_and_bound():
    scores = {"lora": answers(86, seed=1), "ia3": answers(86, seed=2)}
    found = decide(scores, SIZES, 5)
    assert found.pick == "ia3"
    assert found.claimed_loss > found.expected_loss["ia3"]
    said = f", and at most {found.claimed_loss:.1f} points below lora (90 % confidence); lora is"
    assert said in found.sentence
    other = decide(scores, SIZES, 0)
    assert other.claimed_loss == other.expected_loss["lora"]


def test_the_order_of_seeds_does_not_decide_whether_runs_are_pairs():
    random = np.random.default_rng(6)
    luck, rows = random.normal(0, 3, (5, 1)), random.normal(80, 9, 300)
    scores = {n: rows + luck + random.normal(0, 0.2, (5, 1)) for n in ("lora", "lora+lmam")}
    scores["lora+lmam"] += 1
    seeds = dict.fromkeys(scores, (1, 2, 3, 4, 5))
    expected = decide(scores, seeds=seeds)
    order = [3, 0, 4, 2, 1]
    mixed = decide(
        scores | {"lora": scores["lora"][order]},
        seeds=seeds | {"lora": tuple(seeds["lora"][k] for k in order)},
    )
    assert expected.p_highest["lora"] < 1e-3
    assert mixed.p_highest == pytest.approx(expected.p_highest)
    assert mixed.expected_loss == pytest.approx(expected.expected_loss, abs=1e-9)


def test_the_order_of_methods_does_not_change_what_is_expected_to_be_lost():
    scores = {name: answers(80, seed=k) for k, name in enumerate(("lora", "dora", "ia3", "vera"))}
    turned = decide(dict(reversed(scores.items())))
    assert turned.expected_loss == decide(scores).expected_loss


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**-100, 2.0**30])
def test_the_size_of_the_unit_does_not_change_what_is_taken(factor):
    random = np.random.default_rng(2)
    losses = {name: random.normal(mean, 0.1, (3, 50)) for name, mean in (("a", 1), ("b", 1.2))}
    costs = {"a": {"parameters": 9}, "b": {"parameters": 1}}
    known = decide(losses, costs, 0.01, lower_is_better=True)
    small = {name: factor * each for name, each in losses.items()}
    found = decide(small, costs, 0.01 * factor, lower_is_better=True)
    assert (found.pick, found.letters) == (known.pick, known.letters) == ("a", {"a": "a", "b": "b"})
    for name in losses:
        assert found.scores[name] == pytest.approx(factor * known.scores[name], rel=SAME)
        assert found.intervals[name] == pytest.approx(np.multiply(factor, known.intervals[name]))
    assert found.expected_loss["b"] == pytest.approx(factor * known.expected_loss["b"], rel=1e-6)
    assert found.margin == pytest.approx(factor * 0.01, rel=SAME)


def test_few_rows_say_why_no_method_has_a_letter():
    found = decide({name: answers(70, seed=k)[:, :3] for k, name in enumerate(("a", "b"))})
    assert found.letters == {"a": "", "b": ""}
    assert found.no_letters == (
        "With 3 rows no difference can be significant: it takes 6 rows or more."
    )
    assert found.sentence.endswith(found.no_letters)
    runs = decide({"a": answers(70), "b": answers(60, runs=1)})
    assert (runs.letters, runs.no_letters) == (
        {"a": "", "b": ""},
        "No two methods have the runs that a test takes.",
    )
    assert decide({"a": answers(70), "b": answers(60)}).no_letters == ""


def test_how_many_rows_would_show_that_a_method_has_learned_is_said():
    random = np.random.default_rng(12)
    baseline = 100.0 * (random.random(200) < 0.5)
    scores = {"lora": 100.0 * (random.random((3, 200)) < 0.55)}
    found = decide(scores, baselines={"the commonest answer": baseline})
    gains = scores["lora"].mean(axis=0) - baseline
    power = stats.norm.isf(0.05 / 2) + stats.norm.isf(0.2)
    assert found.rows_to_learn["lora"] == np.ceil((power * gains.std(ddof=1) / gains.mean()) ** 2)
    rows = float(f"{found.rows_to_learn['lora']:.1e}")
    assert found.sentence.startswith(
        "Do not tune yet: lora is not shown to have learned at the tried rates (about "
        f"{rows:,.0f} rows would show it): the best score"
    )
    pairs = np.repeat(baseline, 2)
    grouped = decide(
        {"lora": np.repeat(scores["lora"], 2, axis=1)}, groups=np.arange(400) // 2,
        baselines={"the commonest answer": pairs},
    )  # fmt: skip
    assert grouped.rows_to_learn["lora"] == pytest.approx(2 * found.rows_to_learn["lora"], abs=2)


def test_error_rates_that_are_all_zero_have_the_interval_of_a_share():
    errors = {"a": np.zeros((3, 30)), "b": 100.0 * (np.random.default_rng(0).random((3, 30)) < 0.3)}
    found = decide(errors, lower_is_better=True, unit="%")
    mirrored = decide({name: 100 - each for name, each in errors.items()})
    low, high = mirrored.intervals["a"]
    assert found.intervals["a"] == pytest.approx((100 - high, 100 - low))
    assert found.intervals["a"][1] > 9
    changes = decide({"a": np.random.default_rng(0).normal(-20, 9, (3, 30))}, unit="%")
    assert changes.intervals["a"][0] < changes.scores["a"] < changes.intervals["a"][1]


def test_the_sentence_leads_with_the_score_and_says_what_the_cheaper_method_would_cost():
    scores = {"lora+lmam": answers(87), "ia3": answers(84, seed=1)}
    found = decide(scores, {"lora+lmam": SIZES["lora"], "ia3": SIZES["ia3"]})
    loss = found.expected_loss["ia3"]
    assert found.sentence == (
        f"Take lora+lmam ({expected(found)}). lora+lmam is expected to be less than 0.1 "
        f"points below whichever of these methods is truly best; ia3 trains a third of the "
        f"parameters and is expected to lose {loss:.1f}."
    )


def test_a_method_whose_runs_diverged_is_not_taken_while_another_is_within_the_margin():
    scores = {"lora": answers(87, runs=5), "dora": answers(85, runs=5, seed=1)}
    scores["lora"][2:] = np.nan
    found = decide(scores, margin=5)
    assert (found.pick, found.highest, found.diverged) == ("dora", "lora", {"lora": 3})
    assert f"lora scores {found.scores['lora']:.1f} %, but 3 of its 5 runs diverged" in (
        found.sentence
    )
    far = decide(scores, margin=0.5)
    assert far.pick == "lora"
    assert far.sentence.startswith(f"Take lora ({expected(far)}): 3 of its 5 runs ")
    more = decide({**scores, "vera": steady(np.nan, np.inf, rows=400)}, margin=5)
    assert more.diverged["vera"] == 2
    assert more.sentence.endswith(" 2 of 2 runs of vera diverged.")
    nothing = decide({"vera": steady(np.nan, np.nan)})
    assert (nothing.pick, nothing.highest, nothing.expected_loss) == (None, None, {})
    assert nothing.sentence == "All runs diverged, so no method has a score."


def test_a_method_with_two_runs_is_tested_beside_others_with_three_and_more_runs_end_no_test():
    random = np.random.default_rng(5)
    levels = {"lora": 84, "ia3": 83, "dora": 60}
    scores = {
        name: random.normal(level, 20, (2, 300)) + random.normal(0, 1, (2, 1))
        for name, level in levels.items()
    }
    letters = {"lora": "a", "ia3": "a", "dora": "b"}
    assert decide(scores, unit="%").letters == letters
    scores["lora"] = np.concatenate([scores["lora"], scores["lora"][:1] + 1])
    more = decide(scores, unit="%")
    assert (more.letters, more.untested) == (letters, ())
    assert more.p_highest.keys() == {*scores} - {more.highest}


def test_a_method_with_one_run_is_not_tested_and_has_no_letter():
    lucky = decide(
        {"lora": steady(80, 82, 84), "dora": steady(82.2), "ia3": steady(70, 72, 74)}, unit="%"
    )
    assert (lucky.untested, lucky.letters["dora"]) == (("dora",), "")
    assert lucky.letters["lora"]
    assert lucky.sentence.startswith(
        f"Take lora ({expected(lucky)}): dora scores 82.2 %, but dora has too few runs (1) "
        "for a test."
    )
    far = decide({"lora": steady(80, 82, 84), "dora": steady(99.0), "ia3": steady(60, 62)})
    assert "Too few runs for a test: dora." in far.sentence
    assert far.pick == "dora"


def test_the_score_of_the_pick_is_less_than_measured_where_it_was_the_luckiest_of_many():
    random, rows = np.random.default_rng(6), np.random.default_rng(7).normal(70, 20, 300)
    gains, held = [], 0
    for _ in range(40):
        scores = {f"m{k}": rows + random.normal(0, 3, (3, 1)) for k in range(12)}
        found = decide(scores, unit="%")
        low, high = found.expected_interval
        gains.append((found.scores[found.pick] - rows.mean(), found.expected_score - rows.mean()))
        held += low <= rows.mean() <= high
        assert 0 < found.p_best < 1
    measured, expected_gain = np.mean(gains, axis=0)
    assert measured > 2
    assert expected_gain < 0.6 * measured
    assert held >= 36


def test_three_more_seeds_save_what_is_foretold():
    random, rows = np.random.default_rng(8), np.random.default_rng(9).normal(70, 20, 300)
    foretold, lost = [], []
    for _ in range(150):
        truth = random.normal(0, 2, 6)
        runs = rows + truth[:, None, None] + random.normal(0, 3, (6, 6, 1))
        found = decide({f"m{k}": each[:3] for k, each in enumerate(runs)}, unit="%")
        foretold.append((found.expected_loss[found.pick], found.loss_after_more_runs))
        lost.append(truth.max() - truth[runs.mean(axis=(1, 2)).argmax()])
    now, later = np.mean(foretold, axis=0)
    assert later == pytest.approx(np.mean(lost), rel=0.35)
    assert later < 0.9 * now
    said = "Three more seeds each: expected loss" in found.sentence
    assert said == (found.expected_loss[found.pick] > found.margin)


def test_of_equal_scores_the_cheaper_method_is_taken_wherever_it_stands():
    same = {name: np.full((3, 50), 100.0) for name in ("lora", "ia3")}
    for scores in (same, dict(reversed(same.items()))):
        found = decide(scores, SIZES)
        assert (found.pick, found.leader, found.highest) == ("ia3", "ia3", "ia3")
        assert found.sentence.startswith(
            f"Take ia3 ({expected(found)}). ia3 is expected to be less"
        )


def test_errors_that_are_all_zero_have_an_interval_of_no_share():
    errors = {"a": np.zeros((3, 30)), "b": (np.random.default_rng(0).random((3, 30)) < 0.3) * 1.0}
    found = decide(errors, lower_is_better=True)
    assert found.intervals["a"] == pytest.approx((0, 0), abs=0.05)
    assert decide({"a": errors["a"]}, lower_is_better=True).sentence.startswith("Take a (0).")


def test_a_single_run_of_each_is_said_to_tell_nothing_of_other_seeds():
    found = decide({"lora": answers(87, runs=1), "ia3": answers(84, runs=1)})
    assert found.expected_loss == {}
    assert "how much runs differ is not known" in found.sentence


def test_a_method_at_the_commonest_answer_has_not_learned_and_the_first_sentence_is_of_rates():
    baseline = 100.0 * (np.arange(400) % 2)
    collapsed = np.stack([baseline, baseline, 100 - baseline])
    scores = {"lora": answers(87), "bitfit": collapsed}
    found = decide(scores, baselines={"the commonest answer": baseline})
    assert found.unlearned == ("bitfit",)
    assert found.sentence.startswith(
        f"Take lora ({expected(found)}) in what is a comparison of learning rates: "
        "bitfit is not shown to have learned at the tried rates. "
    )
    assert found.expected_loss["bitfit"] > 30
    none = decide({"bitfit": collapsed}, baselines={"the commonest answer": baseline})
    assert none.pick is None
    assert none.sentence == (
        "Do not tune yet: bitfit is not shown to have learned at the tried rates: the best score, "
        "50.0 % of bitfit, is not significantly better than the commonest answer (50.0 %)."
    )


def test_two_runs_that_differ_much_have_learned_where_each_is_far_above_the_commonest_answer():
    baseline = 100.0 * (np.arange(400) % 2)
    scores = np.concatenate([answers(65, runs=1), answers(95, runs=1)])
    assert not decide({"lora": scores}, baselines={"the commonest answer": baseline}).unlearned


def test_a_few_rows_do_not_show_that_a_method_has_not_learned():
    baseline = 100.0 * (np.arange(400) % 2)
    scores = {"lora": answers(75), "ia3": answers(65, seed=1), "vera": answers(51, seed=2)}
    for rows in (60, 400):
        few = {name: one[:, :rows] for name, one in scores.items()}
        found = decide(few, baselines={"the commonest answer": baseline[:rows]})
        assert found.unlearned == ("vera",)


def test_of_seven_methods_that_learned_nothing_one_is_rarely_said_to_have_learned():
    random, learned = np.random.default_rng(16), 0
    for _ in range(100):
        baseline = 100.0 * (random.random(100) < 0.5)
        scores = {f"m{k}": 100.0 * (random.random((3, 100)) < 0.5) for k in range(7)}
        learned += decide(scores, baselines={"the commonest answer": baseline}).pick is not None
    assert learned <= 11  # 5 are meant; 12 would be chance once in 250 times


def test_groups_of_unequal_sizes_keep_the_mean_over_rows():
    groups = np.arange(400) // 10
    unequal = by_group(answers(86), groups % 7 * groups)
    assert unequal.mean(axis=1) == pytest.approx(answers(86).mean(axis=1), rel=SAME)


def test_rows_in_groups_do_not_make_copies_of_a_method_different():
    random, world = np.random.default_rng(5), replace(WORLDS["rows in tens"], methods=2)
    wrong = {True: 0, False: 0}
    for _ in range(200):
        made = made_up(world, random, copies=True)
        for grouped in wrong:
            tables = [by_group(one, made.groups) if grouped else one for one in made.scores]
            wrong[grouped] += paired_p(*tables) < ALPHA
    assert wrong[True] <= 0.08 * 200
    assert wrong[False] > 0.1 * 200


def test_a_method_and_its_sum_are_compared_seed_by_seed_where_their_runs_are_alike():
    random = np.random.default_rng(6)
    luck, rows = random.normal(0, 3, (5, 1)), random.normal(80, 9, 300)
    scores = {name: rows + luck + random.normal(0, 0.2, (5, 1)) for name in ("lora", "lora+lmam")}
    sizes = {"lora": SIZES["ia3"], "lora+lmam": SIZES["lora"]}
    higher = max(scores, key=lambda name: scores[name].mean())
    costs = {name: sizes["lora+lmam" if name == higher else "lora"] for name in scores}
    assert decide(scores, costs, unit="%").pick != higher
    apart = {name: tuple(range(k, k + 5)) for k, name in enumerate(scores)}
    assert decide(scores, costs, seeds=apart, unit="%").pick == higher
    better = {"lora": scores["lora"], "lora+lmam": scores["lora+lmam"] + 1}
    (paired,), (unpaired,) = (
        decide(better, seeds=seeds, unit="%").p_highest.values() for seeds in (None, apart)
    )
    assert paired < ALPHA < unpaired
    other = dict(zip(("lora", "dora"), scores.values(), strict=True))
    assert (
        set(decide(other, dict(zip(other, costs.values(), strict=True)), unit="%").not_worse)
        == set()
    )


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_choosing_pairs_by_seed_makes_no_more_false_differences(alike):
    random, wrong = np.random.default_rng(7), 0
    for _ in range(500):
        luck = random.normal(0, 2, (3, 5))
        runs = (alike**0.5 * luck[0] + (1 - alike) ** 0.5 * luck[k] for k in (1, 2))
        a, b = (random.normal(70, 20, (5, 200)) + run[:, None] for run in runs)
        found = difference(a, b, by_seed=seeds_correlate(a, b))
        low, high = found.interval()
        wrong += not low <= 0 <= high
    assert wrong <= 0.08 * 500


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_hold_the_true_score(seeds):
    random, held = np.random.default_rng(8), []
    world = World(seeds=seeds, rows=300, run=0.3)
    for _ in range(60):
        made = made_up(world, random)
        found = decide({f"m{k}": one for k, one in enumerate(made.scores)})
        ends = np.array(list(found.intervals.values()))
        held += list((ends[:, 0] <= made.truth) & (made.truth <= ends[:, 1]))
    assert 0.91 <= np.mean(held) <= 0.985


@pytest.mark.parametrize("name", ["few rows, two runs", "erratic runs, five", "two to five runs"])
def test_the_expected_loss_is_what_is_lost(name):
    random, world = np.random.default_rng(9), replace(WORLDS[name], rows=100)
    claimed, lost, every = [], [], []
    for _ in range(400):
        made = made_up(world, random)
        found = decide({f"m{k}": one for k, one in enumerate(made.scores)}, unit="points")
        loss = made.truth.max() - made.truth
        claimed.append(found.expected_loss[found.pick])
        lost.append(loss[int(found.pick[1:])])
        every.append((np.mean(list(found.expected_loss.values())), loss.mean()))
    assert np.mean(claimed) == pytest.approx(np.mean(lost), rel=0.3)
    assert np.mean(every, axis=0)[0] == pytest.approx(np.mean(every, axis=0)[1], rel=0.3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scores": {}}, "no scores are given"),
        ({"scores": {"a": [["x"]]}}, "a: scores are no table of numbers, seeds × rows"),
        ({"scores": {"a": np.ones(3)}}, r"shape \(3,\), not seeds × rows"),
        ({"scores": {"a": np.ones((2, 3)), "b": np.ones((2, 4))}}, "b has 4 rows and a has 3"),
        ({"scores": {"a": [[1, np.nan, 2]]}}, "a, run 1: row 2 has no score"),
        ({"scores": {"a": [[1], [2]]}}, "1 independent row"),
        ({"groups": [1, 1, 1]}, "1 independent row"),
        ({"scores": {"a": [[31.2], [30.8]]}}, "the score of each row .such as the BLEU of each"),
        ({"groups": [1, 2]}, "2 groups for 3 rows"),
        ({"groups": [1, "1", 2]}, "the groups 1 and '1' look alike and differ"),
        ({"groups": [1, np.nan, 2]}, r"row 2 has no group \(nan\)"),
        ({"groups": [1, None, 2]}, r"row 2 has no group \(None\)"),
        ({"groups": [1, [2], 3]}, r"the group of row 2 is \[2\]"),
        ({"scores": {"": np.ones((2, 3))}}, "a method is named ''"),
        ({"scores": {8: np.ones((2, 3))}}, "a method is named 8"),
        ({"scores": [np.ones((2, 3))]}, "scores are a list: give method → seeds × rows"),
        ({"scores": {"a": [[1e151, 2e151]] * 2}}, r"a has scores above 1e\+60: give another unit"),
        ({"scores": {"a": np.ones((200, 3))}}, "a has 200 runs of 3 rows: .* so transpose them"),
        ({"seeds": {"lorx": [1, 2]}}, "unknown method in the seeds 'lorx'; did you mean lora"),
        ({"seeds": {"lora": [[1], [2]]}}, "the seeds of lora are"),
        ({"scores": {"a": np.ones((2, 3)) * 1j}}, "a: scores are no table of numbers"),
        ({"scores": {"a\nb": np.ones((2, 3))}}, "a method is named 'a.nb'"),
        ({"unit": 5}, "unit=5: give a text"),
        ({"costs": [1]}, "costs are a list: give method → parameters"),
        ({"seeds": [1, 2]}, "seeds are a list: give method → the seed of each run"),
        ({"margin": "1"}, "margin=1 is no number"),
        ({"margin": 10**400}, "is no number"),
        ({"costs": {"lora": 5}}, "the costs of lora are 5"),
        ({"costs": {"lora": {"seconds": {}}}}, "seconds of lora is {}"),
        ({"baselines": {"guess": [[[1, 2, 3]]]}}, "guess: scores have the shape"),
        ({"margin": -1}, "margin=-1 is no number"),
        ({"margin": np.nan}, "margin=nan is no number"),
        ({"costs": {"lorx": {}}}, "unknown method in the costs 'lorx'; did you mean lora"),
        ({"costs": {"lora": {"second": 1}}}, "unknown cost of lora 'second'; did you mean seconds"),
        ({"costs": {"lora": {"seconds": "1"}}}, "seconds of lora is '1'"),
        ({"seeds": {"lora": [1, 1]}}, r"lora has 2 runs, but the seeds \[1, 1\]"),
        ({"baselines": {"always 1": [1, 2]}}, "always 1 has 2 rows and lora has 3"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(given, said):
    random = np.random.default_rng(0)
    with pytest.raises(ValueError, match=said):
        decide(**({"scores": {"lora": random.random((2, 3))}} | given))


@pytest.mark.parametrize(
    ("unit", "margin", "smallest", "score", "loss", "small"),
    [
        ("%", None, 1e-3, "71.2", "0.3", "0.1"),
        ("%", 1.0, None, "71.2", "0.3", "0.1"),
        ("nats", 0.24, 12.3, "71.234", "0.321", "0.02"),
        ("nats", 0.01, 0.51, "71.234", "0.321", "0.001"),
        ("nats", 0.0004, 0.021, "71.2341", "0.3211", "0.0001"),
        ("nats", 0.0, None, "71.234", "0.321", "0.001"),
        ("nats", 2e-8, 1e-6, "71.23", "0.32", "2e-09"),
        ("stars", 0.2, 0.01, "71.23", "0.32", "0.02"),
        ("", None, None, "71.23", "0.32", None),
    ],
)
def test_a_score_and_an_expected_loss_are_written_alike_wherever_they_are_shown(
    unit, margin, smallest, score, loss, small
):
    score_format = ScoreFormat.of(unit, margin, smallest)
    assert score_format.number(71.2341) == score
    assert score_format.loss(0.3211) == score_format.short_loss(0.3211) == loss
    assert score_format.short_loss(123.4).split(".")[0] == "123"
    if small is not None:
        nothing = score_format.loss(0.0), score_format.short_loss(0.0)
        assert nothing == (f"less than {small}", f"< {small}")


def test_an_expected_loss_that_is_too_small_to_be_written_is_so_in_the_record_too():
    scores = {"lora": steady(12.328, 12.329, 12.327), "ia3": steady(15.0, 15.1, 15.2)}
    found = decide(scores, lower_is_better=True, unit="nats")
    assert "is expected to be less than 0.02 nats above whichever" in found.sentence
    assert "(expect 12.328 nats, " in found.sentence
    assert found.score_format.short_loss(found.expected_loss["lora"]) == "< 0.02"
    assert found.score_format.number(found.scores["lora"]) == "12.328"
