"""The right answer of a choice may be an index, digits, a letter or a candidate's text."""

import pytest
from folders import refused

from lorada.data.row_forms import in_form

WAYS = {
    "indices": [0, 2, 1],
    "digits": ["0", "2", " 1"],
    "letters": ["A", "c", "B"],
    "texts": ["x", " z ", "y"],
    "indices and letters": [0, "C", "B"],
}


def asked(*answers, candidates=(" x", " y", " z")):
    rows = [{"prompt": "p", "candidates": list(candidates), "answer": a} for a in answers]
    return [row["answer"] for row in in_form(rows, "f")[0]]


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_becomes_the_index_of_its_candidate(way):
    assert asked(*WAYS[way]) == [0, 2, 1]


def test_digits_that_are_all_candidates_are_texts_and_else_indices():
    assert asked("3", "1", candidates=("1", "2", "3")) == [2, 0]
    assert asked("2", "0", candidates=("1", "2", "3")) == [2, 0]


@pytest.mark.parametrize("answers", [(1, 3, 2), ("1", "3", "2")])
def test_a_file_that_counts_from_1_is_refused_with_the_remedy(answers):
    said = (
        r"f row 2: answer '?3'? is beyond the last of 3 candidates, and no row has 0, so the file"
    )
    refused(f"{said} counts from 1: subtract 1 from every answer", lambda: asked(*answers))
    refused("f row 2: answer must be the index", lambda: asked(0, 3))


@pytest.mark.parametrize("answer", ["D", "w", "", "-1", 3.0, None, [0], True])
def test_what_is_none_of_the_candidates_is_refused_with_its_row(answer):
    refused(
        "f row 2(: answer must be the index|.* has no field 'answer')", lambda: asked(0, answer)
    )
