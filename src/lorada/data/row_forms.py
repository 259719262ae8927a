"""Finds the form of a user's rows, checks each row, and converts rows as other tools write them.

``READINGS`` is the table of all fields that rows may have, and the form that each comes to; errors
take their fields from it. What a model learns of each is in docs/guides/train.md.
"""

import json
import logging
import reprlib
import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from lorada.data.benchmarks.published_prompts import clean_prompt
from lorada.data.read_rows import place_of
from lorada.support.error_messages import unknown_name
from lorada.support.row_sources import Form, Row

logger = logging.getLogger(__name__)

TURNS = "[]"  # behind the name of a field that holds turns, where it might hold a text
TEXT_OR_TURNS = "prompt", "completion", "chosen"
LARGEST = 3.4e38  # the largest score: what fp32 holds
ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "assistant": "assistant",
}  # fmt: skip
# Other names of a text, and of a pair of texts, that has a label or a score.
ONE = "text", "sentence", "review"
PAIR = "sentence1 sentence2", "premise hypothesis", "text1 text2", "question sentence"
GROUP = "group"  # what a row shares with others, such as the passage of its question; in any form
Columns = Mapping[str, str]  # a name of ours → the user's name for that field


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
    turns = [
        {"role": ROLES[turn.pop("from")], "content": turn.pop("value"), **turn}
        for turn in map(dict, row["conversations"])
    ]
    return _chat({**row, "messages": turns})


def _continued(row: Row) -> Row:
    return _chat({**row, "messages": row["prompt[]"] + row["completion[]"]})


def _instruction(row: Row) -> Row:
    read = "\n\n".join(filter(None, (row.get("input"), row.get("context"))))
    parts = row.get("system"), clean_prompt(row["instruction"], read)
    return {"prompt": "\n\n".join(filter(None, parts)), "response": row["output"]}


def _question(row: Row) -> Row:
    return {"prompt": f"Question: {row['question']}\nAnswer:", "response": f" {row['answer']}"}


def _dialogue(row: Row) -> Row:
    return {"prompt": f"{row['dialogue']}\n\nSummary:", "response": f" {row['summary']}"}


class Reading(NamedTuple):
    """One way to read a row."""

    form: Form  # that the row comes to
    fields: str  # what it must have; if there are several, the last holds the right answer
    others: tuple[str, ...] = ()  # other names for these fields, in their order
    optional: str = ""  # what it may have
    convert: Callable[[Row], Row] = dict  # makes a row of the form from these fields

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
    Reading("prompt", "prompt response", ("prompt completion", "prompt chosen")),
    Reading("messages", "messages", ("chosen[]",), "system tools", _chat),
    Reading("label", "text label",
            tuple(f"{text} {label}" for text in ONE for label in ("label", "sentiment"))[1:]),
    Reading("label", "text text_pair label", tuple(f"{texts} label" for texts in PAIR)),
    Reading("score", "text score", tuple(f"{text} score" for text in ONE[1:])),
    Reading("score", "text text_pair score", tuple(f"{texts} score" for texts in PAIR)),
    Reading("choice", "prompt candidates answer"),
    Reading("text", "text", ("chosen",)),
    Reading("messages", "prompt[] completion[]", ("prompt[] chosen[]",), "tools", _continued),
    Reading("messages", "conversations", (), "system tools", _sharegpt),
    Reading("prompt", "instruction output", ("instruction response",), "input context system",
            _instruction),
    Reading("prompt", "question answer", convert=_question),
    Reading("prompt", "dialogue summary", convert=_dialogue),
)  # fmt: skip
KNOWN = {
    GROUP,
    *(
        name.removesuffix(TURNS)
        for one in READINGS
        for name in (*one.optional.split(), *(name for way in one.ways for name in way))
    ),
}
# What stands for the right answer in rows that have none; no model's answer depends on it.
STAND_INS: dict[Form, Any] = {
    "prompt": "", "choice": 0, "score": 0.0, "messages": [{"role": "assistant", "content": ""}],
}  # fmt: skip


def in_form(
    rows: list[Row],
    path: str,
    columns: Columns | None = None,
    before: Columns | None = None,
    counts: Sequence[int] = (),
) -> tuple[list[Row], Form]:
    """The rows in the form that their fields decide, without fields that it does not have.

    ``before`` are names of fields of other rows, which these may lack, if there are no ``columns``;
    ``counts`` are the numbers of rows of several files.
    """
    where = partial(place_of, path, counts)
    _check_columns(rows, path, columns or {})
    found, first = _read(rows, where, READINGS, columns or before or {})
    fields = dict.fromkeys(key for row in rows for key in row)
    if unread := [repr(key) for key in fields if key not in first.keys.values()]:
        logger.info("%s: %s not read", path, ", ".join(unread))
    form = first.reading.form
    for index, row in enumerate(rows if form in ("prompt", "messages") else ()):
        if str(row.get("label")).strip().casefold() == "false":
            raise ValueError(
                f"{where(index)} has label false: of answers marked as good or bad (KTO) every one "
                "would be learned; keep those with true, and leave out the field"
            )
    return (_as_indices(found, where) if form == "choice" else found), form


def to_answer(
    rows: list[Row],
    path: str,
    form: Form,
    labels: Sequence[str] = (),
    columns: Columns | None = None,
    before: Columns | None = None,
) -> tuple[list[Row], Form]:
    """Rows for a model to answer, which need no right answers, in its form or another it can read.

    ``form`` and ``labels`` are what the model has learned; the rest is as for ``in_form``.
    """
    forms = (form,) if form in ("label", "score", "choice") else ("messages", "prompt", "text")
    readings = [reading for reading in READINGS if reading.form in forms]
    stand_ins = STAND_INS | {"label": next(iter(labels), "")}
    right = {one.right for one in readings}
    _check_columns(rows, path, {k: v for k, v in (columns or {}).items() if k not in right})
    where = partial(place_of, path, ())
    found, first = _read(rows, where, readings, columns or before or {}, stand_ins)
    return found, first.reading.form


def _check_columns(rows: list[Row], path: str, columns: Columns) -> None:
    """Refuse columns of an unknown name, or that no row has."""
    for ours, theirs in columns.items():
        if ours not in KNOWN:
            raise unknown_name("field in columns", ours, KNOWN)
        if not any(_plain(theirs) in map(_plain, row) for row in rows):
            has = ", ".join(dict.fromkeys(key for row in rows for key in row))
            raise ValueError(f"columns names {theirs!r}, and {path} has only {has}")


class _Fit(NamedTuple):
    """A reading that fits a row, by which of its names, and the row's key for each field."""

    reading: Reading
    names: tuple[str, ...]  # without that of the right answer, where rows are to be answered
    keys: dict[str, str]


def _read(
    rows: list[Row],
    where: Callable[[int], str],
    readings: Sequence[Reading],
    columns: Columns,
    stand_ins: Mapping[Form, Any] | None = None,
) -> tuple[list[Row], _Fit]:
    """The rows by the one of the readings that fits all; right answers may have stand-ins."""
    found, known = [], dict[Any, tuple[dict[str, str], list[_Fit]]]()
    first: _Fit | None = None
    for index, row in enumerate(rows):
        kind = tuple((key, isinstance(row[key], list)) for key in row if row[key] is not None)
        if kind not in known:
            named = _named(dict(kind), columns, where(index))
            known[kind] = named, _fits(named, readings, columns, answered=stand_ins is None)
        named, fits = known[kind]
        ways = ["/".join(fit.names) for fit in fits]
        if first is None and not fits:
            raise _unreadable(where(0), row, readings, answered=stand_ins is None)
        if len(fits) > 1:
            raise ValueError(
                f"{where(index)} can be read as {' and as '.join(ways)}: leave out the fields of "
                "one, or name those to read with --columns"
            )
        first = first or fits[0]
        if not fits or fits[0][:2] != first[:2]:
            has = ways[0] if fits else "/".join(named) or "none of them"
            raise ValueError(
                f"{where(0)} has {'/'.join(first.names)} and {where(index)} has {has}: all rows "
                "must have the fields of one form"
            )
        found.append(_converted(row, fits[0], partial(where, index), stand_ins))
        if (GROUP in found[0]) != (GROUP in found[-1]):
            raise ValueError(f"{where(index)} and {where(0)}: give all rows a group, or none")
    assert first is not None  # there are rows
    return found, first


def _converted(
    row: Row, fit: _Fit, where: Callable[[], str], stand_ins: Mapping[Form, Any] | None
) -> Row:
    """A row of the form of a reading, its values checked."""
    reading, fields = fit.reading, {field: row[key] for field, key in fit.keys.items()}
    if stand_ins is not None:
        chats = fields.keys() & {"messages", "conversations"}
        fields |= {name: _before_answer(fields[name]) for name in chats}
        fields |= {reading.right: stand_ins[reading.form]} if reading.right else {}
    for name, value in fields.items():
        if name == "answer" and reading.form == "choice":
            continue  # other rows decide how it is read
        is_right, wrong = CHECKS.get(name, (_is_text, "is not a text"))
        if not is_right(value):
            shown = fit.keys.get(name, name)
            raise ValueError(f"{where()}: {shown} {wrong}: {reprlib.repr(value)}")
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # JSON may hold half a character
        raise ValueError(f"{where()} is not valid Unicode: {error.reason}") from error
    if isinstance(label := fields.get("label"), str):
        fields["label"] = label.strip()
    found = reading.convert(fields)
    if reading.form == "messages":
        turns = found["messages"]
        if sum(turn["role"] == "system" for turn in turns) > 1 and fields.get("system"):
            raise ValueError(f"{where()}: system is beside a system turn: leave one of them out")
        if stand_ins is not None and reading.right is None:
            turns.append({"role": "assistant", "content": ""})
        if len(turns) < 2 or all(turn["role"] != "assistant" for turn in turns):
            raise ValueError(
                f"{where()}: a chat needs two or more turns, one of the assistant (gpt)"
            )
    return {**found, **({GROUP: fields[GROUP]} if GROUP in fields else {})}


def _before_answer(value: Any) -> Any:
    """The turns of a chat before its last, if that is an answer; another value as it is."""
    last = value[-1] if isinstance(value, list) and value else None
    speaker = last.get("role", last.get("from")) if isinstance(last, dict) else None
    return value[:-1] if speaker in ("assistant", "gpt") else value


def _plain(name: str) -> str:
    """A field's name without blanks around it, in small letters."""
    return name.strip().casefold()


def _named(kind: Mapping[str, bool], columns: Columns, where: str) -> dict[str, str]:
    """The keys of a row by our names; ``kind`` says for each key whether it holds a list."""
    found: dict[str, str] = {}
    for ours, theirs in columns.items():
        alike = [theirs] if theirs in kind else [k for k in kind if _plain(k) == _plain(theirs)]
        if alike:
            found[ours] = alike[0]
    mapped = dict(found)
    for key in [key for key in kind if key not in mapped.values()]:
        name = _plain(key)
        if name in KNOWN and name not in mapped:
            if name in found:
                both = " and ".join(sorted(map(repr, (key, found[name]))))
                raise ValueError(f"{where} has both {both}: rename one, or leave it out")
            found[name] = key
    return {
        f"{name}{TURNS}" if kind[key] and name in TEXT_OR_TURNS else name: key
        for name, key in found.items()
    }


def _fits(
    named: Mapping[str, str], readings: Sequence[Reading], columns: Columns, *, answered: bool
) -> list[_Fit]:
    """The readings of a row with these names, each by the keys that it reads.

    Of two, one that reads all that the other does and more is taken; a text alone only if nothing
    else fits; and one that reads what the user has named before one that does not.
    """
    found: dict[frozenset[str], _Fit] = {}
    for reading in readings:
        for way in reading.ways:
            names = tuple(name for name in way if answered or way[name] != reading.right)
            if set(names) <= named.keys():
                fields = {**way, **{name: name for name in (*reading.optional.split(), GROUP)}}
                keys = {fields[name]: named[name] for name in fields if name in named}
                found.setdefault(frozenset(keys.values()), _Fit(reading, names, keys))
    chosen = {named[n] for name in columns for n in (name, f"{name}{TURNS}") if n in named}
    most = {read: fit for read, fit in found.items() if not any(read < more for more in found)}
    most = {read: fit for read, fit in most.items() if read >= chosen} or most
    fits = list(most.values())
    return [fit for fit in fits if len(fits) == 1 or fit.reading.form != "text"]


def _unreadable(where: str, row: Row, readings: Sequence[Reading], *, answered: bool) -> ValueError:
    """The refusal of a row that nothing fits."""
    ways = (
        [name for name in one.fields.split() if answered or name != one.right] for one in readings
    )
    needed = " or ".join(dict.fromkeys("/".join(way).replace(TURNS, "") for way in ways))
    return ValueError(
        f"{where} has fields {', '.join(row)}; each needs {needed}: --columns says which of your "
        "fields they are"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and bool(str(value).strip())


def _is_score(value: Any) -> bool:
    try:  # in a CSV file it is a text
        return not isinstance(value, bool) and abs(float(value)) < LARGEST  # NaN is not
    except (TypeError, ValueError, OverflowError):
        return False


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(map(_is_text, value))


def _are_tools(value: Any) -> bool:
    try:
        return isinstance(json.loads(value) if isinstance(value, str) else value, list)
    except ValueError:
        return False


def _are_turns(value: Any) -> bool:
    """Whether each turn has a role, and a text or calls of tools."""
    return isinstance(value, list) and all(
        isinstance(turn, dict)
        and _is_role(turn.get("role"))
        and (_is_text(said := turn.get("content")) or (said is None and turn.get("tool_calls")))
        and turn.get("weight") in WEIGHTS
        for turn in value
    )


def _is_role(value: Any) -> bool:
    """Whether it is a template's own, or one of ours as it is written: no ``Assistant`` or gpt."""
    return _is_text(value) and (
        value in ROLES.values() or value.strip().lower() not in (*ROLES, "model")
    )


def _are_sharegpt(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict)
        and turn.get("from") in [*ROLES]  # a list, as a value may not be hashable
        and _is_text(turn.get("value"))
        and turn.get("weight") in WEIGHTS
        for turn in value
    )


WEIGHTS = [None, 0, 1]  # of a turn; none is 1. A list, as a value may not be hashable
TURNS_ONLY = (
    _are_turns,
    "must be a list of turns with the texts role (system, user, assistant) and content, and a "
    "weight, if any, of 0 or 1",
)
# What a value has to be, and what an error says of one that is not; others have to be texts.
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "label": (_is_name, "must be a text or an integer, and not blank"),
    GROUP: (_is_name, "must be a text or an integer, and not blank"),
    "score": (_is_score, "is not a number that fp32 holds"),
    "candidates": (_are_texts, "must be a list of two texts or more"),
    "tools": (_are_tools, "must be a list of tools, or such a list as JSON"),
    "messages": TURNS_ONLY,
    "prompt[]": TURNS_ONLY,
    "completion[]": TURNS_ONLY,
    "conversations": (
        _are_sharegpt,
        "must be a list of turns, each from system, human or gpt, with a text as value, and a "
        "weight, if any, of 0 or 1",
    ),
}


def _as_indices(rows: list[Row], where: Callable[[int], str]) -> list[Row]:
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
