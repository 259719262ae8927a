"""A share of the rows is held out by classes, by a seed, with copies on one side."""

from collections import Counter

import pytest
from folders import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from lorada.data.rows import content_of, drawn, share_of


def labelled(*counts):
    rows = [{"text": f"{label} {i}", "label": label} for label, n in counts for i in range(n)]
    return sorted(rows, key=lambda row: row["text"][::-1])  # classes in no order


def test_a_share_is_a_number_with_a_percent_sign():
    assert share_of("20%") == 0.2
    assert share_of("12.5 %") == 0.125
    assert [share_of(name) for name in (None, "20", "rows.jsonl", "20%.jsonl")] == [None] * 4
    for text in ("0%", "100%", "250%"):
        refused(f"{text} of the rows cannot be held out", lambda text=text: share_of(text))


def test_each_class_loses_its_share():
    rows = labelled(("a", 100), ("b", 50), ("c", 5), ("d", 1))
    found = Counter(rows[index]["label"] for index in drawn(rows, 0.2, 0))
    assert found == {"a": 20, "b": 10, "c": 1}


def test_many_small_classes_lose_the_share_together():
    rows = labelled(*((str(label), 2) for label in range(50)))
    assert 18 <= len(drawn(rows, 0.2, 0)) <= 20


def test_a_seed_draws_the_same_rows_again_and_another_seed_others():
    rows = labelled(("a", 60), ("b", 40))
    assert drawn(rows, 0.1, 3) == drawn(rows, 0.1, 3) != drawn(rows, 0.1, 4)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.sampled_from("xy")), min_size=20, max_size=60),
    share=st.floats(0.2, 0.8),
)
def test_copies_stay_on_one_side_and_each_class_is_learned(rows, share):
    rows = [{"text": f" {i % 10}  a" if i % 2 else f"{i} a", "label": c} for i, c in rows]
    try:
        held_out = drawn(rows, share, 0)
    except ValueError:
        return
    learned = [row for index, row in enumerate(rows) if index not in held_out]
    assert not {content_of(rows[i]) for i in held_out} & {content_of(row) for row in learned}
    assert {row["label"] for row in learned} == {row["label"] for row in rows}


@pytest.mark.parametrize("rows", [[{"text": "a"}] * 9, [{"text": "a"}, {"text": "b"}]])
def test_rows_of_which_none_can_be_held_out_are_refused(rows):
    refused(f"20% of {len(rows)} rows holds out none", lambda: drawn(rows, 0.2, 0))
