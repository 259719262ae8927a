"""Parts of the held-out rows: which there are, and which differ from the rest beyond chance."""

import numpy as np
import pytest
from rows_worlds import BASE, alarms

from lorada.compare.held_out_rows import AskedRow
from lorada.compare.slices import LEAST_ROWS, Slice, score_slices, slice_p, slices_of


def labelled(count: int, **fields) -> list[AskedRow]:
    """Rows of two classes and of one to ``count`` words; ``fields`` are lists of values."""
    rows = []
    for place in range(count):
        columns = {name: values[place] for name, values in fields.items()}
        rows.append(AskedRow("word " * (place + 1), "ab"[place % 2], columns))
    return rows


def names(slices) -> list[tuple[str, str, int]]:
    return [(one.by, one.value, one.rows) for one in slices]


def test_rows_are_parted_by_class_by_length_and_by_fields():
    rows = labelled(40, source=["web"] * 20 + ["book"] * 15 + ["x"] * 3 + [None] * 2, year=[
        str(1990 + place) for place in range(40)])  # fmt: skip
    found = names(slices_of(rows, "label", ["source", "year"]))
    assert found[:2] == [("class", "a", 20), ("class", "b", 20)]
    assert found[2:6] == [
        ("length", "1 to 10 words", 10), ("length", "11 to 20 words", 10),
        ("length", "21 to 30 words", 10), ("length", "31 to 40 words", 10),
    ]  # fmt: skip
    assert found[6:8] == [("source", "web", 20), ("source", "book", 15)]
    assert found[8:] == [
        ("year", "1990 to 1999", 10), ("year", "2000 to 2009", 10), ("year", "2010 to 2019", 10),
        ("year", "2020 to 2029", 10),
    ]  # fmt: skip


def test_rare_values_of_a_field_are_put_together_and_answers_have_a_length():
    source = ["web"] * 20 + [f"site {place}" for place in range(20)]
    rows = [
        AskedRow("one two", "word " * (place + 1), {"source": source[place]}) for place in range(40)
    ]
    found = names(slices_of(rows, "prompt", ["source"]))
    assert ("source", "others", 20) in found
    assert ("length of the answer", "answers of 31 to 40 words", 10) in found
    assert not any(by in ("class", "length") for by, _, _ in found), "all have one length"


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("sourse", "no held-out row has a field 'sourse': their fields are one, source"),
        ("one", "--by one: no two values of it have 8 held-out rows or more each"),
    ],
)
def test_a_field_that_no_row_has_or_that_is_the_same_in_all_is_refused(field, said):
    rows = labelled(20, source=["a", "b"] * 10, one=["same"] * 20)
    with pytest.raises(ValueError, match=said):
        slices_of(rows, "label", [field])


def test_a_slice_that_is_worse_is_found_and_two_halves_are_one_test():
    random = np.random.default_rng(0)
    inside = np.arange(300) < 100
    right = np.where(inside, 0.55, 0.85)
    scores = {"lora": 100.0 * (random.random((3, 300)) < right)}
    halves = [Slice("class", "a", inside), Slice("class", "b", ~inside)]
    worse, better = score_slices(halves, scores, share=True)
    assert worse.is_worse
    assert not better.is_worse
    assert worse.p == better.p < 0.01
    assert worse.low < 55 < worse.high
    assert worse.rest == better.score
    third = Slice("length", "1", np.arange(300) % 3 == 0)
    corrected = score_slices([*halves, third], scores, share=True)
    assert corrected[0].p == 2 * worse.p, "two differences are tested, not three"


def test_a_few_right_rows_are_no_difference():
    """Eight rows that are all right have no variance, and their mean is 10 points higher."""
    scores = np.full((3, 200), 100.0)
    scores[:, 20:40] = 0.0
    assert slice_p(scores, np.arange(200) < LEAST_ROWS) > 0.3


def test_rows_of_one_group_count_as_one():
    random = np.random.default_rng(4)
    groups = [str(row // 50) for row in range(400)]
    ease = np.repeat(random.normal(0.6, 1, 8), 50)
    scores = 100.0 * (random.random((3, 400)) < 1 / (1 + np.exp(-ease)))
    by_group_mean = scores.mean(axis=0).reshape(8, 50).mean(axis=1)
    worst = np.array([int(group) == by_group_mean.argmin() for group in groups])
    assert slice_p(scores, worst) < 0.001
    assert slice_p(scores, worst, groups) > 0.05


def test_where_no_slice_differs_hardly_any_is_called_different():
    random = np.random.default_rng(7)
    false = [alarms(BASE, random)[0] for _ in range(40)]
    assert np.mean(false) <= 0.1
