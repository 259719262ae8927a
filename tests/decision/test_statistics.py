"""Statistics of made-up scores: intervals, tests of pairs, and how often they are wrong."""

from dataclasses import replace

import numpy as np
import pytest
from comparison_errors import any_pair_p, made_up_scores, one_class_scores
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from search_errors import measure_search

from lorada.decision.run_variances import Common, Runs
from lorada.decision.statistics import (
    ALPHA,
    by_group,
    detectable,
    holm,
    letters,
    mean_score,
    paired_p,
)

SAME = 1e-9  # relative; two ways to compute one number
COPIES = 400  # made-up pairs of copies of one method
# 5 % of the copies may be called different. More than 8 % of 400 would be chance once in 250 times.
MOST_WRONG = 0.08


def test_the_interval_of_one_seed_is_students_over_rows():
    scores = np.random.default_rng(1).normal(50, 9, (1, 50))
    expected = stats.ttest_1samp(scores[0], 0).confidence_interval()
    assert mean_score(scores).interval() == pytest.approx(tuple(expected), rel=SAME)


def test_the_interval_of_runs_that_score_all_rows_alike_is_students_over_runs():
    scores = np.repeat([[40.0], [50.0], [66.0]], 100, axis=1)
    expected = stats.ttest_1samp([40.0, 50.0, 66.0], 0).confidence_interval(0.9)
    assert mean_score(scores).interval(0.9) == pytest.approx(tuple(expected), rel=SAME)


@pytest.mark.parametrize("right", [0, 30])
def test_the_interval_of_scores_that_are_all_right_or_all_wrong_is_that_of_a_share(right):
    scores = np.full((3, 30), right / 30 * 100)
    for level in (0.9, 0.95):
        expected = stats.binomtest(right, 30).proportion_ci(level)
        found = np.array(mean_score(scores, share=True).interval(level)) / 100
        assert found == pytest.approx(tuple(expected), rel=SAME)
    groups = by_group(scores, [row // 3 for row in range(30)])  # independent are the groups
    expected = stats.binomtest(right // 3, 10).proportion_ci()
    assert np.array(mean_score(groups, share=True).interval()) / 100 == pytest.approx(
        tuple(expected)
    )


def test_noise_counts_once_in_a_standard_error():
    scores = np.random.default_rng(4).normal(50, 9, (40, 40))  # neither rows nor runs differ
    assert mean_score(scores).error == pytest.approx(9 / 40, rel=0.15)  # twice: √2 times as much


def test_students_quantile_is_the_mean_of_that_of_the_runs_and_that_of_the_rows():
    random = np.random.default_rng(5)
    rows = random.normal(70, 9, 50)
    for deviation in (0.3, 1.0, 3.0):  # of runs that are moved by so much; rows cause 9 / √50
        luck = np.array([-1.0, 1.0]) * deviation / 2**0.5
        estimate = mean_score(rows + luck[:, None])
        share = deviation**2 / 2 / estimate.error**2
        expected = share * stats.t.isf(0.025, 1) + (1 - share) * stats.t.isf(0.025, 49)
        assert stats.t.isf(0.025, estimate.freedom) == pytest.approx(expected, rel=1e-6)


def test_runs_that_are_alike_by_luck_do_not_count_for_nothing_beside_rows():
    random = np.random.default_rng(6)
    wrong = 0
    for _ in range(1000):
        a, b = random.normal(70, 15, 200) + random.normal(0, 3, (2, 2, 1)) + np.zeros((2, 2, 200))
        wrong += paired_p(a, b + random.normal(0, 15, 200), Common.of([a, b])) < ALPHA
    assert wrong <= 60


def test_rows_that_are_each_a_group_keep_their_scores():
    scores = np.random.default_rng(2).normal(50, 9, (2, 30))
    assert by_group(scores, range(100, 130)) == pytest.approx(scores, rel=SAME)


def test_without_differences_between_rows_the_test_is_a_t_test_of_the_runs():
    runs = [np.array([60.0, 64.0, 61.0]), np.array([66.0, 70.0, 69.0, 64.0])]
    a, b = (np.repeat(each[:, None], 40, axis=1) for each in runs)
    expected = stats.ttest_ind(*runs, equal_var=False).pvalue
    assert paired_p(a, b) == pytest.approx(expected, rel=SAME)


def test_without_spread_between_runs_the_test_is_the_exact_sign_test_of_the_rows():
    random = np.random.default_rng(3)
    rows = [random.normal(60, 9, 40), random.normal(64, 9, 40)]
    a, b = (np.repeat(each[None], 3, axis=0) for each in rows)
    expected = stats.binomtest(int((rows[0] < rows[1]).sum()), 40).pvalue
    assert paired_p(a, b) == pytest.approx(expected, rel=SAME)


def test_runs_that_differ_little_are_tested_as_rows_are():
    random = np.random.default_rng(3)
    rows = [random.normal(60, 9, 40), random.normal(64, 9, 40)]
    a, b = (each + random.normal(0, 1e-4, (3, 40)) for each in rows)
    assert paired_p(a, b) == pytest.approx(stats.ttest_rel(*rows).pvalue, rel=1e-3)


@given(st.integers(6, 60), st.integers(2, 4), st.integers(2, 4))
def test_all_right_against_all_wrong_is_certain_from_six_rows_on(rows, seeds, others):
    right, wrong = np.full((seeds, rows), 100.0), np.zeros((others, rows))
    assert paired_p(right, wrong) == pytest.approx(2 / 2**rows, rel=SAME)
    assert paired_p(right[:, :5], wrong[:, :5]) > ALPHA


@pytest.mark.parametrize("answers", [(1, 0), (0, 1, 1), (1, 1, 1)])
def test_a_good_method_is_told_from_runs_that_answer_one_class_each(answers):
    right = np.arange(40) % 2 == 0
    one_class = 100.0 * np.stack([right if answer else ~right for answer in answers])
    good = np.repeat(np.where(np.arange(40) % 8 == 0, 0.0, 100.0)[None], 3, axis=0)
    assert good.mean() == 87.5
    assert paired_p(good, one_class) < 0.01
    assert paired_p(good, np.where(np.arange(40) == 3, 0.0, good)) > ALPHA


SCORES = st.integers(0, 10_000).map(lambda seed: made_up_scores(
    np.random.default_rng(seed), 3, 30, run=(seed % 5) / 10, taste=(seed % 3) / 2
))  # fmt: skip


@given(SCORES)
def test_swapping_two_methods_changes_nothing(pair):
    assert paired_p(*pair) == pytest.approx(paired_p(*pair[::-1]), rel=SAME)


@given(SCORES, st.floats(0, 50), st.floats(0.01, 50))
def test_p_falls_as_a_difference_grows(pair, shift, more):
    a, b = pair
    shift += max(0.0, b.mean() - a.mean())  # so that a is not worse
    assert paired_p(a + shift + more, b) <= paired_p(a + shift, b)


@pytest.mark.parametrize("ratio", [1.0, 5.0])
@pytest.mark.parametrize(
    ("seeds", "rows", "run"), [(2, 1000, 0.3), (3, 200, 0.1), (3, 2000, 0.07), (5, 50, 0.0)]
)
def test_two_copies_of_one_method_are_rarely_called_different(seeds, rows, run, ratio):
    random = np.random.default_rng([seeds, rows])
    pairs = [made_up_scores(random, seeds, rows, run=run, ratio=ratio) for _ in range(COPIES)]
    assert np.mean([paired_p(*pair) < ALPHA for pair in pairs]) <= MOST_WRONG


@pytest.mark.parametrize(("methods", "rows"), [(3, 200), (10, 1000)])
def test_of_many_copies_with_two_runs_rarely_any_is_called_different(methods, rows):
    random = np.random.default_rng([methods, rows])
    found = [made_up_scores(random, 2, rows, methods=methods) for _ in range(COPIES // 2)]
    assert np.mean([any_pair_p(each) < ALPHA for each in found]) <= MOST_WRONG


def test_runs_that_are_alike_by_luck_are_held_against_those_of_all_methods():
    random = np.random.default_rng(3)
    level = np.array([0.0, 4.0, -4.0])  # of three methods, with runs that vary by two points
    many = [np.repeat(random.normal(each, 2, (2, 1)), 50, axis=1) for each in np.repeat(level, 3)]
    for count in (2, 3):
        alike = np.full((count, 50), 1.0) + 1e-3 * np.arange(count)[:, None]
        assert paired_p(alike, alike + 1) < ALPHA
        assert paired_p(alike, alike + 1, Common.of([alike, *many])) > ALPHA


def test_a_moderated_variance_is_smyths_of_many_alike_methods_and_counts_more_runs():
    random = np.random.default_rng(4)
    runs = [Runs(3, 9 * random.chisquare(2) / 2, 0.0, 2) for _ in range(100)]
    freedom, between = (np.array([getattr(each, name) for each in runs]) for name in
                        ("freedom", "between"))  # fmt: skip
    common = Common.of_runs(runs)
    assert common.between == pytest.approx(between.mean())
    one = replace(runs[0], between=common.between / 2)
    moderated = common.moderate(one)
    weight = moderated.freedom - 2
    assert weight > 8  # they differ no more than those of equal methods do
    shrunk = (weight * common.between + 2 * one.between) / (weight + 2)
    assert moderated.between == pytest.approx(shrunk, rel=0.05)
    assert moderated.pooled_freedom == freedom.sum()
    unlike = [replace(each, between=each.between * 50 ** random.normal()) for each in runs]
    assert Common.of_runs(unlike).moderate(one).freedom < 7


def test_a_method_that_varies_more_is_moved_half_way_to_its_own_and_few_methods_lend_little():
    runs = [Runs(3, between, 0.0, 2) for between in (4.0, 4.0, 4.0, 40.0)]
    common = Common.of_runs(runs)
    erratic = common.moderate(runs[-1])
    assert 22 < erratic.between < 40
    two = Common.of_runs(runs[2:])
    assert two.moderate(runs[-1]).freedom <= 4 == two.freedom
    alone = Common.of_runs(runs[-1:])
    assert alone.moderate(runs[-1]).between == 40
    assert Common.of_runs([Runs(1, 0.0, 0.0, 0)]) is None


@pytest.mark.parametrize(
    ("methods", "seeds"), [(6, 3), (12, 3), (30, 3), (12, (2, 3, 5, 10)), (2, 2)]
)
def test_of_equal_methods_rarely_any_is_called_different_however_many_they_are(methods, seeds):
    random, counts = np.random.default_rng([methods, 2]), np.resize(seeds, methods)
    wrong = 0
    for _ in range(200):
        rows = random.normal(70, 15, 200)
        tables = [
            rows + random.normal(0, 5, 200) + random.normal(0, 3, (count, 1))
            + random.normal(0, 10, (count, 200))
            for count in counts
        ]  # fmt: skip
        wrong += any_pair_p(tables) < ALPHA
    assert wrong <= MOST_WRONG * 200


@pytest.mark.parametrize("failing", [0.2, 1.0])
def test_runs_that_answer_one_class_rarely_make_a_difference(failing):
    random = np.random.default_rng(11)
    pairs = [one_class_scores(random, 3, 200, failing) for _ in range(COPIES)]
    assert np.mean([paired_p(*pair) < ALPHA for pair in pairs]) <= MOST_WRONG


def test_the_search_of_the_rate_makes_no_differences_and_a_coarse_grid_does():
    grid, climb = (
        measure_search(name, 3, 1000, COPIES, each_seed=False) for name in ("old grid", "4 trials")
    )
    assert np.mean(climb[1]) <= MOST_WRONG < np.mean(grid[1])
    assert np.mean(climb[0]) < 0.55 < np.mean(grid[0])
    assert np.mean(climb[2]) < 4.5


def test_a_few_differing_rows_cannot_give_a_small_p():
    a = np.zeros((3, 1000))
    for count in (1, 4, 6):
        b = a.copy()
        b[:, :count] = 100.0
        assert paired_p(a, b) >= 2 / 2**count
    assert paired_p(a, b) < ALPHA


def test_a_test_needs_two_seeds_two_rows_and_the_same_rows():
    scores = made_up_scores(np.random.default_rng(6), 3, 20)[0]
    for a, b in ((scores[:1], scores), (scores, scores[:1]), (scores[:, :1], scores[:, :1])):
        with pytest.raises(ValueError, match="two rows, and two seeds of each"):
            paired_p(a, b)
    with pytest.raises(ValueError, match="20 and 19 rows"):
        paired_p(scores, scores[:, 1:])


def test_holm_multiplies_the_smallest_by_all_and_never_goes_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06], rel=SAME)
    assert holm([0.02, 0.6, 0.6]) == pytest.approx([0.06, 1.0, 1.0], rel=SAME)
    assert holm([]) == []


def test_letters_begin_with_the_first_name():
    found = letters(["best", "middle", "worst"], {frozenset(("best", "worst"))})
    assert found == {"best": "a", "middle": "ab", "worst": "b"}
    assert letters(["only"], set()) == {"only": "a"}


NAMES = [f"m{i}" for i in range(7)]
PAIRS = st.sets(st.sampled_from([frozenset((x, y)) for x in NAMES for y in NAMES if x < y]))


@given(PAIRS)
def test_two_names_share_a_letter_if_and_only_if_they_do_not_differ(different):
    found = letters(NAMES, different)
    for x in NAMES:
        for y in NAMES:
            share = bool(set(found[x]) & set(found[y]))
            assert share == (frozenset((x, y)) not in different)


def test_a_detectable_difference_is_found_with_the_power_that_is_asked_for():
    random = np.random.default_rng(7)
    pairs = [made_up_scores(random, 5, 200, run=0.2, taste=0.5) for _ in range(200)]
    step = np.median([detectable(pair) for pair in pairs])
    found = np.mean([paired_p(a, b + step) < ALPHA for a, b in pairs])
    assert 0.7 <= found <= 0.9


def test_more_seeds_show_smaller_differences_and_more_tests_larger_ones():
    scores = made_up_scores(np.random.default_rng(8), 10, 200)
    fewer = [each[:3] for each in scores]
    assert detectable(scores) < detectable(fewer) < detectable(fewer, tests=10)
    assert detectable([*fewer, scores[0][:1]]) == detectable(fewer)
    with pytest.raises(ValueError, match="fewer than two methods"):
        detectable([scores[0], scores[1][:1]])


def test_rows_that_cancel_are_on_no_side_whatever_rounding_leaves_of_their_mean():
    differences = np.array([0.1] * 7 + [-0.7])  # their mean is not exactly 0
    assert 0 < abs(differences.mean()) < SAME
    runs = np.repeat(differences[None], 2, axis=0)
    assert paired_p(runs, np.zeros_like(runs)) == 1.0
