"""What the values of a row's fields have to be, and how they are read from texts and numbers.

A value that a program wrote (a number, a list, an object) and that a model is to write is JSON in
one form: Python's ``json.dumps`` with letters of any script, a number as the file has it.
"""

import ast
import json
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorada.support.row_sources import Row

TURNS = "[]"  # behind the name of a field that holds turns, where it might hold a text
TEXT_OR_TURNS = "prompt", "completion", "chosen"
LARGEST = 3.4e38  # the largest score: what fp32 holds
ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "assistant": "assistant",
}  # fmt: skip
SHAREGPT_ROLES = {**ROLES, "function_call": "assistant", "observation": "tool"}
GROUP = "group"  # what a row shares with others, such as the passage of its question; in any form
# Fields that hold a list, which a table has as JSON in a cell.
LISTS = "messages", "conversations", "candidates", "labels", "answers"
BINARY = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}


def plain_name(name: str) -> str:
    """A field's name without blanks around it, in small letters."""
    return name.strip().casefold()


class WrittenFloat(float):
    """A number of a JSON file that remembers how it is written there, such as 0.10."""

    written: str

    def __new__(cls, text: str) -> "WrittenFloat":
        """The number that a text of digits is."""
        number = super().__new__(cls, text)
        number.written = text
        return number


def number_in(text: str) -> float:
    """A number of JSON; it remembers how it is written if Python would write it in another way."""
    number = float(text)
    return number if repr(number) == text else WrittenFloat(text)


def as_text(value: Any) -> str:
    """A value as the text that a model reads or writes: itself, or as JSON.

    Raises:
        ValueError: for NaN and infinity, which JSON does not have.
        TypeError: for what is no value of JSON, such as bytes.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, WrittenFloat):
        return value.written
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def list_in(text: str) -> Any:
    """The list or object that a cell of a table holds, as JSON or as Python prints it, or None."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def are_turns(value: Any) -> bool:
    """Whether a value is meant as the turns of a chat, if perhaps with mistakes in some."""
    if not isinstance(value, list):
        return False
    return any(
        isinstance(turn, dict) and "role" in turn and ("content" in turn or "tool_calls" in turn)
        for turn in value
    )


def with_lists(row: Row, names: Mapping[str, str]) -> Row:
    """A row with the lists that stand in it as texts; ``names`` are ours by the row's keys."""
    lists = dict[str, Any]()
    for key, name in names.items():
        value = row[key]
        if not isinstance(value, str) or name not in (*LISTS, *TEXT_OR_TURNS):
            continue
        parsed = list_in(value)
        if name == "labels" and not value.strip():
            parsed = []  # an empty cell of a table: the text has no label
        # A prompt may well be a text in brackets; only turns are taken for what they are.
        if parsed is not None and (name in LISTS or are_turns(parsed)):
            lists[key] = parsed
    return {**row, **lists} if lists else row


def first_and_other_answers(answers: Any) -> tuple[str, list[str]]:
    """The first of a question's right answers, and those that differ from it."""
    texts = answers["text"] if isinstance(answers, dict) else answers
    texts = [texts] if isinstance(texts, str) else texts
    return texts[0], [text for text in dict.fromkeys(texts) if text != texts[0]]


def label_names(labels: Sequence[Any]) -> list[str]:
    """Labels of a row as texts."""
    return [str(label).strip() for label in labels]


def as_binary(value: Any) -> bool | None:
    """Whether a label stands for yes in a column of its own; None for neither yes nor no."""
    return BINARY.get(str(value).strip().lower())


def can_be_text(value: Any) -> bool:
    """Whether a value can be what a model reads or writes."""
    try:
        as_text(value)
    except (ValueError, TypeError):
        return False
    # One turn of a chat without the list that it belongs in.
    return value is not None and not are_turns([value])


def is_text(value: Any) -> bool:
    """Whether a value is a text."""
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and bool(str(value).strip())


def _is_score(value: Any) -> bool:
    try:  # in a CSV file it is a text
        return not isinstance(value, bool) and abs(float(value)) < LARGEST  # NaN is not
    except (TypeError, ValueError, OverflowError):
        return False


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(map(is_text, value))


def _are_tools(value: Any) -> bool:
    try:
        return isinstance(json.loads(value) if isinstance(value, str) else value, list)
    except ValueError:
        return False


def _are_whole_turns(value: Any) -> bool:
    """Whether each turn has a role, and a text or calls of tools."""
    return isinstance(value, list) and all(
        isinstance(turn, dict)
        and _is_role(turn.get("role"))
        and (is_text(said := turn.get("content")) or (said is None and turn.get("tool_calls")))
        and turn.get("weight") in WEIGHTS
        for turn in value
    )


def _is_role(value: Any) -> bool:
    """Whether it is a template's own, or one of ours as it is written: no ``Assistant`` or gpt."""
    return is_text(value) and (
        value in ROLES.values() or value.strip().lower() not in (*ROLES, "model")
    )


def _are_sharegpt(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict)
        and turn.get("from") in [*SHAREGPT_ROLES]  # a list, as a value may not be hashable
        and is_text(turn.get("value"))
        and (turn["from"] != "function_call" or _is_call(turn["value"]))
        and turn.get("weight") in WEIGHTS
        for turn in value
    )


def _is_call(value: str) -> bool:
    """Whether a text is a call of a tool with its name, or a list of them, as JSON."""
    try:
        calls = json.loads(value)
    except ValueError:
        return False
    calls = calls if isinstance(calls, list) else [calls]
    return bool(calls) and all(isinstance(call, dict) and call.get("name") for call in calls)


def _are_labels(value: Any) -> bool:
    """Whether it is a list of names, each once: 0 and 1 for each label would be read as names."""
    if not isinstance(value, list) or not all(map(_is_name, value)):
        return False
    return len(set(label_names(value))) == len(value)


def _are_answers(value: Any) -> bool:
    """Whether it is a text, texts, or SQuAD's object with texts, and not none of them."""
    texts = value.get("text") if isinstance(value, dict) else value
    if isinstance(texts, str):
        # A list or object that no parser could read, such as an array that numpy prints.
        return texts.lstrip()[:1] not in ("[", "{")
    return isinstance(texts, list) and bool(texts) and all(map(is_text, texts))


WEIGHTS = [None, 0, 1]  # of a turn; none is 1. A list, as a value may not be hashable
TEXT_ONLY = is_text, "is not a text"
TURNS_ONLY = (
    _are_whole_turns,
    "must be a list of turns with the texts role (system, user, assistant) and content, and a "
    "weight, if any, of 0 or 1",
)
# What a value has to be, and what an error says of one that is not; others have to be texts.
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "label": (_is_name, "must be a text or an integer, and not blank"),
    GROUP: (_is_name, "must be a text or an integer, and not blank"),
    "labels": (
        _are_labels,
        'must be a list of names, such as ["a", "b"] or [], each once, in a table as JSON '
        "(--columns label=FIELD reads a field with the one label of a text, and labels=A+B columns "
        "with 0 and 1)",
    ),
    "answers": (
        _are_answers,
        'must be a text, a list of texts, or {"text": [...]} as in SQuAD, with at least one: leave '
        "out questions without an answer, or give them a text such as unanswerable",
    ),
    "system": TEXT_ONLY,
    "score": (_is_score, "is not a number that fp32 holds"),
    "candidates": (_are_texts, "must be a list of two texts or more"),
    "tools": (_are_tools, "must be a list of tools, or such a list as JSON"),
    "messages": TURNS_ONLY,
    "prompt[]": TURNS_ONLY,
    "completion[]": TURNS_ONLY,
    "conversations": (
        _are_sharegpt,
        "must be a list of turns, each from system, human, gpt, function_call (with a call as "
        "JSON) or observation, with a text as value, and a weight, if any, of 0 or 1",
    ),
}


def as_indices(rows: list[Row], where: Callable[[int], str]) -> list[Row]:
    """Rows of choices, each ``answer`` as the index of one of its ``candidates``.

    Texts are read in one way in all rows: as candidates if they all are, else as letters or as
    numbers, whichever most of them are. So "2" among the candidates 1, 2 and 3 is the text.
    """
    ways = list(zip(*map(_indices, rows), strict=True))
    best = max(ways, key=lambda way: sum(index is not None for index in way))
    for number, (row, index) in enumerate(zip(rows, best, strict=True)):
        if index is None:
            raise ValueError(
                f"{where(number)}: answer must be the index of one of the candidates, from 0, its "
                f"letter or its text: {row['answer']!r}"
            )
    return [{**row, "answer": index} for row, index in zip(rows, best, strict=True)]


def _indices(row: Row) -> list[int | None]:
    """The index of a row's right candidate if the answer is its text, its letter or its number."""
    answer, texts = row["answer"], [text.strip() for text in row["candidates"]]
    known = range(len(texts))
    if not isinstance(answer, str):
        return [answer if type(answer) is int and answer in known else None] * 3
    answer = answer.strip()
    letter = string.ascii_uppercase.find(answer.upper()) if len(answer) == 1 else -1
    number = int(answer) if answer.isdecimal() else -1
    texts_of = (texts.index(one) for one in (answer, answer.lstrip("0") or "0") if one in texts)
    by_text = next(texts_of, -1)
    return [index if index in known else None for index in (by_text, letter, number)]
