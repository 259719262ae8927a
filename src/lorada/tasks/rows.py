"""Reading a user's own file of rows: JSON Lines or CSV, with errors that say where and why."""

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
Form = Literal["messages", "choice", "prompt", "label", "score", "text"]

# The fields of each form; a file has one form throughout, the first whose fields it has.
FORMS: dict[Form, tuple[str, ...]] = {
    "messages": ("messages",),
    "choice": ("prompt", "candidates", "answer"),
    "prompt": ("prompt", "response"),
    "label": ("text", "label"),  # and a second text in ``text_pair``
    "score": ("text", "score"),  # likewise
    "text": ("text",),
}
PAIRED = "text_pair"
LARGEST = 3.4e38  # the scores that fp32 holds
FIELD_LIMIT = 2**31 - 1  # characters of a field of a CSV file; Python's own limit is 131,072
# Forms that a model answers with a head, not with text.
HEADED: tuple[Form, ...] = ("label", "score")


BUILTIN = "builtin:"


def resolve(path: str | Path) -> Path:
    """The file a name stands for; ``builtin:NAME`` is a file that ships with the package."""
    if str(path).startswith(BUILTIN):
        return (
            Path(__file__).parents[1]
            / "recipes"
            / "quickstart"
            / Path(str(path).removeprefix(BUILTIN)).name
        )
    return Path(path)


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a .jsonl, .json (one row a line) or .csv file, in order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an empty file, a broken line (with its number), a field that is there twice,
            or another encoding.
    """
    path = resolve(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}: pass --data FILE (.jsonl or .csv)")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}): convert it, for example with iconv"
        ) from error
    rows = (_csv_rows if path.suffix.lower() == ".csv" else _json_rows)(path, text)
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _json_rows(path: Path, text: str) -> list[Row]:
    rows = []
    # Not splitlines(): a JSON string may hold U+2028, which is no line end in JSON Lines.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_fields)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise ValueError(f"{path} line {number} is not JSON: {reason}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number} is not a JSON object with named fields")
        rows.append(row)
    return rows


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which must not say two things under one name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the field {_twice([name for name, _ in pairs])!r} is there twice")
    return found


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _csv_rows(path: Path, text: str) -> list[Row]:
    # With newline="" the csv module alone decides where a line ends, within quotes or without.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    limit = csv.field_size_limit(FIELD_LIMIT)
    try:
        named = [name for name in reader.fieldnames or [] if name]  # any number may have no name
        if (name := _twice(named)) is not None:
            raise ValueError(f"{path} has two columns {name!r}: rename one or leave it out")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path} line {reader.line_num} has another number of fields than the header "
                    f"({', '.join(reader.fieldnames or [])})"
                )
            rows.append(dict(row))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is not CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    return rows


def form_of(rows: list[Row], path: str | Path) -> Form:
    """Which form the rows have; all must have the fields of the first.

    Raises:
        ValueError: naming the row and the missing field.
    """
    form = next((f for f, names in FORMS.items() if all(n in rows[0] for n in names)), None)
    if form is None:
        wanted = " or ".join("/".join(fields) for fields in FORMS.values())
        raise ValueError(f"{path} row 1 has fields {', '.join(rows[0])}; needed are {wanted}")
    for number, row in enumerate(rows, start=1):
        for field in FORMS[form]:
            if row.get(field) is None:
                raise ValueError(f"{path} row {number} has no field {field!r}")
            _check_field(row, field, f"{path} row {number}")
        if row.get(PAIRED) is not None:
            _check_text(row[PAIRED], PAIRED, f"{path} row {number}")
    return form


def fields_of(rows: list[Row], form: Form) -> list[Row]:
    """Rows with the fields of their form alone.

    What else a file holds must change nothing: a column of notes may well be named as a field of
    another form, or as one of those that benchmarks give their rows for evaluation.
    """
    names = (*FORMS[form], *([PAIRED] if form in HEADED else []))
    return [{name: row[name] for name in names if name in row} for row in rows]


def _check_field(row: Row, field: str, where: str) -> None:
    value = row[field]
    if field == "messages":
        _check_messages(value, where)
    elif field == "label":
        if not isinstance(value, str | int):
            raise ValueError(f"{where}: label is neither a text nor an integer: {value!r}")
        _check_unicode(value, field, where)
    elif field == "score":
        if not _is_number(value):
            raise ValueError(f"{where}: score is not a number that fp32 holds: {value!r:.60}")
    elif field == "candidates":
        if not isinstance(value, list) or len(value) < 2:
            raise ValueError(f"{where}: candidates must be a list of two texts or more")
        for candidate in value:
            _check_text(candidate, "candidates", where)
    elif field == "answer":
        count = len(row["candidates"])
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
            raise ValueError(
                f"{where}: answer={value!r} must be the index of one of {count} candidates, from 0"
            )
    else:
        _check_text(value, field, where)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number; a CSV file has numbers as texts."""
    try:
        return not isinstance(value, bool) and abs(float(value)) < LARGEST  # which NaN is not
    except (TypeError, ValueError, OverflowError):
        return False


def _check_messages(messages: Any, where: str) -> None:
    turns = messages if isinstance(messages, list) else []
    good = all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns)
    if not turns or not good or turns[-1]["role"] != "assistant":
        raise ValueError(
            f"{where}: messages must be a list of role/content objects that ends with the assistant"
        )
    for turn in turns:
        for name in ("role", "content"):
            _check_text(turn[name], name, where)
    if len(turns) < 2:
        raise ValueError(f"{where}: messages has nothing that the assistant answers")
    _check_unicode(turns, "messages", where)


def _check_text(text: Any, field: str, where: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{where}: {field} is not a text: {text!r}")
    _check_unicode(text, field, where)


def _check_unicode(value: Any, field: str, where: str) -> None:
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {field} is not valid Unicode: {error.reason}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: {field} is nested too deeply") from error


def fingerprint(rows: list[Row]) -> str:
    """sha256 of the rows' content, for ``result.json``."""
    text = "\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def answer_of(row: Row) -> str:
    """The text that generation should give."""
    if "messages" in row:
        return str(row["messages"][-1]["content"])
    return str(row.get("eval_response", row["response"]))
