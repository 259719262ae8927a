"""Answers that are JSON: an answer is right if it is the same value, however it is written.

The order of an object's keys, white space, and 1 or 1.0 make no difference; true is not 1.
"""

import json
from collections.abc import Sequence
from typing import Any

from lorada.data.row_content import answer_of
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
    right = answer_of(row)
    expected = json_in(right)
    if expected is NOTHING:
        return 100.0 * (output.strip() == right.strip())
    answer = json_in(output)
    return 100.0 * (answer is not NOTHING and _same(answer, expected))


def _same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are equal; Python's own ``==`` takes true for 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
