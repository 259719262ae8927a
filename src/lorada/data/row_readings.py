"""``READINGS``: all fields that rows may have; and how those of other tools are converted.

What a model learns of each is in docs/guides/train.md.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from lorada.data.benchmarks.published_prompts import clean_prompt
from lorada.data.row_values import (
    GROUP,
    SHAREGPT_ROLES,
    TURNS,
    as_text,
    first_and_other_answers,
    label_names,
)
from lorada.support.row_sources import Form, Row

BY_CHANCE = 20  # letters of a context that may stand in a prompt by chance
# Other names of a text, and of a pair of texts, that has a label or a score.
ONE = "text", "sentence", "review"
PAIR = "sentence1 sentence2", "premise hypothesis", "text1 text2", "question sentence"


def _chat(row: Row) -> Row:
    """A chat with its turns as they are, after the system message of its row, and its tools.

    A key of a turn that is null is left out, but for ``content``: templates ask if it is there.
    """
    before = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    turns = [
        {"content": None, **{key: value for key, value in turn.items() if value is not None}}
        for turn in row["messages"]
    ]
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"messages": before + turns, **({"tools": tools} if tools else {})}


def _sharegpt(row: Row) -> Row:
    turns = [_sharegpt_turn(turn) for turn in row["conversations"]]
    return _chat({**row, "messages": turns})


def _sharegpt_turn(turn: Row) -> Row:
    """A turn by the names of the chat templates; a call of a tool stands as JSON in its value."""
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    role = SHAREGPT_ROLES[turn["from"]]
    if turn["from"] != "function_call":
        return {"role": role, "content": turn["value"], **others}
    calls = json.loads(turn["value"])
    calls = calls if isinstance(calls, list) else [calls]  # some files have several in one turn
    functions = [{"type": "function", "function": call} for call in calls]
    return {"role": role, "content": None, "tool_calls": functions, **others}


def _continued(row: Row) -> Row:
    return _chat({**row, "messages": row["prompt[]"] + row["completion[]"]})


def _after_context(row: Row, text: str) -> str:
    """A text after the system message and the context of its row.

    One that stands in the text already, as in many files with prompts that are ready, is not
    repeated; a short one may stand there by chance.
    """
    before = [as_text(row[name]) for name in ("system", "context") if row.get(name)]
    parts = [part for part in before if len(part) < BY_CHANCE or part not in text]
    return "\n\n".join([*parts, text])


def _prompt(row: Row) -> Row:
    prompt = _after_context(row, as_text(row["prompt"]))
    return {"prompt": prompt, "response": as_text(row["response"])}


def _answered_prompt(row: Row) -> Row:
    return _prompt({**row, "response": row["answer"]})


def _choice(row: Row) -> Row:
    prompt = _after_context(row, row["prompt"])
    return {"prompt": prompt, "candidates": row["candidates"], "answer": row["answer"]}


def _instruction(row: Row) -> Row:
    inputs = [as_text(row[name]) for name in ("input", "context") if row.get(name)]
    prompt = clean_prompt(as_text(row["instruction"]), "\n\n".join(filter(None, inputs)))
    parts = filter(None, (row.get("system"), prompt))
    return {"prompt": "\n\n".join(parts), "response": as_text(row["output"])}


def _question(row: Row) -> Row:
    prompt = _after_context(row, f"Question: {as_text(row['question'])}\nAnswer:")
    return {"prompt": prompt, "response": f" {as_text(row['answer'])}"}


def _squad(row: Row) -> Row:
    """A question with the first of its answers to learn; the others are as right in scoring."""
    first, others = first_and_other_answers(row["answers"])
    converted = _question({**row, "answer": first})
    return {**converted, "other_answers": others} if others else converted


def _dialogue(row: Row) -> Row:
    prompt = f"{as_text(row['dialogue'])}\n\nSummary:"
    return {"prompt": prompt, "response": f" {as_text(row['summary'])}"}


def _labelled(row: Row) -> Row:
    """A text with its one label."""
    label = row["label"]
    return {**row, "label": label.strip() if isinstance(label, str) else label}


def _several_labels(row: Row) -> Row:
    """A text with its labels in the order of the alphabet, so that equal rows look equal."""
    return {**row, "labels": sorted(label_names(row["labels"]))}


class Reading(NamedTuple):
    """One way to read a row."""

    form: Form  # that the row comes to
    fields: str  # what it must have; if there are several, the last holds the right answer
    others: tuple[str, ...] = ()  # other names for these fields, in their order
    optional: str = ""  # what it may have
    convert: Callable[[Row], Row] = dict  # makes a row of the form from these fields
    beside_others: bool = True  # False: only if no other reading fits, of which the first is taken

    @property
    def ways(self) -> list[dict[str, str]]:
        """The names that a row may have for the fields that it must have → those fields."""
        names = (self.fields, *self.others)
        return [dict(zip(n.split(), self.fields.split(), strict=True)) for n in names]

    @property
    def right(self) -> str | None:
        """The field that holds the right answer."""
        *others, last = self.fields.split()
        return last if others else None


READINGS = (
    Reading("prompt", "prompt response",
            ("prompt completion", "prompt chosen", "input output"),
            "context system", _prompt),
    Reading("messages", "messages", ("chosen[]",), "system tools", _chat),
    Reading("label", "text label",
            tuple(f"{text} {label}" for text in ONE for label in ("label", "sentiment"))[1:],
            "", _labelled),
    Reading("label", "text text_pair label", tuple(f"{texts} label" for texts in PAIR),
            "", _labelled),
    Reading("labels", "text labels", tuple(f"{text} labels" for text in ONE[1:]),
            "", _several_labels),
    Reading("labels", "text text_pair labels", tuple(f"{texts} labels" for texts in PAIR),
            "", _several_labels),
    Reading("score", "text score", tuple(f"{text} score" for text in ONE[1:])),
    Reading("score", "text text_pair score", tuple(f"{texts} score" for texts in PAIR)),
    Reading("choice", "prompt candidates answer", (), "context system", _choice),
    # Rows that a program scores have prompt, response and answer, of which the response is learned.
    Reading("prompt", "prompt answer", (), "context system", _answered_prompt, beside_others=False),
    Reading("text", "text", ("chosen",), beside_others=False),
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
            names.update(name.removesuffix(TURNS) for name in (*way, *way.values()))
    return frozenset(names)


KNOWN = _known_names()
# What stands for the right answer in rows that have none; no model's answer depends on it.
STAND_INS: dict[Form, Any] = {
    "prompt": "", "choice": 0, "score": 0.0, "labels": [],
    "messages": [{"role": "assistant", "content": ""}],
}  # fmt: skip
