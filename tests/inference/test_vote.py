"""One answer of several runs: mean probabilities, mean numbers, the majority of texts."""

import pytest

from lorada.inference.vote import one_answer_each
from lorada.support.files import json_text

TINY = 1e-12


def labelled(*probs_of_n):
    """The answers of a classifier with these probabilities of the class n."""
    lines = []
    for row, prob in enumerate(probs_of_n, 1):
        label = "n" if prob > 0.5 else "y"
        lines.append({"row": row, "label": label, "probs": {"n": prob, "y": 1 - prob}})
    return lines


def test_classes_are_decided_by_the_mean_probability():
    first, second = one_answer_each([labelled(0.9, 0.4), labelled(0.4, 0.4), labelled(0.4, 0.9)])
    assert (first["row"], first["label"], first["votes"]) == (1, "n", 1)
    assert first["probs"]["n"] == pytest.approx(1.7 / 3, abs=TINY)
    assert (second["label"], second["votes"]) == ("n", 1)


def test_each_of_several_labels_is_given_from_a_mean_probability_of_a_half_on():
    runs = [
        [{"row": 1, "labels": ["a"], "probs": {"a": 0.9, "b": 0.4}}],
        [{"row": 1, "labels": ["b"], "probs": {"a": 0.2, "b": 0.7}}],
    ]
    (answer,) = one_answer_each(runs)
    assert answer["labels"] == ["a", "b"]
    assert "votes" not in answer


def test_numbers_are_averaged_and_texts_are_decided_by_the_majority():
    (score,) = one_answer_each([[{"row": 1, "score": 1.0}], [{"row": 1, "score": 4.0}]])
    assert score["score"] == pytest.approx(2.5, abs=TINY)
    runs = [[{"row": 1, "answer": text, "cut": False}] for text in ("8", "7", " 7", "9")]
    assert one_answer_each(runs) == [{"row": 1, "answer": "7", "cut": False, "votes": 2}]
    chosen = [[{"row": 1, "answer": index, "candidate": f"c{index}"}] for index in (2, 0, 2)]
    assert json_text(one_answer_each(chosen)[0]["candidate"]) == '"c2"'


def test_no_rows_give_no_answers():
    assert one_answer_each([[], []]) == []
