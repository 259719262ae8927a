"""Finds the form of a user's rows by their fields, and checks and converts each row.

``READINGS`` is the table of all fields that rows may have, and the form that each comes to; errors
take their fields from it.
"""

import json
import logging
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from lorada.data.read_rows import place_of
from lorada.data.row_readings import KNOWN, READINGS, STAND_INS, Reading
from lorada.data.row_refusals import (
    Unread,
    columns_of_labels,
    refuse_columns,
    refuse_unread,
    unreadable,
)
from lorada.data.row_values import (
    CHECKS,
    GROUP,
    TEXT_ONLY,
    TEXT_OR_TURNS,
    TURNS,
    are_turns,
    as_binary,
    as_indices,
    can_be_text,
    plain_name,
    with_lists,
)
from lorada.support.row_sources import Form, Row

logger = logging.getLogger(__name__)

Columns = Mapping[str, str]  # a name of ours → the user's name for that field


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
    refuse_columns(rows, path, columns or {})
    rows, named = _with_labels(rows, columns or before or {}, where)
    converted, fits = _read(rows, where, READINGS, named)
    reading = fits[0].reading
    unread = Unread.of(rows, {key for fit in fits for key in fit.keys.values()})
    refuse_unread(unread, reading, fits[0].keys, named, where)
    if unread.names:
        logger.info("%s: %s not read", path, ", ".join(map(repr, unread.names)))
    for index, row in enumerate(rows if reading.form in ("prompt", "messages") else ()):
        if str(row.get("label")).strip().casefold() == "false":
            raise ValueError(
                f"{where(index)} has label false: of answers marked as good or bad (KTO) every one "
                "would be learned; keep those with true, and leave out the field"
            )
    if reading.form == "choice":
        converted = as_indices(converted, where)
    return converted, reading.form


def _with_labels(
    rows: list[Row], columns: Columns, where: Callable[[int], str]
) -> tuple[list[Row], Columns]:
    """Rows whose labels are lists, where ``labels=toxic+rude`` names a column of 0 and 1 for each.

    Returned besides are the columns as these rows have them.
    """
    names = columns_of_labels(columns, rows)
    if not any(name in row for row in rows for name in names):
        return rows, columns
    gathered = []
    for index, row in enumerate(rows):
        labels = []
        for name in names:
            applies = as_binary(row.get(name))
            if applies is None:
                raise ValueError(
                    f"{where(index)}: {name} must be 0 or 1 (or true or false), as it says whether "
                    f"the text has the label {name}: {reprlib.repr(row.get(name))}"
                )
            if applies:
                labels.append(name)
        others = {key: value for key, value in row.items() if key not in names}
        gathered.append({**others, "labels": labels})
    return gathered, {**columns, "labels": "labels"}


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
    forms = (
        (form,) if form not in ("messages", "prompt", "text") else ("messages", "prompt", "text")
    )
    readings = [reading for reading in READINGS if reading.form in forms]
    stand_ins = STAND_INS | {"label": next(iter(labels), "")}
    right = {one.right for one in readings}
    refuse_columns(rows, path, {k: v for k, v in (columns or {}).items() if k not in right})
    where = partial(place_of, path, ())
    converted, fits = _read(rows, where, readings, columns or before or {}, stand_ins)
    return converted, fits[0].reading.form


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
) -> tuple[list[Row], list[_Fit]]:
    """The rows by the one of the readings that fits all; right answers may have stand-ins.

    Returned besides is how the rows of each kind are read, those of the first row first.
    """
    answered = stand_ins is None
    converted: list[Row] = []
    # Rows with the same fields that are not null, and turns in the same of these, are read alike.
    known: dict[Any, tuple[dict[str, str], list[_Fit]]] = {}
    first: _Fit | None = None
    for index, read_row in enumerate(rows):
        row = with_lists(read_row, _names_of(read_row, columns))
        kind = tuple((key, are_turns(row[key])) for key in row if row[key] is not None)
        if kind not in known:
            named = _named(dict(kind), columns, where(index))
            known[kind] = named, _fits(named, readings, columns, answered=answered)
        named, fits = known[kind]
        ways = ["/".join(fit.names) for fit in fits]
        if first is None and not fits:
            raise unreadable(where(0), row, readings, named, answered=answered)
        if len(fits) > 1:
            raise ValueError(
                f"{where(index)} can be read as {' and as '.join(ways)}: leave out the fields of "
                "one, or name those to read with --columns"
            )
        first = first or fits[0]
        if not fits or fits[0][:2] != first[:2]:
            has = ways[0] if fits else "/".join(named) or "none of them"
            first_has = "/".join(first.names) + _unknown_beside(rows[0], read_row, columns)
            has += _unknown_beside(read_row, rows[0], columns)
            raise ValueError(
                f"{where(0)} has {first_has} and {where(index)} has {has}: all rows "
                "must have the fields of one form"
            )
        converted.append(_converted(row, fits[0], partial(where, index), stand_ins))
        if (GROUP in converted[0]) != (GROUP in converted[-1]):
            raise ValueError(f"{where(index)} and {where(0)}: give all rows a group, or none")
    return converted, [fits[0] for _, fits in known.values()]


def _unknown_beside(row: Row, other: Row, columns: Columns) -> str:
    """In words, the fields of a row that no reading has and the other row lacks, such as a typo."""
    unknown = []
    for key, name in _names_of(row, columns).items():
        if name not in KNOWN and key not in other and row[key] is not None:
            unknown.append(repr(key))
    return f" (and {', '.join(unknown)}, not read)" if unknown else ""


def _names_of(row: Row, columns: Columns) -> dict[str, str]:
    """Our name of each field of a row, by its key, whether or not it is read."""
    ours = {plain_name(theirs): name for name, theirs in columns.items()}
    return {key: ours.get(plain_name(key), plain_name(key)) for key in row}


def _converted(
    row: Row, fit: _Fit, where: Callable[[], str], stand_ins: Mapping[Form, Any] | None
) -> Row:
    """A row of the form of a reading, its values checked."""
    reading, fields = fit.reading, {field: row[key] for field, key in fit.keys.items()}
    if stand_ins is not None:
        chats = fields.keys() & {"messages", "conversations"}
        fields |= {name: _before_answer(fields[name]) for name in chats}
        fields |= {reading.right: stand_ins[reading.form]} if reading.right else {}
    # Numbers, lists and objects that a program wrote are JSON where a model reads and writes texts.
    usual = (can_be_text, "is not a text") if reading.form == "prompt" else TEXT_ONLY
    for name, value in fields.items():
        if name == "answer" and reading.form == "choice":
            continue  # other rows decide how it is read
        is_right, wrong = CHECKS.get(name, usual)
        if not is_right(value):
            shown = fit.keys.get(name, name)
            raise ValueError(f"{where()}: {shown} {wrong}: {reprlib.repr(value)}")
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # JSON may hold half a character
        raise ValueError(f"{where()} is not valid Unicode: {error.reason}") from error
    converted = reading.convert(fields)
    if reading.form == "messages":
        _check_chat(converted["messages"], fields, reading, where, answered=stand_ins is None)
    group = {GROUP: fields[GROUP]} if GROUP in fields else {}
    return {**converted, **group}


def _check_chat(
    turns: list[Row], fields: Row, reading: Reading, where: Callable[[], str], *, answered: bool
) -> None:
    """Refuse a chat in which nothing is answered; one to be answered gets an empty answer."""
    if sum(turn["role"] == "system" for turn in turns) > 1 and fields.get("system"):
        raise ValueError(f"{where()}: system is beside a system turn: leave one of them out")
    if not answered and reading.right is None:
        turns.append({"role": "assistant", "content": ""})
    if len(turns) < 2 or all(turn["role"] != "assistant" for turn in turns):
        raise ValueError(f"{where()}: a chat needs two or more turns, one of the assistant (gpt)")


def _before_answer(value: Any) -> Any:
    """The turns of a chat before its last, if that is an answer; another value as it is."""
    last = value[-1] if isinstance(value, list) and value else None
    speaker = last.get("role", last.get("from")) if isinstance(last, dict) else None
    return value[:-1] if speaker in ("assistant", "gpt", "function_call") else value


def _named(kind: Mapping[str, bool], columns: Columns, where: str) -> dict[str, str]:
    """The keys of a row by our names; ``kind`` says for each key whether it holds turns."""
    found: dict[str, str] = {}
    for ours, theirs in columns.items():
        alike = (
            [theirs] if theirs in kind else [k for k in kind if plain_name(k) == plain_name(theirs)]
        )
        if alike:
            found[ours] = alike[0]
    mapped = dict(found)
    for key in [key for key in kind if key not in mapped.values()]:
        name = plain_name(key)
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
    """The readings of a row with these names, each by the keys that it reads."""
    matches: dict[frozenset[str], _Fit] = {}
    for reading in readings:
        for fit in _matches(named, reading, answered=answered):
            matches.setdefault(frozenset(fit.keys.values()), fit)
    matches = _most_specific(matches)
    matches = _with_named(matches, named, columns)
    fits = list(matches.values())
    if not answered:  # two fields for the right answer are the same to rows that are to be answered
        fits = list({fit[:2]: fit for fit in reversed(fits)}.values())[::-1]
    beside_others = [fit for fit in fits if fit.reading.beside_others]
    return beside_others or [fit for fit in fits if fit.reading == fits[0].reading]


def _matches(named: Mapping[str, str], reading: Reading, *, answered: bool) -> list[_Fit]:
    """The ways in which a reading fits a row with these names."""
    fits = []
    for way in reading.ways:
        names = tuple(name for name in way if answered or way[name] != reading.right)
        if not set(names) <= named.keys():
            continue
        fields = {**way, **{name: name for name in (*reading.optional.split(), GROUP)}}
        keys = {fields[name]: named[name] for name in fields if name in named}
        fits.append(_Fit(reading, names, keys))
    return fits


def _most_specific(matches: dict[frozenset[str], _Fit]) -> dict[frozenset[str], _Fit]:
    """Of two readings, the one that reads all that the other does, and more."""
    specific = {}
    for keys, fit in matches.items():
        if not any(keys < others for others in matches):
            specific[keys] = fit
    return specific


def _with_named(
    matches: dict[frozenset[str], _Fit], named: Mapping[str, str], columns: Columns
) -> dict[frozenset[str], _Fit]:
    """The readings of all fields that the user has named; all readings if there is none."""
    chosen: set[str] = set()
    for column in columns:
        chosen.update(named[name] for name in (column, f"{column}{TURNS}") if name in named)
    reading_all = {keys: fit for keys, fit in matches.items() if keys >= chosen}
    return reading_all or matches
