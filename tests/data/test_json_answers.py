"""Answers that are JSON are right if they are the same value; others if they are the same text."""

import pytest

from lorada.data.rows.rows import Rows
from lorada.data.scoring.chosen_metric import metric_of
from lorada.data.scoring.json_answers import json_match, mostly_json
from lorada.data.scoring.metrics import exact_match
from lorada.data.scoring.row_metrics import fits, row_metrics, row_value
from lorada.data.tasks import TASKS
from lorada.training.load_recipe import load_recipe

PROTOCOL = TASKS["jsonl"].protocols["prompt"]
RIGHT = '{"total": 12, "paid": true, "items": [1, {"name": null}]}'
EQUAL = {
    RIGHT: 100, ' {"items":[1.0,{"name":null}],\n"paid":true,"total":12} ': 100,
    '{"total": 12, "paid": 1, "items": [1, {"name": null}]}': 0,
    '{"total": 12, "paid": true, "items": [{"name": null}, 1]}': 0,
    '{"total": 12, "paid": true}': 0, f"{RIGHT} and more": 0, "12": 0, "": 0,
}  # fmt: skip


@pytest.mark.parametrize("answer", EQUAL)
def test_an_answer_is_the_same_value_however_it_is_written(answer):
    assert json_match(answer, {"response": RIGHT}) == EQUAL[answer]


def test_a_number_and_a_word_are_compared_as_texts():
    assert json_match(" 7 ", {"response": "7"}) == 100
    assert json_match("7.0", {"response": "7"}) == 0
    assert json_match("[7", {"response": "[7"}) == 100


def test_json_is_scored_beside_exact_match_where_a_response_is_json():
    rows = [{"prompt": "p", "response": RIGHT}, {"prompt": "p", "response": "none"}]
    answers = [RIGHT.replace(" ", ""), "none"]
    each = row_metrics(PROTOCOL, answers, rows)
    assert [one["json_match"] for one in each] == [100, 100]
    assert [one["exact_match"] for one in each] == [0, 100]
    assert "json_match" not in row_metrics(PROTOCOL, ["a"], rows[1:])[0]
    assert row_value("json_match")(answers[0], rows[0], rows[0]) == 100
    assert fits("json_match", "messages")
    assert not fits("json_match", "label")


def test_json_is_the_metric_of_rows_whose_responses_are_mostly_json():
    assert mostly_json([RIGHT, RIGHT, "a"])
    assert not mostly_json([RIGHT, "7"])
    rows = Rows([{"response": RIGHT}], "prompt", (), "rows", PROTOCOL)
    chosen = metric_of(rows, load_recipe(None, [], {"model": "-", "output": "-"}))
    assert chosen.name == "json_match"
    assert "are objects or lists of JSON" in chosen.reason


def test_each_right_answer_of_squad_is_right():
    row = {"prompt": "q", "response": " two", "other_answers": ["2", "a pair"]}
    scores = [exact_match([answer], [row])["exact_match"] for answer in ("two", "2", "a pair", "3")]
    assert scores == [100, 100, 100, 0]
    (one,) = row_metrics(PROTOCOL, ["it is a pair"], [row])
    assert (one["exact_match"], one["contains"]) == (0, 100)
