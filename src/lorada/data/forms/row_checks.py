"""What the value of each field of a row has to be, and what an error says of one that is not."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from lorada.data.forms.row_values import GROUP, are_turns, as_text, label_names

LARGEST_SCORE = 3.4e38  # what fp32 holds
WEIGHTS = [None, 0, 1]  # of a turn; none is 1. A list, as a value may not be hashable
ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "assistant": "assistant",
}  # fmt: skip
SHAREGPT_ROLES = {**ROLES, "function_call": "assistant", "observation": "tool"}


class Check(NamedTuple):
    """What a value has to be."""

    accepts: Callable[[Any], bool]
    problem: str  # what is wrong with any other value, behind the name of its field


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
    if isinstance(value, bool):
        return False
    try:  # in a CSV file it is a text
        return abs(float(value)) < LARGEST_SCORE  # NaN is not
    except (TypeError, ValueError, OverflowError):
        return False


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(map(is_text, value))


def _are_tools(value: Any) -> bool:
    if not isinstance(value, str):
        return isinstance(value, list)
    try:
        return isinstance(json.loads(value), list)
    except ValueError:
        return False


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_turn, value))


def _is_turn(turn: Any) -> bool:
    """Whether a turn has a role, and a text or calls of tools."""
    if not isinstance(turn, dict) or not _is_role(turn.get("role")):
        return False
    content = turn.get("content")
    only_calls = content is None and bool(turn.get("tool_calls"))
    has_content = is_text(content) or only_calls
    return has_content and turn.get("weight") in WEIGHTS


def _is_role(value: Any) -> bool:
    """Whether it is a template's own, or one of ours as it is written: no ``Assistant`` or gpt."""
    if not is_text(value):
        return False
    if value in ROLES.values():
        return True
    # In another spelling it would be a role that nobody learns, in silence.
    return value.strip().lower() not in (*ROLES, "model")


def _are_sharegpt_turns(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_sharegpt_turn, value))


def _is_sharegpt_turn(turn: Any) -> bool:
    if not isinstance(turn, dict) or not is_text(turn.get("value")):
        return False
    speaker = turn.get("from")
    if speaker not in [*SHAREGPT_ROLES]:  # a list, as a value may not be hashable
        return False
    if speaker == "function_call" and not _is_call(turn["value"]):
        return False
    return turn.get("weight") in WEIGHTS


def _is_call(text: str) -> bool:
    """Whether a text is a call of a tool with its name, or a list of them, as JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    calls = value if isinstance(value, list) else [value]
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


TEXT = Check(is_text, "is not a text")
# Numbers, lists and objects that a program wrote are JSON where a model reads and writes texts.
TEXT_OR_JSON = Check(can_be_text, "is not a text")
NAME = Check(_is_name, "must be a text or an integer, and not blank")
TURNS_OF_CHAT = Check(
    _are_turns,
    "must be a list of turns with the texts role (system, user, assistant) and content, and a "
    "weight, if any, of 0 or 1",
)
# By the name of the field; what is not listed is a text.
CHECKS = {
    "label": NAME,
    GROUP: NAME,
    "labels": Check(
        _are_labels,
        'must be a list of names, such as ["a", "b"] or [], each once, in a table as JSON '
        "(--columns label=FIELD reads a field with the one label of a text, and labels=A+B columns "
        "with 0 and 1)",
    ),
    "answers": Check(
        _are_answers,
        'must be a text, a list of texts, or {"text": [...]} as in SQuAD, with at least one: leave '
        "out questions without an answer, or give them a text such as unanswerable",
    ),
    "system": TEXT,
    "score": Check(_is_score, "is not a number that fp32 holds"),
    "candidates": Check(_are_texts, "must be a list of two texts or more"),
    "tools": Check(_are_tools, "must be a list of tools, or such a list as JSON"),
    "messages": TURNS_OF_CHAT,
    "prompt[]": TURNS_OF_CHAT,
    "completion[]": TURNS_OF_CHAT,
    "conversations": Check(
        _are_sharegpt_turns,
        "must be a list of turns, each from system, human, gpt, function_call (with a call as "
        "JSON) or observation, with a text as value, and a weight, if any, of 0 or 1",
    ),
}
