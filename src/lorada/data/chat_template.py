"""What a tokenizer's chat template writes of a chat.

Calls of tools reach it in the way in which it writes them.
"""

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
WAYS_OF_CALLS = tuple(product((False, True), ("", None)))
STAND_IN = "lorada_stand_in_"  # before the number of a name that is looked for in a rendered text


class TurnsRefused(ValueError):
    """A tokenizer without a chat template, or one that refuses a conversation."""


def rendered(row: Row, count: int, tokenizer: "PreTrainedTokenizerBase", **options: Any) -> str:
    """The first ``count`` turns of a chat as the template writes them.

    Raises:
        TurnsRefused: if the tokenizer has no chat template, or it refuses the turns.
    """
    return str(applied(row, count, tokenizer, tokenize=False, **options))


def for_template(row: Row, tokenizer: "PreTrainedTokenizerBase") -> Row:
    """A chat as the chat template of ``tokenizer`` takes it.

    Most templates write the arguments of a call from an object, and some from JSON text; and some
    write a call only if the content beside it is null. Whichever way writes all calls is taken.

    Raises:
        TurnsRefused: if the template leaves out texts, tools or calls, or refuses the turns; if a
            call of the row has no name, or arguments that are no JSON object.
    """
    if not _writes_texts(tokenizer):  # as those for images, which take each text as a list
        raise _left_out("the texts of turns", tokenizer)
    calls_of_turns = _calls_of_turns(row)
    if not any(calls_of_turns) and not row.get("tools"):
        return row
    if any(calls_of_turns):
        row = _with_written_calls(row, calls_of_turns, tokenizer)
    if row.get("tools") and not _writes_tools(row, tokenizer):
        raise _left_out("the tools of a row", tokenizer)
    return row


def applied(row: Row, count: int, tokenizer: "PreTrainedTokenizerBase", **options: Any) -> Any:
    """What the chat template makes of the first ``count`` turns: a text, or tokens.

    Raises:
        TurnsRefused: if the tokenizer has no chat template, or it refuses the turns.
    """
    if not tokenizer.chat_template:
        raise TurnsRefused("this tokenizer has no chat template: take rows of prompt and response")
    turns = row["messages"][:count]
    try:
        return tokenizer.apply_chat_template(turns, tools=row.get("tools"), **options)
    except ImportError:  # jinja2 is missing
        raise
    except Exception as error:  # a template is a program, which may raise anything
        roles = shorten(", ".join(turn["role"] for turn in turns), MOST, placeholder=" …")
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TurnsRefused(f"the chat template refuses the turns {roles}: {reason}") from error


def _calls_of_turns(row: Row) -> list[list[ToolCall]]:
    """The calls of each turn of a chat.

    Raises:
        TurnsRefused: for calls that are not of the form that ``calls_of`` reads.
    """
    try:
        return [calls_of(turn) for turn in row["messages"]]
    except ValueError as error:
        raise TurnsRefused(str(error)) from error


def _left_out(what: str, tokenizer: "PreTrainedTokenizerBase") -> TurnsRefused:
    """The refusal (returned, not raised) of a template that does not write a part of a chat."""
    name = tokenizer.name_or_path or "this tokenizer"
    return TurnsRefused(
        f"the chat template of {name} leaves out {what}: give a template that writes them with "
        "chat_template=FILE, or take them out of the rows"
    )


def _with_written_calls(
    row: Row, calls_of_turns: list[list[ToolCall]], tokenizer: "PreTrainedTokenizerBase"
) -> Row:
    """A chat with its calls in the first way in which the template writes them all.

    Raises:
        TurnsRefused: if there is none; as the template says it, if it refuses every way.
    """
    # One template takes arguments as objects and the next as text, and neither says which.
    refusals: list[TurnsRefused] = []
    for arguments_as_text, content_if_blank in WAYS_OF_CALLS:
        variant = _with_calls(
            row,
            calls_of_turns,
            arguments_as_text=arguments_as_text,
            content_if_blank=content_if_blank,
        )
        try:
            if _writes_calls(variant, tokenizer):
                return variant
        except TurnsRefused as error:
            refusals.append(error)
    if len(refusals) == len(WAYS_OF_CALLS):
        raise refusals[0]
    raise _left_out("calls of tools", tokenizer)


def _with_calls(
    row: Row,
    calls_of_turns: list[list[ToolCall]],
    *,
    arguments_as_text: bool,
    content_if_blank: str | None,
) -> Row:
    """A chat with the arguments of its calls as objects or as JSON text.

    ``content_if_blank`` is the content of a turn that has calls and says nothing beside them.
    """
    turns = []
    for turn, calls_of_turn in zip(row["messages"], calls_of_turns, strict=True):
        if calls_of_turn:
            content = turn.get("content")
            if not (content or "").strip():
                content = content_if_blank
            rewritten = _rewrite_calls(
                turn[CALLS], calls_of_turn, arguments_as_text=arguments_as_text
            )
            turn = {**turn, "content": content, CALLS: rewritten}
        turns.append(turn)
    return {**row, "messages": turns}


def _rewrite_calls(
    calls_in_row: list[Row], calls: list[ToolCall], *, arguments_as_text: bool
) -> list[Row]:
    """The calls of a turn with all that they had, in the nested form that templates expect."""
    rewritten = []
    for call_in_row, call in zip(calls_in_row, calls, strict=True):
        arguments: Any = call.arguments
        if arguments_as_text:
            arguments = json.dumps(call.arguments, ensure_ascii=False)
        rewritten.append(_nested(call_in_row, arguments=arguments))
    return rewritten


def _nested(call: Row, **changes: Any) -> Row:
    """A call in the nested form, with its name under ``function``, and with ``changes`` there."""
    function = function_of(call)
    has_function = function is not call
    others = call if has_function else {"type": "function"}
    return {**others, "function": {**function, **changes}}


def _writes_calls(row: Row, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a template writes names and arguments of all calls, and writes them as JSON.

    Each name and each argument is replaced by a text that stands nowhere else, and these are looked
    for in what the template writes.
    """
    turns: list[Row] = []
    looked_for: list[str] = []
    for turn in row["messages"]:
        calls: list[Row] = []
        for call in turn.get(CALLS) or []:
            number = len(looked_for)
            name, key = f"{STAND_IN}{number}_", f"{STAND_IN}key{number}_"
            looked_for += [name, key]
            arguments: Any = {key: ""}
            if isinstance(call["function"]["arguments"], str):
                arguments = json.dumps(arguments)
            calls.append(_nested(call, name=name, arguments=arguments))
        turns.append({**turn, CALLS: calls} if calls else turn)
    text = rendered({**row, "messages": turns}, len(turns), tokenizer)
    if f"{{'{STAND_IN}" in text:  # {'key': …}, which is no JSON
        return False
    return all(stand_in in text for stand_in in looked_for)


def _writes_texts(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a template writes what a user says, unless it refuses a turn that stands alone."""
    turns = [{"role": "user", "content": STAND_IN}]
    try:
        return STAND_IN in rendered({"messages": turns}, 1, tokenizer)
    except TurnsRefused:
        return True


def _writes_tools(row: Row, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a template writes the names of all tools of a chat."""
    tools: list[Row] = []
    names: list[str] = []
    for tool in row["tools"]:
        function = function_of(tool)
        if isinstance(function, dict) and "name" in function:
            name = f"{STAND_IN}{len(names)}_"
            names.append(name)
            renamed = {**function, "name": name}
            has_function = function is not tool
            tool = {**tool, "function": renamed} if has_function else renamed
        tools.append(tool)
    text = rendered({**row, "tools": tools}, len(row["messages"]), tokenizer)
    return all(name in text for name in names)
