"""Answers that are JSON: an answer is right if it is the same value, however it is written.

The order of an object's keys, white space, and 1 or 1.0 make no difference; true is not 1.
"""

import json
from collections.abc import Sequence
from typing import Any

from lorada.data.rows.row_content import answer_of
from lorada.support.row_sources import Row

NOTHING = object()  # what a text holds that is no object or list of JSON


def json_in(text: str) -> Any:
    """The object or list that a text is, as JSON; ``NOTHING`` for any other text.

    A number or a word in quotes is a value of JSON too, but a text as well.
    """
    if text.strip()[:1] not in ("{", "["):
        return NOTHING
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NOTHING


def is_json(text: str) -> bool:
    """Whether a text is an object or a list, as JSON."""
    return json_in(text) is not NOTHING


def mostly_json(texts: Sequence[str]) -> bool:
    """Whether more than half of some texts are objects or lists."""
    return 2 * sum(map(is_json, texts)) > len(texts)


def json_match(output: str, row: Row) -> float:
    """100 if an output is the same value as the answer; for one that is no JSON, the same text."""
    right_text = answer_of(row)
    right_value = json_in(right_text)
    if right_value is NOTHING:
        return 100.0 * (output.strip() == right_text.strip())
    value = json_in(output)
    return 100.0 * (value is not NOTHING and _are_equal(value, right_value))


def _are_equal(first: Any, second: Any) -> bool:
    """Whether two values of JSON are equal; Python's own ``==`` takes true for 1."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return False
        return all(_are_equal(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_are_equal, first, second))
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)
