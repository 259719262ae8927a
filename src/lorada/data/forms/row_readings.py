"""``READINGS``: all fields that rows may have; and how those of other tools are converted.

What a model learns of each is in docs/guides/forms.md.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorada.data.benchmarks.published_prompts import clean_prompt
from lorada.data.forms.row_checks import SHAREGPT_ROLES
from lorada.data.forms.row_values import GROUP, TURNS, as_text, first_and_other_answers, label_names
from lorada.support.row_sources import Form, Row

BY_CHANCE = 20  # letters of a context that may stand in a prompt by chance
# Other names of a text, and of a pair of texts, that has a label or a score.
OTHER_TEXT = "sentence", "review"
TEXT_AND_LABEL = (
    "text sentiment", "sentence label", "sentence sentiment", "review label", "review sentiment",
)  # fmt: skip
PAIR = "sentence1 sentence2", "premise hypothesis", "text1 text2", "question sentence"


def _chat(row: Row) -> Row:
    """A chat with its turns as they are, after the system message of its row, and its tools."""
    turns = [_turn(turn) for turn in row["messages"]]
    if row.get("system"):
        turns.insert(0, {"role": "system", "content": row["system"]})
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = json.loads(tools)
    return {"messages": turns, "tools": tools} if tools else {"messages": turns}


def _turn(turn: Row) -> Row:
    """A turn without its keys that are null, but for ``content``: templates ask if it is there."""
    written = {key: value for key, value in turn.items() if value is not None}
    return {"content": None, **written}


def _sharegpt(row: Row) -> Row:
    """A chat of ShareGPT's form: its turns have ``from`` and ``value``."""
    turns = [_sharegpt_turn(turn) for turn in row["conversations"]]
    return _chat({**row, "messages": turns})


def _sharegpt_turn(turn: Row) -> Row:
    """A turn by the names of the chat templates; a call of a tool stands as JSON in its value."""
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    role = SHAREGPT_ROLES[turn["from"]]
    if turn["from"] != "function_call":
        return {"role": role, "content": turn["value"], **others}
    calls = json.loads(turn["value"])
    if not isinstance(calls, list):  # some files have several in one turn
        calls = [calls]
    functions = [{"type": "function", "function": call} for call in calls]
    return {"role": role, "content": None, "tool_calls": functions, **others}


def _continued(row: Row) -> Row:
    """A chat whose prompt and completion are lists of turns, as TRL has them."""
    return _chat({**row, "messages": row["prompt[]"] + row["completion[]"]})


def _after_context(row: Row, text: str) -> str:
    """A text after the system message and the context of its row.

    One that stands in the text already, as in many files with prompts that are ready, is not
    repeated; a short one may stand there by chance.
    """
    parts = []
    for name in ("system", "context"):
        part = as_text(row[name]) if row.get(name) else ""
        if part and (len(part) < BY_CHANCE or part not in text):
            parts.append(part)
    return "\n\n".join([*parts, text])


def _prompt(row: Row) -> Row:
    """A prompt behind its context, and its response."""
    prompt = _after_context(row, as_text(row["prompt"]))
    return {"prompt": prompt, "response": as_text(row["response"])}


def _answered_prompt(row: Row) -> Row:
    """A prompt whose response is called ``answer``."""
    return _prompt({**row, "response": row["answer"]})


def _choice(row: Row) -> Row:
    """A prompt behind its context, with candidates of which the answer is one."""
    prompt = _after_context(row, row["prompt"])
    return {"prompt": prompt, "candidates": row["candidates"], "answer": row["answer"]}


def _instruction(row: Row) -> Row:
    """An instruction with its input in Alpaca's prompt, after the system message of its row."""
    inputs = [as_text(row[name]) for name in ("input", "context") if row.get(name)]
    prompt = clean_prompt(as_text(row["instruction"]), "\n\n".join(filter(None, inputs)))
    parts = [part for part in (row.get("system"), prompt) if part]
    return {"prompt": "\n\n".join(parts), "response": as_text(row["output"])}


def _question(row: Row) -> Row:
    """A question as a prompt that ends in ``Answer:``; the answer follows after a blank."""
    prompt = _after_context(row, f"Question: {as_text(row['question'])}\nAnswer:")
    return {"prompt": prompt, "response": f" {as_text(row['answer'])}"}


def _squad(row: Row) -> Row:
    """A question with the first of its answers to learn; the others are as right in scoring."""
    first, others = first_and_other_answers(row["answers"])
    converted = _question({**row, "answer": first})
    return {**converted, "other_answers": others} if others else converted


def _dialogue(row: Row) -> Row:
    """A dialogue as a prompt that ends in ``Summary:``, after which the summary follows."""
    prompt = f"{as_text(row['dialogue'])}\n\nSummary:"
    return {"prompt": prompt, "response": f" {as_text(row['summary'])}"}


def _labelled(row: Row) -> Row:
    """A text with its one label."""
    label = row["label"]
    return {**row, "label": label.strip() if isinstance(label, str) else label}


def _several_labels(row: Row) -> Row:
    """A text with its labels in the order of the alphabet, so that equal rows look equal."""
    return {**row, "labels": sorted(label_names(row["labels"]))}


@dataclass(frozen=True)
class Reading:
    """One way to read a row: an entry of ``READINGS``.

    Attributes:
        form: the form that the row comes to.
        fields: the names of the fields that it must have, separated by blanks; if there are
            several, the last holds the right answer.
        others: other names for these fields, in their order.
        optional: the names of fields that it may have.
        convert: row with these fields → row of the form.
        is_fallback: whether it is taken only if no other reading fits; of several, the first.
    """

    form: Form
    fields: str
    others: tuple[str, ...] = ()
    optional: str = ""
    convert: Callable[[Row], Row] = dict
    is_fallback: bool = False

    @cached_property
    def ways(self) -> list[dict[str, str]]:
        """The names that a row may have for the fields that it must have → those fields."""
        ways = []
        for names in (self.fields, *self.others):
            ways.append(dict(zip(names.split(), self.fields.split(), strict=True)))
        return ways

    @property
    def right(self) -> str | None:
        """The field that holds the right answer; None if there is only one field."""
        *others, last = self.fields.split()
        return last if others else None


READINGS = (
    Reading("prompt", "prompt response",
            ("prompt completion", "prompt chosen", "input output"),
            "context system", _prompt),
    Reading("messages", "messages", ("chosen[]",), "system tools", _chat),
    Reading("label", "text label", TEXT_AND_LABEL, "", _labelled),
    Reading("label", "text text_pair label", tuple(f"{texts} label" for texts in PAIR),
            "", _labelled),
    Reading("labels", "text labels", tuple(f"{text} labels" for text in OTHER_TEXT),
            "", _several_labels),
    Reading("labels", "text text_pair labels", tuple(f"{texts} labels" for texts in PAIR),
            "", _several_labels),
    Reading("score", "text score", tuple(f"{text} score" for text in OTHER_TEXT)),
    Reading("score", "text text_pair score", tuple(f"{texts} score" for texts in PAIR)),
    Reading("choice", "prompt candidates answer", (), "context system", _choice),
    # Rows that a program scores have prompt, response and answer, of which the response is learned.
    Reading("prompt", "prompt answer", (), "context system", _answered_prompt, is_fallback=True),
    Reading("text", "text", ("chosen",), is_fallback=True),
    Reading("messages", "prompt[] completion[]", ("prompt[] chosen[]",), "tools", _continued),
    Reading("messages", "conversations", (), "system tools", _sharegpt),
    Reading("prompt", "instruction output", ("instruction response",), "input context system",
            _instruction),
    Reading("prompt", "question answer", ("question response",), "context system", _question),
    Reading("prompt", "question answers", (), "context system", _squad),
    Reading("prompt", "dialogue summary", (), "", _dialogue),
)  # fmt: skip


def _known_names() -> frozenset[str]:
    """Every name that a field may have."""
    names = {GROUP}
    for reading in READINGS:
        names.update(reading.optional.split())
        for way in reading.ways:
            for name, field in way.items():
                names |= {name.removesuffix(TURNS), field.removesuffix(TURNS)}
    return frozenset(names)


KNOWN = _known_names()
# What stands for the right answer in rows that have none; no model's answer depends on it.
STAND_INS: dict[Form, Any] = {
    "prompt": "", "choice": 0, "score": 0.0, "labels": [],
    "messages": [{"role": "assistant", "content": ""}],
}  # fmt: skip
