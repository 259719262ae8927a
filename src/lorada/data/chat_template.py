"""What a chat template writes of a chat; calls of tools reach it in the way that it writes them."""

import json
from itertools import product
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from lorada.data.tool_calls import CALLS, ToolCall, calls_of, function_of
from lorada.support.row_sources import Row

if TYPE_CHECKING:  # its import takes seconds, and rows are read before a model is loaded
    from transformers import PreTrainedTokenizerBase

MOST = 60  # characters of a conversation's roles that an error shows
# Whether the arguments of calls are JSON text, and the content of a turn that says nothing else.
WAYS = tuple(product((False, True), ("", None)))
STAND_IN = "lorada_stand_in_"  # before the number of a name that is looked for in a rendered text


class TurnsRefused(ValueError):
    """A tokenizer without a chat template, or one that refuses a conversation."""


def rendered(row: Row, count: int, tokenizer: "PreTrainedTokenizerBase", **options: Any) -> str:
    """The first ``count`` turns of a chat as the template writes them."""
    return str(applied(row, count, tokenizer, tokenize=False, **options))


def for_template(row: Row, tokenizer: "PreTrainedTokenizerBase") -> Row:
    """A chat as its template takes it; one that leaves out texts, tools or calls is refused.

    Most templates write the arguments of a call from an object, and some from JSON text; and some
    write a call only if the content beside it is null. Whichever way writes all calls is taken.
    """
    if not _writes_texts(tokenizer):  # as those for images, which take each text as a list
        raise _left_out("the texts of turns", tokenizer)
    calls = _calls_of_turns(row)
    if not any(calls) and not row.get("tools"):
        return row
    if any(calls):
        row = _with_written_calls(row, calls, tokenizer)
    if row.get("tools") and not _writes_tools(row, tokenizer):
        raise _left_out("the tools of a row", tokenizer)
    return row


def applied(row: Row, count: int, tokenizer: "PreTrainedTokenizerBase", **options: Any) -> Any:
    """What the chat template makes of the first ``count`` turns; it may refuse them."""
    if not tokenizer.chat_template:
        raise TurnsRefused("this tokenizer has no chat template: take rows of prompt and response")
    turns = row["messages"][:count]
    try:
        return tokenizer.apply_chat_template(turns, tools=row.get("tools"), **options)
    except ImportError:  # jinja2 is missing
        raise
    except Exception as error:  # a template is a program, which may raise anything
        roles = shorten(", ".join(turn["role"] for turn in turns), MOST, placeholder=" …")
        said = " ".join(str(error).split()) or type(error).__name__
        raise TurnsRefused(f"the chat template refuses the turns {roles}: {said}") from error


def _calls_of_turns(row: Row) -> list[list[ToolCall]]:
    """The calls of each turn of a chat."""
    try:
        return [calls_of(turn) for turn in row["messages"]]
    except ValueError as error:
        raise TurnsRefused(str(error)) from error


def _left_out(what: str, tokenizer: "PreTrainedTokenizerBase") -> TurnsRefused:
    name = tokenizer.name_or_path or "this tokenizer"
    return TurnsRefused(
        f"the chat template of {name} leaves out {what}: give a template that writes them with "
        "chat_template=FILE, or take them out of the rows"
    )


def _with_written_calls(
    row: Row, calls: list[list[ToolCall]], tokenizer: "PreTrainedTokenizerBase"
) -> Row:
    """A chat with its calls in a way that its template writes them in."""
    refusals: list[TurnsRefused] = []
    for as_text, blank in WAYS:
        variant = _with_calls(row, calls, as_text=as_text, blank=blank)
        try:
            if _writes_calls(variant, tokenizer):
                return variant
        except TurnsRefused as error:
            refusals.append(error)
    if len(refusals) == len(WAYS):
        raise refusals[0]
    raise _left_out("calls of tools", tokenizer)


def _with_calls(row: Row, calls: list[list[ToolCall]], *, as_text: bool, blank: str | None) -> Row:
    """A chat with the arguments of its calls as objects or as JSON text.

    ``blank`` is the content of a turn that has calls and says nothing beside them.
    """
    turns = []
    for turn, own in zip(row["messages"], calls, strict=True):
        if own:
            content = turn.get("content")
            content = content if (content or "").strip() else blank
            turn = {**turn, "content": content, CALLS: _rewritten(turn[CALLS], own, as_text)}
        turns.append(turn)
    return {**row, "messages": turns}


def _rewritten(given: list[Row], calls: list[ToolCall], as_text: bool) -> list[Row]:
    """The calls of a turn with all that they had, in the nested form that templates expect."""
    rewritten = []
    for call, meant in zip(given, calls, strict=True):
        arguments = json.dumps(meant.arguments, ensure_ascii=False) if as_text else meant.arguments
        rewritten.append(_nested(call, arguments=arguments))
    return rewritten


def _nested(call: Row, **changes: Any) -> Row:
    """A call, or a tool, with its name under ``function``, and ``changes`` there."""
    function = function_of(call)
    around = {"type": "function"} if function is call else call
    return {**around, "function": {**function, **changes}}


def _writes_calls(row: Row, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a template writes names and arguments of all calls, none as Python shows a dict."""
    turns, number = list[Row](), 0
    for turn in row["messages"]:
        calls = list[Row]()
        for call in turn.get(CALLS) or []:
            names: Any = {f"{STAND_IN}key{number}_": ""}
            as_text = isinstance(call["function"]["arguments"], str)
            names = json.dumps(names) if as_text else names
            calls.append(_nested(call, name=f"{STAND_IN}{number}_", arguments=names))
            number += 1
        turns.append({**turn, CALLS: calls} if calls else turn)
    text = rendered({**row, "messages": turns}, len(turns), tokenizer)
    written = (
        f"{STAND_IN}{index}_" in text and f"{STAND_IN}key{index}_" in text
        for index in range(number)
    )
    return all(written) and f"{{'{STAND_IN}" not in text


def _writes_texts(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a template writes what a user says, unless it refuses a turn that stands alone."""
    turns = [{"role": "user", "content": STAND_IN}]
    try:
        return STAND_IN in rendered({"messages": turns}, 1, tokenizer)
    except TurnsRefused:
        return True


def _writes_tools(row: Row, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a template writes the names of all tools of a chat."""
    tools, names = list[Row](), list[str]()
    for tool in row["tools"]:
        function = function_of(tool)
        if isinstance(function, dict) and "name" in function:
            names.append(f"{STAND_IN}{len(names)}_")
            renamed = {**function, "name": names[-1]}
            tool = renamed if function is tool else {**tool, "function": renamed}
        tools.append(tool)
    text = rendered({**row, "tools": tools}, len(row["messages"]), tokenizer)
    return all(name in text for name in names)
