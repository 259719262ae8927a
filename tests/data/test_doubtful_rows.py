"""Rows that are allowed and hardly meant: labels that contradict each other, or look alike."""

import pytest
from folders import rows_file

from lorada.data.rows.doubtful_rows import warn_of_doubtful
from lorada.data.rows.own_rows import load_rows


def warnings_of(tmp_path, caplog, rows):
    caplog.clear()
    warn_of_doubtful(load_rows(str(rows_file(tmp_path / "rows.jsonl", rows))))
    return [record.getMessage() for record in caplog.records]


def labelled(*pairs):
    return [{"text": text, "label": label} for text, label in pairs]


def test_classes_that_differ_in_capital_letters_alone_are_said(tmp_path, caplog):
    rows = labelled(("a", "SPAM"), ("b", "Spam"), ("c", "Spam"), ("d", "ham"))
    (said,) = warnings_of(tmp_path, caplog, rows)
    assert said.endswith("alone are different classes: SPAM (1 row), Spam (2 rows)")
    assert not warnings_of(tmp_path, caplog, rows[1:])


CHOICE = {"prompt": "p", "candidates": ["x", "y"], "answer": 0}
CONTRADICTIONS = {
    "classes": (labelled(("a b", "x"), ("c", "x"), (" a  b", "y"), ("a b", "z")), "1 text with",
                "row 1 (x) and", "row 3 (y)"),
    "several labels": (
        [{"text": "a", "labels": []}, {"text": "a", "labels": ["x", "y"]}], "1 text with",
        "row 1 (none) and", "row 2 (x, y)",
    ),
    "candidates": ([CHOICE, {**CHOICE, "answer": 1}], "1 text with", "row 1 (x)", "row 2 (y)"),
    "two texts": (labelled(("a", "x"), ("a", "y"), ("b", "y"), ("b", "x")), "2 texts with"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_equal_texts_with_different_labels_are_counted_and_two_are_named(case, tmp_path, caplog):
    rows, *parts = CONTRADICTIONS[case]
    (said,) = warnings_of(tmp_path, caplog, rows)
    assert all(part in said for part in parts)


def test_what_may_well_differ_is_not_called_a_contradiction(tmp_path, caplog):
    for rows in (
        labelled(("a", "x"), ("a", "x"), ("b", "y")),
        [{"text": "a", "text_pair": pair, "label": pair} for pair in "xy"],
        [{"text": "a", "score": score} for score in (1, 2)],
        [{"prompt": "a", "response": response} for response in "xy"],
        [{"text": "a", "labels": labels} for labels in (["x", "y"], ["y", "x"])],
    ):
        assert not warnings_of(tmp_path, caplog, rows)
