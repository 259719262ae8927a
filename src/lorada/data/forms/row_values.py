"""How the values of a row's fields are read from texts and numbers.

A value that a program wrote (a number, a list, an object) and that a model is to write is JSON in
one form: Python's ``json.dumps`` with letters of any script, a number as the file has it.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lorada.data.files.written_numbers import WrittenFloat
from lorada.support.row_sources import Row

TURNS = "[]"  # behind the name of a field that holds turns, where it might hold a text
TEXT_OR_TURNS = "prompt", "completion", "chosen"
GROUP = "group"  # what a row shares with others, such as the passage of its question; in any form
# Fields that hold a list, which a table has as JSON in a cell.
LISTS = "messages", "conversations", "candidates", "labels", "answers"
BINARY = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}


def plain_name(name: str) -> str:
    """A field's name without blanks around it, in small letters."""
    return name.strip().casefold()


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


def parse_list(text: str) -> Any:
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
    return isinstance(value, list) and any(map(_looks_like_turn, value))


def _looks_like_turn(value: Any) -> bool:
    if not isinstance(value, dict) or "role" not in value:
        return False
    return "content" in value or "tool_calls" in value


def parse_lists(row: Row, names: Mapping[str, str]) -> Row:
    """A row with the lists that stand in it as texts; ``names`` are ours by the row's keys."""
    lists = dict[str, Any]()
    for key, name in names.items():
        value = row[key]
        if not isinstance(value, str) or name not in (*LISTS, *TEXT_OR_TURNS):
            continue
        parsed = parse_list(value)
        if name == "labels" and not value.strip():
            parsed = []  # an empty cell of a table: the text has no label
        # A prompt may well be a text in brackets; only turns are taken for what they are.
        if parsed is not None and (name in LISTS or are_turns(parsed)):
            lists[key] = parsed
    return {**row, **lists} if lists else row


def first_and_other_answers(answers: Any) -> tuple[str, list[str]]:
    """The first of a question's right answers, and those that differ from it."""
    texts = answers["text"] if isinstance(answers, dict) else answers  # SQuAD has an object
    if isinstance(texts, str):
        texts = [texts]
    first = texts[0]
    others = [text for text in dict.fromkeys(texts) if text != first]
    return first, others


def label_names(labels: Sequence[Any]) -> list[str]:
    """Labels of a row as texts."""
    return [str(label).strip() for label in labels]


def as_binary(value: Any) -> bool | None:
    """Whether a label stands for yes in a column of its own; None for neither yes nor no."""
    return BINARY.get(str(value).strip().lower())
