"""Finds the form of a user's rows by their fields, and checks and converts each row.

``READINGS`` is the table of all fields that rows may have, and the form that each comes to; errors
take their fields from it. Which of them fits a row is found by ``row_matches``.
"""

import json
import logging
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lorada.data.files.read_rows import place_of
from lorada.data.forms.choice_answers import answers_as_indices
from lorada.data.forms.row_checks import CHECKS, TEXT, TEXT_OR_JSON
from lorada.data.forms.row_matches import (
    Columns,
    Match,
    RowKind,
    keys_by_our_name,
    kind_of,
    match_readings,
    our_names_by_key,
)
from lorada.data.forms.row_readings import KNOWN, READINGS, STAND_INS, Reading
from lorada.data.forms.row_refusals import (
    Unread,
    columns_of_labels,
    refuse_columns,
    refuse_unread,
    unreadable_row,
)
from lorada.data.forms.row_values import GROUP, as_binary, parse_lists
from lorada.support.row_sources import Form, Row

logger = logging.getLogger(__name__)

# Forms of which a model that writes answers reads any, where rows are to be answered.
WRITTEN: tuple[Form, ...] = ("messages", "prompt", "text")


def convert_rows(
    rows: list[Row],
    path: str,
    columns: Columns | None = None,
    training_columns: Columns | None = None,
    counts: Sequence[int] = (),
) -> tuple[list[Row], Form]:
    """The rows in the form that their fields decide, without fields that it does not have.

    Args:
        rows: the rows as they were read.
        path: the files that they are from, for errors.
        columns: a name of ours → the user's name for that field, which the rows must have.
        training_columns: the same of the rows of the training, which these rows may lack; for rows
            that have no ``columns`` of their own.
        counts: the number of rows of each of several files.

    Raises:
        ValueError: for rows that no form fits, that several fit, or that a form does not allow.
    """
    where = partial(place_of, path, counts)
    refuse_columns(rows, path, columns or {})
    rows, columns = _gather_labels(rows, columns or training_columns or {}, where)
    conversion = _convert(rows, where, READINGS, columns)
    unread = Unread.of(rows, conversion.keys_read)
    refuse_unread(unread, conversion.reading, conversion.first_match.keys, columns, where)
    if unread.names:
        logger.info("%s: %s not read", path, ", ".join(map(repr, unread.names)))
    form = conversion.reading.form
    if form in ("prompt", "messages"):
        _refuse_bad_answers(rows, where)
    if form == "choice":
        # Only all rows together say how an answer is meant: "2" may be a text or an index.
        return answers_as_indices(conversion.rows, where), form
    return conversion.rows, form


def convert_rows_to_answer(
    rows: list[Row],
    path: str,
    form: Form,
    labels: Sequence[str] = (),
    columns: Columns | None = None,
    training_columns: Columns | None = None,
) -> tuple[list[Row], Form]:
    """Rows for a model to answer, which need no right answers, in its form or another it can read.

    ``form`` and ``labels`` are what the model has learned; the rest is as for ``convert_rows``.
    """
    forms = WRITTEN if form in WRITTEN else (form,)
    readings = [reading for reading in READINGS if reading.form in forms]
    stand_ins = STAND_INS | {"label": next(iter(labels), "")}
    # A column that the user names for right answers may be missing here.
    right_names = {reading.right for reading in readings}
    needed = {ours: name for ours, name in (columns or {}).items() if ours not in right_names}
    refuse_columns(rows, path, needed)
    where = partial(place_of, path, ())
    conversion = _convert(rows, where, readings, columns or training_columns or {}, stand_ins)
    return conversion.rows, conversion.reading.form


def _gather_labels(
    rows: list[Row], columns: Columns, where: Callable[[int], str]
) -> tuple[list[Row], Columns]:
    """Rows whose labels are lists, where ``labels=toxic+rude`` names a column of 0 and 1 for each.

    Returned besides are the columns as these rows have them.
    """
    names = columns_of_labels(columns, rows)
    if not any(_has_field(row, names) for row in rows):
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


def _has_field(row: Row, names: Sequence[str]) -> bool:
    return any(name in row for name in names)


def _refuse_bad_answers(rows: list[Row], where: Callable[[int], str]) -> None:
    """Refuse answers that are marked as bad ones: they would be learned like the good ones."""
    for index, row in enumerate(rows):
        if str(row.get("label")).strip().casefold() == "false":
            raise ValueError(
                f"{where(index)} has label false: of answers marked as good or bad (KTO) every one "
                "would be learned; keep those with true, and leave out the field"
            )


@dataclass(frozen=True)
class _Conversion:
    """Rows of one form, and how each kind of them was read, that of the first row first."""

    rows: list[Row]
    matches: list[Match]

    @property
    def first_match(self) -> Match:
        """How the first row was read."""
        return self.matches[0]

    @property
    def reading(self) -> Reading:
        """The one that fits all rows."""
        return self.first_match.reading

    @property
    def keys_read(self) -> set[str]:
        """The rows' own names of the fields that are read in some row."""
        keys: set[str] = set()
        for match in self.matches:
            keys.update(match.keys.values())
        return keys


def _convert(
    rows: list[Row],
    where: Callable[[int], str],
    readings: Sequence[Reading],
    columns: Columns,
    stand_ins: Mapping[Form, Any] | None = None,
) -> _Conversion:
    """The rows by the one of the readings that fits all.

    A reading is a line of the table ``READINGS``: fields, and the form that they come to. A match
    is a reading that fits the fields of a row; a kind is what rows of equal fields share.

    ``stand_ins`` take the place of right answers, in rows that are to be answered; None where rows
    must have their own.
    """
    answered = stand_ins is None
    converted: list[Row] = []
    # Rows of a kind are read alike, so readings are matched once a kind and not once a row.
    matches: dict[RowKind, Match] = {}
    for index, row in enumerate(rows):
        parsed = parse_lists(row, our_names_by_key(row, columns))
        kind = kind_of(parsed)
        if kind not in matches:
            keys = keys_by_our_name(kind, columns, partial(where, index))
            fitting = match_readings(keys, readings, columns, answered=answered)
            if len(fitting) > 1:
                raise _several_forms(where(index), fitting)
            if not matches:
                if not fitting:
                    raise unreadable_row(where(index), parsed, readings, keys, answered=answered)
            else:
                first_match = next(iter(matches.values()))
                if not fitting or not fitting[0].reads_as(first_match):
                    row_fields = fitting[0].shown if fitting else "/".join(keys) or "none of them"
                    row_fields += _unknown_fields(row, columns, not_in=rows[0])
                    first_fields = first_match.shown + _unknown_fields(rows[0], columns, not_in=row)
                    raise ValueError(
                        f"{where(0)} has {first_fields} and {where(index)} has {row_fields}: all "
                        "rows must be read from the same fields"
                    )
            matches[kind] = fitting[0]
        converted.append(_convert_row(parsed, matches[kind], partial(where, index), stand_ins))
        if (GROUP in converted[0]) != (GROUP in converted[-1]):
            raise ValueError(f"{where(index)} and {where(0)}: give all rows a group, or none")
    return _Conversion(converted, [*matches.values()])


def _several_forms(where: str, matches: Sequence[Match]) -> ValueError:
    """The refusal of a row that several readings fit."""
    ways = " and as ".join(match.shown for match in matches)
    return ValueError(
        f"{where} can be read as {ways}: leave out the fields of one, or name those to read with "
        "--columns"
    )


def _unknown_fields(row: Row, columns: Columns, *, not_in: Row) -> str:
    """In words, fields that no reading has and the row ``not_in`` lacks, such as a typo."""
    unknown = []
    for key, name in our_names_by_key(row, columns).items():
        if name not in KNOWN and key not in not_in and row[key] is not None:
            unknown.append(repr(key))
    return f" (and {', '.join(unknown)}, not read)" if unknown else ""


def _convert_row(
    row: Row, match: Match, where: Callable[[], str], stand_ins: Mapping[Form, Any] | None
) -> Row:
    """A row of the form of a reading, its values checked."""
    reading = match.reading
    fields = {field: row[key] for field, key in match.keys.items()}
    if stand_ins is not None:
        fields = _without_answer(fields, reading, stand_ins)
    _check_values(fields, match, where)
    converted = reading.convert(fields)
    if reading.form == "messages":
        chat = converted["messages"]
        _refuse_two_systems(chat, fields, where)
        if stand_ins is not None and reading.right is None:
            chat.append({"role": "assistant", "content": ""})
        _refuse_unanswered_chat(chat, where)
    if GROUP in fields:
        converted = {**converted, GROUP: fields[GROUP]}
    return converted


def _without_answer(fields: Row, reading: Reading, stand_ins: Mapping[Form, Any]) -> Row:
    """The fields of a row that is to be answered, with a stand-in for its right answer."""
    fields = dict(fields)
    for name in ("messages", "conversations"):
        if name in fields:
            fields[name] = _turns_before_answer(fields[name])
    if reading.right is not None:
        fields[reading.right] = stand_ins[reading.form]
    return fields


def _turns_before_answer(turns: Any) -> Any:
    """The turns of a chat before its last, if that is an answer; another value as it is."""
    if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
        return turns  # it is refused where values are checked
    last = turns[-1]
    speaker = last.get("role", last.get("from"))
    return turns[:-1] if speaker in ("assistant", "gpt", "function_call") else turns


def _check_values(fields: Row, match: Match, where: Callable[[], str]) -> None:
    """Refuse a value that its field cannot have."""
    form = match.reading.form
    usual_check = TEXT_OR_JSON if form == "prompt" else TEXT
    for name, value in fields.items():
        if name == "answer" and form == "choice":
            continue  # other rows decide how it is read
        check = CHECKS.get(name, usual_check)
        if not check.accepts(value):
            shown_name = match.keys.get(name, name)
            raise ValueError(f"{where()}: {shown_name} {check.problem}: {reprlib.repr(value)}")
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # JSON may hold half a character
        raise ValueError(f"{where()} is not valid Unicode: {error.reason}") from error


def _refuse_two_systems(turns: list[Row], fields: Row, where: Callable[[], str]) -> None:
    """Refuse a chat that has a system turn and a system message in a field besides."""
    system_turns = [turn for turn in turns if turn["role"] == "system"]
    if len(system_turns) > 1 and fields.get("system"):
        raise ValueError(f"{where()}: system is beside a system turn: leave one of them out")


def _refuse_unanswered_chat(turns: list[Row], where: Callable[[], str]) -> None:
    """Refuse a chat in which nothing is answered."""
    if len(turns) < 2 or all(turn["role"] != "assistant" for turn in turns):
        raise ValueError(f"{where()}: a chat needs two or more turns, one of the assistant (gpt)")
