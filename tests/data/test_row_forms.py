"""Rows as other tools write them come to the forms of ours, each once, and never by a guess."""

import json
import logging

import pytest
from folders import refused, rows_file
from paths import ROOT

from lorada.data.forms.row_forms import convert_rows
from lorada.data.forms.row_readings import READINGS
from lorada.data.rows.own_rows import load_rows, rows_to_answer
from lorada.data.rows.row_content import content_of

ALPACA = {"instruction": "Add them.", "input": "1 and 2", "output": "3"}
CHAT = [
    {"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
]  # fmt: skip
SHAREGPT = {"conversations": [
    {"from": "system", "value": "Be short."}, {"from": "human", "value": "hi"},
    {"from": "gpt", "value": "ho"},
]}  # fmt: skip
ASK, ANSWER = CHAT[:2], CHAT[2:]
NO_ANSWER = {"role": "assistant", "content": ""}
TO_BE_ANSWERED = {"messages": [*ASK, NO_ANSWER]}
PAIRED = {"text": "t", "text_pair": "u"}
PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd them.\n\n### Input:\n1 and 2\n\n### Response:\n"
)
CALL = {"id": "1", "function": {"name": "weather", "arguments": {"unit": None}}}
CALLS = [
    {"role": "user", "content": "Warm?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "1", "content": "21"},
    {"role": "assistant", "content": "Yes.", "reasoning_content": "21 is warm."},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
SUMMARY = {"prompt": "A: hi\n\nSummary:", "response": " greeting"}
SCORED = {"text": "a", "score": 1}
CHOICE = {"prompt": "p", "candidates": ["a", "b"], "answer": 0}
P, T = {"prompt": "p", "response": "r"}, {**PAIRED, "label": 0}
BARE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nAdd them.\n\n### Response:\n"
)
CALLED = {"messages": CALLS, "tools": TOOLS}
MORE = {"messages": CHAT * 2 + ASK}
NULLS = [{**turn, "tool_calls": None} for turn in CHAT]
PAIRS = [
    ("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"),
    ("text1", "text2"), ("question", "sentence"),
]  # fmt: skip
# What a file has, and what it is read as, which has a form of ours.
CONVERTED = {
    "Alpaca": (ALPACA, {"prompt": PROMPT, "response": "3"}),
    "Alpaca without an input": ({**ALPACA, "input": ""}, {"prompt": BARE, "response": "3"}),
    "Alpaca with a system message": (
        {**ALPACA, "system": "Be short."}, {"prompt": f"Be short.\n\n{PROMPT}", "response": "3"},
    ),
    "Dolly": (
        {"instruction": "Add them.", "context": "1 and 2", "response": "3", "category": "sums"},
        {"prompt": PROMPT, "response": "3"},
    ),
    "ShareGPT": (SHAREGPT, {"messages": CHAT}),
    "ShareGPT with a system field": (
        {"conversations": SHAREGPT["conversations"][1:], "system": "Be short."}, {"messages": CHAT},
    ),
    "ShareGPT with more keys": (
        {"conversations": [{**turn, "weight": 0} for turn in SHAREGPT["conversations"]]},
        {"messages": [{**turn, "weight": 0} for turn in CHAT]},
    ),
    "a role of the template's own": (
        {"messages": [*CHAT, {"role": "critic", "content": "a"}]},
        {"messages": [*CHAT, {"role": "critic", "content": "a"}]},
    ),
    "calls of tools": (CALLED, CALLED),
    "keys of turns that are null": ({"messages": NULLS, "tools": "[]"}, {"messages": CHAT}),
    "a chat that ends with the user": (MORE, MORE),
    "TRL": ({"prompt": "p", "completion": "r"}, P),
    "TRL in turns": ({"prompt": ASK, "completion": ANSWER}, {"messages": CHAT}),
    "a preference": ({"prompt": "p", "chosen": "r", "rejected": "no"}, P),
    "a preference in turns": (
        {"prompt": ASK, "chosen": ANSWER, "rejected": ANSWER}, {"messages": CHAT},
    ),
    "whole chats as a preference": ({"chosen": CHAT, "rejected": CHAT}, {"messages": CHAT}),
    "whole texts as a preference": ({"chosen": "t", "rejected": "u"}, {"text": "t"}),
    "a dialogue": ({"dialogue": "A: hi", "summary": "greeting"}, SUMMARY),
    "a sentence": ({"sentence": "t", "label": 0}, {"text": "t", "label": 0}),
    "a review": ({"review": "t", "sentiment": " x "}, {"text": "t", "label": "x"}),
    "other letters and blanks": ({"Text": "t", " LABEL ": 0}, {"text": "t", "label": 0}),
    **{" and ".join(two): ({two[0]: "t", two[1]: "u", "label": 0}, T) for two in PAIRS},
    "a pair with a score": (
        {"sentence1": "t", "sentence2": "u", "score": 2.5}, {**PAIRED, "score": 2.5},
    ),
    "a context before a question": (
        {"id": "5", "context": "One is 1.", "question": "1 + 2?", "answer": "3"},
        {"prompt": "One is 1.\n\nQuestion: 1 + 2?\nAnswer:", "response": " 3"},
    ),
    "SQuAD": (
        {"context": "c", "question": "q", "answers": {"text": ["a", "a"], "answer_start": [1, 1]}},
        {"prompt": "c\n\nQuestion: q\nAnswer:", "response": " a"},
    ),
    "answers in a list": (
        {"question": "q", "answers": ["a"]},
        {"prompt": "Question: q\nAnswer:", "response": " a"},
    ),
    "a question with a response": (
        {"question": "q", "response": "r"}, {"prompt": "Question: q\nAnswer:", "response": " r"},
    ),
    "an input with an output": ({"input": "p", "output": "r"}, P),
    "a prompt with an answer": ({"prompt": "p", "answer": "r"}, P),
    "a prompt with a response and a result": ({**P, "answer": "7"}, P),
    "a prompt with a context and a system message": (
        {**P, "context": "c", "system": "s"}, {"prompt": "s\n\nc\n\np", "response": "r"},
    ),
    "a context that stands in the prompt": (
        {"prompt": "The sky is blue at noon. So: p", "response": "r",
         "context": "The sky is blue at noon."},
        {"prompt": "The sky is blue at noon. So: p", "response": "r"},
    ),
    "a short system message that stands in the prompt by chance": (
        {**P, "system": "p"}, {"prompt": "p\n\np", "response": "r"},
    ),
    "an empty context": ({**P, "context": ""}, P),
    "candidates with a context": (
        {**CHOICE, "context": "c"}, {**CHOICE, "prompt": "c\n\np"},
    ),
    "several labels": (
        {"text": "t", "labels": ["b", " a", 3]}, {"text": "t", "labels": ["3", "a", "b"]},
    ),
    "no labels of a pair": (
        {"premise": "t", "hypothesis": "u", "labels": []}, {**PAIRED, "labels": []},
    ),
    "an object as a response": (
        {"prompt": "p", "response": {"total": 12, "für": [True, None]}},
        {"prompt": "p", "response": '{"total": 12, "für": [true, null]}'},
    ),
    "a list as an answer": (
        {"input": {"a": 1}, "output": [1, "b"]}, {"prompt": '{"a": 1}', "response": '[1, "b"]'},
    ),
    "a number as an answer": (
        {"question": 7, "answer": 7}, {"prompt": "Question: 7\nAnswer:", "response": " 7"},
    ),
    "a truth as an output": ({**ALPACA, "output": True}, {"prompt": PROMPT, "response": "true"}),
    "people with roles as a response": (
        {"prompt": "p", "completion": [{"role": "cook"}]},
        {"prompt": "p", "response": '[{"role": "cook"}]'},
    ),
    "turns as JSON in a cell": ({"messages": json.dumps(CHAT)}, {"messages": CHAT}),
    "turns as Python prints them": ({"conversations": str(SHAREGPT["conversations"])},
                                    {"messages": CHAT}),
    "turns of TRL as JSON in cells": (
        {"prompt": json.dumps(ASK), "completion": json.dumps(ANSWER)}, {"messages": CHAT},
    ),
    "a prompt in brackets": (
        {"prompt": "[1, 2]", "response": '{"a": 1}'}, {"prompt": "[1, 2]", "response": '{"a": 1}'},
    ),
    "calls of ShareGPT": (
        {"conversations": [
            {"from": "human", "value": "Warm?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"unit": "C"}}'},
            {"from": "observation", "value": "21"},
            {"from": "gpt", "value": "Yes."},
        ], "tools": json.dumps(TOOLS)},
        {"messages": [
            {"role": "user", "content": "Warm?"},
            {"role": "assistant", "content": None, "tool_calls": [{
                "type": "function",
                "function": {"name": "weather", "arguments": {"unit": "C"}},
            }]},
            {"role": "tool", "content": "21"},
            {"role": "assistant", "content": "Yes."},
        ], "tools": TOOLS},
    ),
    "a question": (
        {"question": "1 + 2?", "answer": "3"},
        {"prompt": "Question: 1 + 2?\nAnswer:", "response": " 3"},
    ),
}  # fmt: skip


def loaded(tmp_path, *rows):
    return load_rows(str(rows_file(tmp_path / "rows.jsonl", list(rows))))


@pytest.mark.parametrize("case", CONVERTED)
def test_rows_of_other_tools_are_converted(case, tmp_path):
    row, expected = CONVERTED[case]
    found = loaded(tmp_path, row, {**row, "note": "a column that changes nothing"})
    assert found.rows == [expected, expected]
    again = loaded(tmp_path, *found.rows)
    assert (again.rows, again.form) == (found.rows, found.form)


TWO = {
    "a prompt and an instruction": (
        {"prompt": "p", "response": "r", **ALPACA},
        "can be read as prompt/response and as instruction/output and as .*: leave out the fields "
        "of one",
    ),
    "a chat in two forms": (
        {"messages": CHAT, **SHAREGPT}, "can be read as messages and as conversations",
    ),
    "a question with candidates": (
        {**CHOICE, "question": "q"},
        "can be read as prompt/candidates/answer and as question/answer",
    ),
    "a question alone": (
        {"question": "a"},
        "has fields question; each needs question/answer or question/response or question/answers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TWO)
def test_rows_that_fit_two_forms_or_none_are_refused_with_those_that_there_are(case, tmp_path):
    row, message = TWO[case]
    refused(f"rows.jsonl row 1 {message}", lambda: loaded(tmp_path, row))


PAIR, TEXT = {"prompt": "a", "response": "b"}, {"text": "a", "label": 0}
NO_LABEL = ": label must be a text or an integer, and not blank: "
WRONG = {
    "a number that JSON does not have": (
        ALPACA, {**ALPACA, "output": float("nan")}, ": output is not a text: nan",
    ),
    "an unknown speaker": (
        SHAREGPT, {"conversations": [{"from": "tool", "value": "a"}]},
        ": conversations must be a list of turns, each from system, human, gpt, function_call",
    ),
    "a list as speaker": (
        SHAREGPT, {"conversations": [{"from": ["human"], "value": "a"}]},
        ": conversations must be a list of turns",
    ),
    "only an answer": ({"messages": CHAT}, {"messages": ANSWER}, ": a chat needs two or more"),
    "no content": (
        {"messages": CHAT}, {"messages": [*ASK, {"role": "assistant", "content": None}]},
        ": messages must be a list of turns with the texts role",
    ),
    "an answer whose role would not be learned": (
        {"messages": CHAT}, {"messages": [*CHAT, {"role": "Assistant", "content": "a"}]},
        ": messages must be a list of turns with the texts role .system, user, assistant",
    ),
    "half a weight": (
        {"messages": CHAT}, {"messages": [*ASK, {**ANSWER[0], "weight": 0.5}]}, ": messages must",
    ),
    "two weights": (
        {"messages": CHAT}, {"messages": [*ASK, {**ANSWER[0], "weight": 2}]}, ": messages must",
    ),
    "a turn of ShareGPT with two weights": (
        SHAREGPT, {"conversations": [{"from": "gpt", "value": "a", "weight": 2}]},
        ": conversations must",
    ),
    "a call that is no JSON": (
        SHAREGPT, {"conversations": [{"from": "function_call", "value": "weather()"}]},
        ": conversations must",
    ),
    "a call without a name": (
        SHAREGPT, {"conversations": [{"from": "function_call", "value": "{}"}]},
        ": conversations must",
    ),
    "a question without an answer": (
        {"question": "q", "answers": ["a"]}, {"question": "q", "answers": {"text": []}},
        ": answers must be .* with at least one: leave out questions without an answer",
    ),
    "answers that cannot be read": (
        {"question": "q", "answers": ["a"]}, {"question": "q", "answers": "{'text': array(['a'])}"},
        ": answers must be a text, a list",
    ),
    "a turn alone": (
        {"prompt": "p", "chosen": "r"}, {"prompt": "p", "chosen": ANSWER[0]},
        ": chosen is not a text",
    ),
    "one label for a list": (
        {"text": "t", "labels": []}, {"text": "t", "labels": "a"},
        ": labels must be a list of names, .*--columns label=FIELD",
    ),
    "0 and 1 for each label": (
        {"text": "t", "labels": []}, {"text": "t", "labels": [0, 1, 0]},
        ": labels must be a list of names, .* each once, .*labels=A[+]B columns with 0 and 1",
    ),
    "a blank name of a label": (
        {"text": "t", "labels": []}, {"text": "t", "labels": ["a", " "]}, ": labels must be a list",
    ),
    "a system message that is no text": (P, {**P, "system": 3}, ": system is not a text: 3"),
    "tools that are no list": (
        {"messages": CHAT}, {"messages": CHAT, "tools": "{}"},
        ": tools must be a list of tools, or such a list as JSON: '{}'",
    ),
    "a list as a label": (TEXT, {**TEXT, "label": [1]}, NO_LABEL),
    "a blank label": (TEXT, {**TEXT, "label": " "}, NO_LABEL),
    "half a character": (PAIR, {**PAIR, "prompt": "\ud800"}, " is not valid Unicode"),
    "a score beyond fp32": (SCORED, {**SCORED, "score": 1e39}, ": score is not a number that fp32"),
    "a score that is NaN": (SCORED, {**SCORED, "score": "nan"}, ": score is not a number"),
    "a score that is true": (SCORED, {**SCORED, "score": True}, ": score is not a number"),
    "one candidate": (
        CHOICE, {**CHOICE, "candidates": ["a"]}, ": candidates must be a list of two texts or more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_the_row_and_the_field_as_the_file_has_it(case):
    good, bad, message = WRONG[case]
    refused(f"^file row 2{message}", lambda: convert_rows([good, bad], "file"))


def test_the_guide_has_all_fields():
    guide = (ROOT / "docs/guides/forms.md").read_text()
    for one in READINGS:
        ways = "; ".join(", ".join(f"`{n.removesuffix('[]')}`" for n in way) for way in one.ways)
        perhaps = ", ".join(f"`{name}`" for name in one.optional.split())
        assert f"\n| {ways}{f'; perhaps {perhaps}' if perhaps else ''} | " in guide


# Two kinds of rows in one file, and the fields of each that the refusal names.
MIXED = {
    "a label is missing": (TEXT, {"text": "b"}, "text/label", "text"),
    "a label is null": (TEXT, {"text": "b", "label": None}, "text/label", "text"),
    "half a pair": (T, {"text": "a", "label": 1}, "text/text_pair/label", "text/label"),
    "two forms": (P, ALPACA, "prompt/response", "instruction/output"),
    "no output": (ALPACA, {"instruction": "a", "input": "b"}, "instruction/output", ".*"),
}


@pytest.mark.parametrize("case", MIXED)
def test_rows_of_several_forms_are_refused_with_one_of_each(case):
    """Whatever row 1 has: labels that it lacks must not be dropped."""
    a, b, fields, others = MIXED[case]
    refused(
        f"f row 1 has {fields} and f row 3 has {others}: all", lambda: convert_rows([a, a, b], "f")
    )
    if others != ".*":  # what no form fits is refused by itself
        refused(f"f row 1 has {others} and f row 3 has {fields}: all",
                lambda: convert_rows([b, b, a], "f"))  # fmt: skip


def test_a_misspelt_field_of_a_single_row_is_named():
    right, wrong = {"text": "a", "label": 1, "id": 1}, {"text": "b", "lable": 2, "id": 2}
    message = r"row 1 has text/label and f row 2 has text \(and 'lable', not read\): all rows must"
    refused(message, lambda: convert_rows([right, wrong], "f"))
    message = r"row 1 has text \(and 'lable', not read\) and f row 2 has text/label: all rows must"
    refused(message, lambda: convert_rows([wrong, right], "f"))


def test_fields_that_are_not_read_are_named(caplog):
    row = {"text": "a", "label": 0, "answer": "b", "text2": "c"}
    with caplog.at_level(logging.INFO):
        convert_rows([row], "f")
        assert "f: 'answer', 'text2' not read" in caplog.text
        caplog.clear()
        convert_rows([TEXT], "f")
    assert not caplog.text


def test_a_field_that_row_1_lacks_is_not_said_to_be_unread_if_others_are_read_with_it(caplog):
    rows = [{"messages": CHAT[1:]}, {"messages": CHAT[1:], "tools": TOOLS, "system": "s"}]
    with caplog.at_level(logging.INFO):
        found, _ = convert_rows(rows, "f")
    assert found[1]["tools"] == TOOLS
    assert not caplog.text


# Rows that would be read as something else than they say, and the columns that say what is meant.
MISREAD = {
    "a misspelt label": (
        {"text": "t", "lable": "a"},
        "'lable' looks like a label: --columns label=lable reads it",
    ),
    "a class": ({"text": "t", "Category": "a"}, "'Category' looks like a label: --columns label=C"),
    "a response to a text": (
        {"text": "t", "response": "r"},
        "'response' looks like the answer to it: --columns "
        "prompt=text,response=response reads both, and --columns text=text learns the texts alone",
    ),
    "a context of a labelled text": (
        {"text": "t", "label": 1, "context": "c"},
        "has 'context' beside text/label, which would not be read: --columns "
        "text=context,text_pair=text reads it too, and --columns text=text,label=label leaves",
    ),
    "tools beside a prompt": (
        {**P, "tools": TOOLS},
        "has 'tools' beside prompt/response, which would not be read",
    ),
    "a passage of a question": (
        {"question": "q", "answer": "a", "article": "It is about one or two things."},
        "has 'article' .* --columns context=article reads it too, and --columns question=question",
    ),
    "a system message by another name": (
        {"messages": CHAT[1:], "system_prompt": "s"},
        "--columns system=system_prompt reads it too",
    ),
    "choices of a question": (
        {"question": "q", "choices": ["x", "y"], "answer": 1},
        "--columns prompt=question,candidates=choices,answer=answer reads it too",
    ),
    "an input beside a question": (
        {"question": "q", "input": "i", "answer": "a"},
        "has 'input' .* --columns instruction=question,output=answer reads it too",
    ),
    "a misspelt label of a sentence": (
        {"sentence": "t", "labl": "a"},
        "each needs sentence/label or .*: did you mean --columns label=labl",
    ),
}


@pytest.mark.parametrize("case", MISREAD)
def test_a_row_that_would_be_read_as_something_else_is_refused_with_its_columns(case):
    row, message = MISREAD[case]
    refused(f"f row 1.*{message}", lambda: convert_rows([row, row], "f"))


def test_what_the_refusals_propose_is_accepted(caplog):
    text = [{"text": "t", "response": "r", "lable": "a"}]
    assert convert_rows(text, "f", {"text": "text"}) == ([{"text": "t"}], "text")
    assert convert_rows(text, "f", {"label": "lable"})[1] == "label"
    asked = {"prompt": "text", "response": "response"}
    assert convert_rows(text, "f", asked) == ([{"prompt": "t", "response": "r"}], "prompt")
    both = [{"text": "t", "label": 1, "context": "c"}]
    named = {"text": "context", "text_pair": "text"}
    assert convert_rows(both, "f", named) == (
        [{"text": "c", "text_pair": "t", "label": 1}],
        "label",
    )
    assert convert_rows(both, "f", {"text": "text", "label": "label"})[0] == [
        {"text": "t", "label": 1}
    ]


TOXIC = [
    {"text": "a", "toxic": 1, "rude": "0"}, {"text": "b", "toxic": True, "rude": " TRUE "},
    {"text": "c", "toxic": "0.0", "rude": False},
]  # fmt: skip


def test_columns_of_0_and_1_become_labels_if_they_are_named():
    expected = [["toxic"], ["rude", "toxic"], []]
    for name in ("toxic+rude", "Toxic + RUDE"):
        rows, form = convert_rows(TOXIC, "f", {"labels": name})
        assert form == "labels"
        assert [row["labels"] for row in rows] == expected
    refused("f row 1: beside text, toxic and rude look like labels: --columns labels=toxic[+]rude",
            lambda: convert_rows(TOXIC, "f"))  # fmt: skip
    rude = [{"text": "a", "rude": n, "one": 1} for n in (0, 1)]
    refused("beside text, 'rude' looks like a label: --columns label=rude reads it",
            lambda: convert_rows(rude, "f"))  # fmt: skip
    refused("columns names 'rud', and f has only text, toxic, rude; did you mean rude",
            lambda: convert_rows(TOXIC, "f", {"labels": "toxic+rud"}))  # fmt: skip
    for wrong in (2, None, "", "yes"):
        rows = [*TOXIC, {"text": "d", "toxic": 1, "rude": wrong}]
        refused(f"f row 4: rude must be 0 or 1 .* label rude: {wrong!r}",
                lambda rows=rows: convert_rows(rows, "f", {"labels": "toxic+rude"}))  # fmt: skip
    # Held-out rows may have them in another way, and rows to answer not at all.
    other = [{"text": "t", "labels": ["rude"]}]
    assert convert_rows(other, "f", training_columns={"labels": "toxic+rude"}) == (other, "labels")
    named = {"labels": "toxic+rude"}
    found = rows_to_answer([{"text": "t"}], "f", "labels", ("a",), training_columns=named)
    assert found.rows == [{"text": "t", "labels": []}]


def test_one_field_is_not_two():
    rows = [{"text": "a", "label": 1}]
    refused("columns names 'label' as text and as label: one field can be only one of them",
            lambda: convert_rows(rows, "f", {"text": "label", "label": "label"}))  # fmt: skip


REVIEWS = [{"My review": "good film", "Stars": 4}, {"My review": "bad", "Stars": 1}]


def test_columns_name_fields_and_what_they_do_not_name_is_read_as_ever():
    named = {"text": "My review", "score": " stars"}
    expected = [{"text": "good film", "score": 4}, {"text": "bad", "score": 1}]
    assert convert_rows(REVIEWS, "f", named) == (expected, "score")
    questions = [{**row, "question": "q", "answer": "a"} for row in REVIEWS]
    assert convert_rows(questions, "f", named) == (expected, "score")
    assert convert_rows([{"text": "t", "label": 0, "class": 1}], "f", {"label": "class"}) == (
        [{"text": "t", "label": 1}], "label",
    )  # fmt: skip
    turns = [{"question": ASK, "reply": ANSWER}]
    named = {"prompt": "question", "completion": "reply"}
    assert convert_rows(turns, "f", named) == ([{"messages": CHAT}], "messages")


def test_a_field_is_left_out_in_silence_if_it_cannot_be_what_it_is_called():
    for others in (
        {"document": "a.pdf"}, {"context": "p"}, {"choices": []}, {"system": None, "id": 3},
    ):  # fmt: skip
        assert convert_rows([{**P, "response": "p q", **others}], "f")[1] == "prompt"


def test_columns_that_are_not_there_are_refused_unless_another_file_had_them():
    refused("Stars is not a text: 4", lambda: convert_rows(REVIEWS, "f", {"text": "Stars"}))
    refused("unknown field in columns 'txt'; did you mean text",
            lambda: convert_rows(REVIEWS, "f", {"txt": "Stars"}))  # fmt: skip
    named = {"text": "Film", "label": "Stars"}
    refused("columns names 'Film', and f has only My review, Stars",
            lambda: convert_rows(REVIEWS, "f", named))  # fmt: skip
    rows = [{"text": "t", "label": 0}]
    assert convert_rows(rows, "f", training_columns=named) == (rows, "label")


# Rows to answer: those without labels, those with, and what the model has learned.
TO_ANSWER = {
    "a text": ("label", {"text": "t"}, {"text": "t", "label": "no"}),
    "a pair": ("score", {**PAIRED, "score": 2}, {**PAIRED, "score": 0.0}),
    "a question about a sentence": (
        "label", {"question": "t", "sentence": "u"}, {**PAIRED, "label": "no"},
    ),
    "candidates": (
        "choice", {name: CHOICE[name] for name in ("prompt", "candidates")}, CHOICE,
    ),
    "a prompt": ("prompt", {"prompt": "p"}, {"prompt": "p", "response": ""}),
    "an instruction": (
        "prompt", {key: ALPACA[key] for key in ("instruction", "input")},
        {"prompt": PROMPT, "response": ""},
    ),
    "a plain text": ("text", {"text": "t"}, {"prompt": "t", "response": ""}),
    "a chat": ("messages", {"messages": ASK}, TO_BE_ANSWERED),
    "a chat without a text as its answer": (
        "messages", {"messages": [*ASK, {**NO_ANSWER, "content": None}]}, TO_BE_ANSWERED,
    ),
    "a prompt to a chat": (
        "messages", {"prompt": "p"}, {"messages": [{"role": "user", "content": "p"}, NO_ANSWER]},
    ),
    "an answered chat of another tool": ("messages", SHAREGPT, TO_BE_ANSWERED),
    "turns to be completed": ("messages", {"prompt": ASK}, TO_BE_ANSWERED),
    "a preference": ("messages", {"prompt": ASK, "chosen": CHAT}, TO_BE_ANSWERED),
    "a chosen chat": ("messages", {"chosen": CHAT, "rejected": CHAT}, TO_BE_ANSWERED),
    "a call to be continued": (
        "messages", {"messages": CALLS[:-1], "tools": TOOLS},
        {"messages": [*CALLS[:-1], NO_ANSWER], "tools": TOOLS},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TO_ANSWER)
def test_rows_to_answer_need_no_right_answers(case):
    learned, row, expected = TO_ANSWER[case]
    found = rows_to_answer([row], "rows", learned, ("no", "yes") if learned == "label" else ())
    assert found.rows == [expected]


def test_rows_without_what_a_model_reads_are_refused():
    for learned, message in (
        ("label", "title; each needs text or text/text_pair: --columns says"),
        ("choice", "each needs prompt/candidates: "),
        ("prompt", "each needs prompt or messages or text: --columns says"),
    ):
        refused(
            message, lambda form=learned: rows_to_answer([{"title": "t"}], "rows", form, ("a",))
        )
    rows = [{"text": "t"}, {"text": None}]
    refused(
        "rows row 1 has text and rows row 2 has none of them: all rows",
        lambda: rows_to_answer(rows, "rows", "score"),
    )
    both = [{"prompt": "p", "question": "q"}]
    refused("as prompt and as question", lambda: rows_to_answer(both, "rows", "prompt"))


def test_answers_that_are_marked_as_bad_are_not_learned_as_good_ones():
    for bad in (False, "False"):  # in JSON, and in CSV
        rows = [{"prompt": "a", "completion": "b", "label": good} for good in (True, bad)]
        with pytest.raises(ValueError, match=r"row 2 has label false: .* keep those with true"):
            convert_rows(rows, "rows")
    assert convert_rows(rows[:1], "rows")[1] == "prompt"


WAYS = {
    "indices": [0, 2, 1],
    "digits": ["0", "2", " 1"],
    "letters": ["A", "c", "B"],
    "texts": ["x", " z ", "y"],
    "indices and letters": [0, "C", "B"],
}


def asked(*answers, candidates=(" x", " y", " z")):
    rows = [{"prompt": "p", "candidates": list(candidates), "answer": a} for a in answers]
    return [row["answer"] for row in convert_rows(rows, "f")[0]]


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_becomes_the_index_of_its_candidate(way):
    assert asked(*WAYS[way]) == [0, 2, 1]


def test_letters_that_are_all_candidates_are_texts_wherever_they_stand():
    assert asked("A", "B", candidates=("B", "A")) == [1, 0]
    assert asked("b", "a", candidates=("b", "a")) == [0, 1]


def test_digits_that_are_all_candidates_are_texts_and_else_indices():
    assert asked("3", "1", candidates=("1", "2", "3")) == [2, 0]
    assert asked("2", "0", candidates=("1", "2", "3")) == [2, 0]


@pytest.mark.parametrize("answer", [3, "3", "D", "w", "", "-1", 3.0, [0], True])
def test_what_is_none_of_the_candidates_is_refused_with_its_row(answer):
    refused("f row 2: answer must be the index of one of the candidates, from 0, its letter or its",
            lambda: asked(0, answer))  # fmt: skip


@pytest.mark.parametrize("row", [ALPACA, SHAREGPT, {"text": "t", "label": 0}])
def test_a_group_of_any_form_is_kept_and_all_rows_have_one_or_none(row, caplog):
    grouped = [{**row, "passage": "a long one"}, {**row, "passage": 2}]
    found, _ = convert_rows(grouped, "rows", {"group": "passage"})
    assert [one["group"] for one in found] == ["a long one", 2]
    assert not caplog.records
    (plain,), _ = convert_rows([row], "rows")
    assert found[0] == {**plain, "group": "a long one"}
    assert content_of(found[0]) == content_of(plain)
    refused(
        "row 2 and rows row 1: give all", lambda: convert_rows([{**row, "group": 1}, row], "rows")
    )
    refused(
        "group must be a text or an integer", lambda: convert_rows([{**row, "group": [1]}], "rows")
    )
