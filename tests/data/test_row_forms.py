"""Rows as other tools write them come to the forms of ours, each once, and never by a guess."""

import pytest
from folders import refused, rows_file

from lorada.data.row_forms import in_form
from lorada.runs.data.rows import load_rows, rows_to_answer

ALPACA = {"instruction": "Add them.", "input": "1 and 2", "output": "3"}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be short."},
        {"from": "human", "value": "hi"},
        {"from": "gpt", "value": "ho"},
    ]
}
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
]
ASKED = CHAT[:-1]
TO_BE_ANSWERED = {"messages": [*ASKED, {"role": "assistant", "content": ""}]}
PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd them.\n\n### Input:\n1 and 2\n\n### Response:\n"
)
CONVERTED = {
    "Alpaca": (ALPACA, "prompt", {"prompt": PROMPT, "response": "3"}),
    "ShareGPT": (SHAREGPT, "messages", {"messages": CHAT}),
    "a question": (
        {"question": "1 + 2?", "answer": "3"},
        "prompt",
        {"prompt": "Question: 1 + 2?\nAnswer:", "response": " 3"},
    ),
}


def loaded(tmp_path, *rows):
    return load_rows(str(rows_file(tmp_path / "rows.jsonl", list(rows))))


@pytest.mark.parametrize("case", CONVERTED)
def test_rows_of_other_tools_are_converted(case, tmp_path):
    row, form, expected = CONVERTED[case]
    found = loaded(tmp_path, row, {**row, "note": "a column that changes nothing"})
    assert (found.form, found.rows) == (form, [expected, expected])
    again = loaded(tmp_path, *found.rows)
    assert again.rows == found.rows  # what is converted has a form of ours


def test_an_instruction_without_an_input_has_the_shorter_prompt(tmp_path):
    bare = {"instruction": "Say ho.", "output": "ho"}
    found = loaded(tmp_path, bare, {**bare, "input": ""}, {**bare, "input": None})
    assert found.rows[0] == found.rows[1] == found.rows[2]
    assert "Input" not in found.rows[0]["prompt"]


TWO = {
    "a prompt and an instruction": (
        {"prompt": "p", "response": "r", **ALPACA},
        "as prompt/response and as instruction/output: leave out the fields of one",
    ),
    "a chat in two forms": ({"messages": CHAT, **SHAREGPT}, "as messages and as conversations"),
    "a question with candidates": (
        {"prompt": "p", "candidates": ["a", "b"], "answer": 1, "question": "q"},
        "as prompt/candidates/answer and as question/answer",
    ),
}


@pytest.mark.parametrize("case", TWO)
def test_rows_that_fit_two_forms_are_refused_with_both(case, tmp_path):
    row, message = TWO[case]
    refused(f"rows.jsonl row 1 can be read {message}", lambda: loaded(tmp_path, row))


def test_a_text_beside_another_form_is_a_note(tmp_path):
    """Alpaca's file on the hub has each row as one text too."""
    assert loaded(tmp_path, {**ALPACA, "text": "all"}).form == "prompt"
    assert loaded(tmp_path, {"text": "all"}).form == "text"


PAIR, TEXT = {"prompt": "a", "response": "b"}, {"text": "a", "label": 0}
WRONG = {
    "no output": (ALPACA, {"instruction": "a", "input": "b"}, " has no field 'output'"),
    "a number as output": (ALPACA, {**ALPACA, "output": 3}, ": output is not a text: 3"),
    "an unknown speaker": (
        SHAREGPT,
        {"conversations": [{"from": "tool", "value": "a"}, {"from": "gpt", "value": "b"}]},
        ": conversations must be a list of two or more from/value objects",
    ),
    "the last by the user": (
        SHAREGPT,
        {"conversations": SHAREGPT["conversations"][:-1]},
        ": conversations must be .* the last from gpt",
    ),
    "a value that is no text": (
        SHAREGPT,
        {"conversations": [{"from": "human", "value": 1}, {"from": "gpt", "value": "b"}]},
        ": value is not a text: 1",
    ),
    "no label": (TEXT, {"text": "b"}, " has no field 'label'"),
    "a list as a label": (TEXT, {**TEXT, "label": [1]}, ": label is neither a text nor an integer"),
    "a number as prompt": (PAIR, {**PAIR, "prompt": 3}, ": prompt is not a text"),
    "half a character": (PAIR, {**PAIR, "prompt": "\ud800"}, ": prompt is not valid Unicode"),
    "no content": (
        {"messages": CHAT},
        {"messages": [{"role": "assistant", "content": None}]},
        ": content is not a text",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_the_row_and_the_field_as_the_file_has_it(case):
    good, bad, message = WRONG[case]
    refused(f"^file row 2{message}", lambda: in_form([good, bad], "file"))


def test_rows_of_no_known_form_are_refused_with_the_forms_that_there_are(tmp_path):
    said = "rows.jsonl row 1 has fields question; each needs messages or"
    refused(said, lambda: loaded(tmp_path, {"question": "a"}))


# Rows to answer: those without labels, those with, and what the model has learned.
TO_ANSWER = {
    "a text": ("label", {"text": "t"}, {"text": "t", "label": "no"}),
    "a pair": (
        "score",
        {"text": "t", "text_pair": "u", "score": 2},
        {"text": "t", "text_pair": "u", "score": 0.0},
    ),
    "candidates": (
        "choice",
        {"prompt": "p", "candidates": ["a", "b"]},
        {"prompt": "p", "candidates": ["a", "b"], "answer": 0},
    ),
    "a prompt": ("prompt", {"prompt": "p"}, {"prompt": "p", "response": ""}),
    "an instruction": (
        "prompt",
        {key: ALPACA[key] for key in ("instruction", "input")},
        {"prompt": PROMPT, "response": ""},
    ),
    "a plain text": ("text", {"text": "t"}, {"prompt": "t", "response": ""}),
    "a chat": ("messages", {"messages": ASKED}, TO_BE_ANSWERED),
    "a prompt to a chat": (
        "messages",
        {"prompt": "p"},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": ""}]},
    ),
    "an answered chat of another tool": ("messages", SHAREGPT, TO_BE_ANSWERED),
}  # fmt: skip


@pytest.mark.parametrize("case", TO_ANSWER)
def test_rows_to_answer_need_no_right_answers(case):
    learned, row, expected = TO_ANSWER[case]
    found = rows_to_answer([row], "rows", learned, ("no", "yes") if learned == "label" else ())
    assert found.rows == [expected]


def test_rows_without_what_a_model_reads_are_refused():
    for learned, message in (
        ("label", "rows row 1 has fields title; each needs text$"),
        ("choice", "each needs prompt/candidates$"),
        ("prompt", "each needs messages or prompt or text or conversations or instruction or"),
    ):
        refused(
            message, lambda form=learned: rows_to_answer([{"title": "t"}], "rows", form, ("a",))
        )
    rows = [{"text": "t"}, {"text": None}]
    refused("rows row 2 has no field 'text'", lambda: rows_to_answer(rows, "rows", "score"))
    both = [{"prompt": "p", "question": "q"}]
    refused("as prompt and as question", lambda: rows_to_answer(both, "rows", "prompt"))
