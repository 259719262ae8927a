"""Answers of anything else: how they are matched with the held-out rows, scored, and refused."""

import csv

import pytest
from folders import chats, refused, rows_file

from lorada.compare.baselines.given_answers import given_answers
from lorada.data.rows.own_rows import load_rows

SUMS = [{"prompt": f"{a} + 1 =", "response": f" {a + 1}"} for a in range(6)]
HALF_RIGHT = ["1", "2", "3", "no", "no", "no"]
LABELS = [{"text": f"text {n}", "label": "ny"[n % 2]} for n in range(4)]


def held_out(tmp_path, rows, trained=None, labels=()):
    path = rows_file(tmp_path / "test.jsonl", rows)
    return load_rows(str(path), trained, labels)


def scored(tmp_path, rows, answers, *, of_a_share=False, metric=None):
    path = rows_file(tmp_path / "gpt.jsonl", answers)
    return given_answers(path, [rows], metric, of_a_share=of_a_share)


def by_number(values):
    return [{"row": number, "answer": value} for number, value in enumerate(values, 1)]


def test_answers_are_matched_by_the_number_of_the_row_in_any_order(tmp_path):
    rows = held_out(tmp_path, SUMS)
    for answers in (by_number(HALF_RIGHT), by_number(HALF_RIGHT)[::-1]):
        found = scored(tmp_path, rows, answers)
        assert found.row_scores["exact_match"] == [100.0] * 3 + [0.0] * 3
        assert found.title == "the answers of gpt.jsonl"
        assert found.prompt_tokens is None


def test_numbers_and_answers_of_a_table_are_texts(tmp_path):
    rows = held_out(tmp_path, SUMS)
    path = tmp_path / "gpt.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["row", "answer"])
        table.writerows([f"{number}.0", value] for number, value in enumerate(HALF_RIGHT, 1))
    found = given_answers(path, [rows], None, of_a_share=False)
    assert found.row_scores["exact_match"] == [100.0] * 3 + [0.0] * 3


def test_answers_are_matched_by_the_text_of_the_row_in_which_blanks_count_as_one(tmp_path):
    rows = held_out(tmp_path, SUMS)
    answers = [
        {"prompt": f" {row['prompt'].replace(' ', '  ')}\n", "answer": value}
        for row, value in zip(SUMS, HALF_RIGHT, strict=True)
    ]
    found = scored(tmp_path, rows, answers[::-1])
    assert found.row_scores["exact_match"] == [100.0] * 3 + [0.0] * 3


def test_copies_of_a_row_share_the_answer_to_their_text(tmp_path):
    rows = held_out(tmp_path, [SUMS[0], SUMS[1], SUMS[0]])
    answers = [{"prompt": "0 + 1 =", "answer": "1"}, {"prompt": "1 + 1 =", "answer": "no"}]
    assert scored(tmp_path, rows, answers).row_scores["exact_match"] == [100.0, 0.0, 100.0]
    again = [*answers, answers[0]]  # a second line that says the same
    assert scored(tmp_path, rows, again).row_scores["exact_match"] == [100.0, 0.0, 100.0]


def test_chats_are_matched_by_their_turns_before_the_last_answer(tmp_path):
    talks = chats(("hi", "ho"), ("1", "2"))
    rows = held_out(tmp_path, talks)
    with_answer = [{**talk, "answer": "ho"} for talk in talks]
    asked_alone = [{"messages": talk["messages"][:1], "answer": "ho"} for talk in talks]
    for answers in (with_answer, asked_alone):
        assert scored(tmp_path, rows, answers).row_scores["exact_match"] == [100.0, 0.0]


def test_a_file_may_answer_all_rows_of_a_data_file_of_which_a_share_is_held_out(tmp_path):
    rows = held_out(tmp_path, SUMS)
    _, drawn = rows.split([1, 4])
    found = scored(tmp_path, drawn, by_number(HALF_RIGHT), of_a_share=True)
    assert found.row_scores["exact_match"] == [100.0, 0.0]
    refused(
        "row 1, answers '1', which is no held-out row of .*test.jsonl: leave it out",
        lambda: scored(tmp_path, drawn, by_number(HALF_RIGHT)),
    )


def test_rows_of_several_files_are_numbered_on_from_one_to_the_next(tmp_path):
    paths = [rows_file(tmp_path / f"{n}.jsonl", SUMS[3 * n : 3 * n + 3]) for n in range(2)]
    rows = load_rows(",".join(map(str, paths)))
    found = scored(tmp_path, rows, by_number(HALF_RIGHT))
    assert found.row_scores["exact_match"] == [100.0] * 3 + [0.0] * 3
    refused(
        r"no answer to 1 held-out row, of which the first is .*1.jsonl row 3: answer every row",
        lambda: scored(tmp_path, rows, by_number(HALF_RIGHT)[:5]),
    )


def test_a_function_of_the_users_own_scores_them_and_the_metrics_that_cost_nothing(tmp_path):
    (tmp_path / "my.py").write_text(
        "def length(prompt, response, answer, row): return len(answer)\n"
    )
    rows = held_out(tmp_path, SUMS)
    metric = f"{tmp_path / 'my.py'}:length"
    found = scored(tmp_path, rows, by_number(HALF_RIGHT), metric=metric)
    assert found.row_scores["my.py:length"] == [1.0] * 3 + [2.0] * 3
    assert found.row_scores["exact_match"] == [100.0] * 3 + [0.0] * 3


FORMS = {
    "label": (LABELS, ["n", "n", "n", "n"], "accuracy", [100.0, 0.0, 100.0, 0.0]),
    "numbers as classes": (
        [{"text": f"text {n}", "label": n % 2} for n in range(4)], [0, "0", 1, "1"], "accuracy",
        [100.0, 0.0, 0.0, 100.0],
    ),
    "labels": (
        [{"text": f"text {n}", "labels": ["a", "b"][: n % 3]} for n in range(3)],
        ["", "a", "b , a"], "exact_match", [100.0, 100.0, 100.0],
    ),
    "labels as a list": (
        [{"text": f"text {n}", "labels": ["a", "b"][: n % 3]} for n in range(3)],
        [[], ["b"], ["b", "a"]], "exact_match", [100.0, 0.0, 100.0],
    ),
    "score": (
        [{"text": f"text {n}", "score": n / 2} for n in range(3)], ["0", 1, 1.5], "mae",
        [0.0, 0.5, 0.5],
    ),
    "choice": (
        [{"prompt": f"{n}?", "candidates": ["x", "y"], "answer": n % 2} for n in range(4)],
        [0, "y", "x", "0"], "accuracy", [100.0, 100.0, 100.0, 0.0],
    ),
    "prompt": (SUMS[:2], [1, "no"], "exact_match", [100.0, 0.0]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_answers_to_rows_of_every_form_are_scored(tmp_path, form):
    rows, answers, metric, expected = FORMS[form]
    found = scored(tmp_path, held_out(tmp_path, rows), by_number(answers))
    assert found.row_scores[metric] == pytest.approx(expected)


NO_ANSWERS = {
    "a file without the field": (
        [{"row": 1, "output": "1"}],
        "row 1, has no 'answer', but row, output: a file of answers has 'answer', and 'row' or the",
    ),
    "an answer of nothing": ([{"row": 1, "answer": None}], "row 1, has no 'answer', but row"),
    "an answer to no row": (
        [*by_number(HALF_RIGHT), {"row": 7, "answer": "1"}],
        "row 7, answers '7', which is no held-out row of .*test.jsonl: leave it out",
    ),
    "an answer to another text": (
        [{"prompt": "9 + 9 =", "answer": "18"}],
        "row 1, answers '9 . 9 =', which is no held-out row",
    ),
    "two answers to one row": (
        [*by_number(HALF_RIGHT), {"row": 2, "answer": "3"}],
        "row 7, gives .*test.jsonl row 2 a second answer: leave one out",
    ),
    "a row without a number": (
        [*by_number(HALF_RIGHT[:5]), {"prompt": "5 + 1 =", "answer": "6"}],
        "row 6, has no 'row', which other rows have",
    ),
    "nothing that says which row": (
        [{"answer": "1"}], "row 1, does not say which row it answers: give 'row'",
    ),
    "rows that are not answered": (
        by_number(HALF_RIGHT[:4]),
        "no answer to 2 held-out rows, of which the first is .*test.jsonl row 5: answer every row",
    ),
    "a chat that is a text": (
        [{"messages": "1 + 1", "answer": "2"}], "row 1, has messages that are no list of turns",
    ),
    "turns without a role": (
        [{"messages": [{"content": "1 + 1"}], "answer": "2"}], "has messages that are no list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", NO_ANSWERS)
def test_a_file_that_does_not_answer_the_rows_is_one_line(tmp_path, mistake):
    answers, message = NO_ANSWERS[mistake]
    rows = held_out(tmp_path, SUMS)
    refused(message, lambda: scored(tmp_path, rows, answers))


@pytest.mark.parametrize(
    ("form", "answer", "message"),
    [
        ("label", "maybe", "the answer to .*row 1 is 'maybe', and not of the classes n, y"),
        ("labels", "a, c", "'a, c', and not of the classes a, b"),
        ("score", "high", "'high', and not a number"),
        ("score", "nan", "'nan', and not a number"),
        ("choice", "z", "'z', and not one of its candidates, or the index of one"),
        ("choice", 2, "2, and not one of its candidates"),
    ],
)
def test_an_answer_that_the_rows_cannot_have_is_one_line(tmp_path, form, answer, message):
    rows, answers, *_ = FORMS[form]
    wrong = by_number([answer, *answers[1:]])
    refused(message, lambda: scored(tmp_path, held_out(tmp_path, rows), wrong))
