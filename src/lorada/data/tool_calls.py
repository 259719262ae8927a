"""Calls of tools: those that an assistant's turn holds, and those that a model writes.

A turn has them under ``tool_calls``, as OpenAI's format and transformers' templates take them: each
``{"type": "function", "function": {"name": …, "arguments": …}}`` or the inner part alone. What a
model writes is a text, in which most templates put a call as JSON.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorada.support.row_sources import Row

CALLS = "tool_calls"  # the key of a turn
FUNCTION = "function"  # the key of a call, or of a tool, that holds the rest
ARGUMENTS = "arguments", "parameters"  # names of what a function is called with


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]

    @property
    def text(self) -> str:
        """The call as JSON with sorted keys: calls that mean the same have the same text."""
        return json.dumps(
            {"name": self.name, "arguments": self.arguments}, sort_keys=True, ensure_ascii=False
        )


def ends_in_calls(row: Row) -> bool:
    """Whether a row is a chat whose last turn calls tools."""
    return "messages" in row and bool(row["messages"][-1].get(CALLS))


def calls_of(turn: Row) -> list[ToolCall]:
    """The calls of a turn, with arguments that are JSON text read.

    Raises:
        ValueError: for calls without a name, and for arguments that are no JSON object.
    """
    calls = turn.get(CALLS) or []
    if not isinstance(calls, list):
        raise ValueError(f"{CALLS} must be a list of calls, each with name and arguments")
    return [_call_of(function_of(call)) for call in calls]


def function_of(call: Any) -> Any:
    """What a call, or a tool, has under ``function``; itself if there is none."""
    inner = call.get(FUNCTION) if isinstance(call, dict) else None
    return inner if isinstance(inner, dict) else call


def calls_in(text: str) -> list[ToolCall]:
    """The calls that stand in a text as JSON, in their order; other text is passed over."""
    calls: list[ToolCall] = []
    decoder = json.JSONDecoder(parse_float=_number)
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # no JSON begins here
            end = start + 1
        else:
            calls += _calls_within(value)
        start = text.find("{", end)
    return calls


def same_calls(answer: str, right: str, count: int) -> bool:
    """Whether an answer calls the same tools as the right one, with the same arguments.

    The order of calls and of keys, blanks and text beside calls do not matter. ``count`` is how
    many calls the right answer has. A template that does not write them as JSON leaves no more than
    the text to compare, without regard to blanks.
    """
    right_calls = calls_in(right)
    if len(right_calls) != count:
        return answer.split() == right.split()
    return _sorted_texts(calls_in(answer)) == _sorted_texts(right_calls)


def _sorted_texts(calls: list[ToolCall]) -> list[str]:
    return sorted(call.text for call in calls)


def has_calls(answer: str, right: str, count: int) -> bool:
    """Whether all calls of the right answer are among those of an answer; else as same_calls."""
    right_calls = calls_in(right)
    if len(right_calls) != count:
        return " ".join(right.split()) in " ".join(answer.split())
    texts = [call.text for call in calls_in(answer)]
    return all(call.text in texts for call in right_calls)


def _call_of(function: Any) -> ToolCall:
    """The call that has this name and these arguments, which may be JSON text."""
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"{CALLS} must be a list of calls, each with name and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"the arguments of the call of {name} are not JSON: {error}"
            ) from error
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ValueError(
            f"the arguments of the call of {name} are {arguments!r}: they must be a JSON object"
        )
    return ToolCall(name, arguments)


def _calls_within(value: Any) -> Iterator[ToolCall]:
    """The calls in a value that was read from JSON, at any depth."""
    if isinstance(value, list):
        for inner in value:
            yield from _calls_within(inner)
    if not isinstance(value, dict):
        return
    keys = [key for key in ARGUMENTS if key in value]
    if not isinstance(value.get("name"), str) or not keys:
        for inner in value.values():
            yield from _calls_within(inner)
        return
    try:
        yield _call_of({"name": value["name"], "arguments": value[keys[0]]})
    except ValueError:  # a model may write anything
        return


def _number(text: str) -> float | int:
    """A JSON number with a fraction or an exponent; 2.0 is 2."""
    number = float(text)
    return int(number) if number.is_integer() else number
