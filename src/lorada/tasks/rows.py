"""The six forms that a row may have, and the reader of a user's own file, JSON Lines or CSV."""

import csv
import hashlib
import io
import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

Row = dict[str, Any]
Form = Literal["messages", "choice", "prompt", "label", "score", "text"]

BUILTIN = "builtin:"
FIELD_LIMIT = 2**31 - 1  # characters of a field of a CSV file; Python's own limit is 131,072
LARGEST = 3.4e38  # the largest score: what fp32 holds


class _Fields(BaseModel):
    """The fields of a form; an error about a field prints the field's description."""

    model_config = ConfigDict(strict=True)


class _Turn(_Fields):
    role: str
    content: str


def _check_turns(turns: list[_Turn]) -> list[_Turn]:
    if turns[-1].role != "assistant":
        raise ValueError
    return turns


class _Messages(_Fields):
    messages: Annotated[list[_Turn], AfterValidator(_check_turns)] = Field(
        min_length=2,
        description="must be a list of two or more role/content objects, the last by the assistant",
    )


def _check_index(answer: int, info: ValidationInfo) -> int:
    if answer not in range(len(info.data.get("candidates", []))):
        raise ValueError
    return answer


class _Choice(_Fields):
    prompt: str
    candidates: list[str] = Field(min_length=2, description="must be a list of two texts or more")
    answer: Annotated[int, AfterValidator(_check_index)] = Field(
        description="must be the index of one of the candidates, from 0"
    )


class _Prompt(_Fields):
    prompt: str
    response: str


class _Text(_Fields):
    text: str


class _Label(_Text):
    label: str | int | bool = Field(description="is neither a text nor an integer")
    text_pair: str | None = None


def _check_score(score: Any) -> Any:
    try:
        if not isinstance(score, bool) and abs(float(score)) < LARGEST:  # NaN is not
            return score
    except (TypeError, OverflowError):
        pass
    raise ValueError


class _Score(_Text):
    score: Annotated[Any, AfterValidator(_check_score)] = Field(
        description="is not a number that fp32 holds"  # in a CSV file it is a text
    )
    text_pair: str | None = None


# A file has one form throughout: the first whose required fields its first row has.
FORMS: dict[Form, type[_Fields]] = {
    "messages": _Messages, "choice": _Choice, "prompt": _Prompt,
    "label": _Label, "score": _Score, "text": _Text,
}  # fmt: skip
# Forms that a model answers with a head, not with text.
HEADED: tuple[Form, ...] = ("label", "score")


def resolve(path: str | Path) -> Path:
    """The path of a file; ``builtin:NAME`` is a file that ships with the package."""
    if not str(path).startswith(BUILTIN):
        return Path(path)
    name = Path(str(path).removeprefix(BUILTIN)).name
    return Path(__file__).parents[1] / "recipes" / "quickstart" / name


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a .jsonl, .json (one row a line) or .csv file, in order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an empty file, a broken line (with its number), a field that is there twice,
            or an encoding other than UTF-8.
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
            row = json.loads(line, object_pairs_hook=_unique_names)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise ValueError(f"{path} line {number} is not JSON: {reason}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number} is not a JSON object with named fields")
        rows.append(row)
    return rows


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises if a name is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the field {_twice([name for name, _ in pairs])!r} is there twice")
    return found


def _twice(names: list[str]) -> str | None:
    """The first name that is there twice."""
    return next((name for name in names if names.count(name) > 1), None)


def _csv_rows(path: Path, text: str) -> list[Row]:
    # With newline="" the csv module decides where a line ends, inside quotes too.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    limit = csv.field_size_limit(FIELD_LIMIT)
    try:
        named = [name for name in reader.fieldnames or [] if name]  # several names may be empty
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
    """The form of the first row; all other rows must have it too, with values that fit.

    Raises:
        ValueError: naming the first row that does not fit, the field and what is wrong with it.
    """
    form = next((form for form in FORMS if rows[0].keys() >= set(_required(form))), None)
    if form is None:
        wanted = " or ".join("/".join(_required(form)) for form in FORMS)
        raise ValueError(f"{path} row 1 has fields {', '.join(rows[0])}; each needs {wanted}")
    for number, row in enumerate(fields_of(rows, form), start=1):
        _check_row(row, FORMS[form], f"{path} row {number}")
    return form


def _required(form: Form) -> list[str]:
    return [name for name, field in FORMS[form].model_fields.items() if field.is_required()]


def fields_of(rows: list[Row], form: Form) -> list[Row]:
    """The rows without fields that their form does not have, so that extra fields change nothing.

    A column of notes may have the name of a field of another form, or of one that only benchmarks
    give their rows.
    """
    names = FORMS[form].model_fields
    return [{name: row[name] for name in names if name in row} for row in rows]


def _check_row(row: Row, fields: type[_Fields], where: str) -> None:
    present = {name: value for name, value in row.items() if value is not None}
    try:
        fields.model_validate(present)
    except ValidationError as error:
        raise ValueError(f"{where}{_explain(error, row, fields)}") from error
    for name, value in present.items():  # pydantic accepts lone surrogates
        try:
            (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: {name} is not valid Unicode: {error.reason}") from error
        except RecursionError as error:
            raise ValueError(f"{where}: {name} is nested too deeply") from error


def _explain(error: ValidationError, row: Row, fields: type[_Fields]) -> str:
    """The end of an error about a row: the first thing that is wrong with it."""
    first = error.errors(include_url=False)[0]
    name, *inner = map(str, first["loc"])
    description = fields.model_fields[name].description
    if first["type"] == "missing" and not inner:
        return f" has no field {name!r}"
    if first["type"] == "string_type" and (description is None or name == "messages"):
        return f": {[name, *inner][-1]} is not a text: {reprlib.repr(first['input'])}"
    return f": {name} {description}: {reprlib.repr(row[name])}"


def text_of(row: Row, name: str) -> str:
    """A field of a benchmark's row that must hold a text.

    Raises:
        ValueError: if it holds something else.
        KeyError: if the row does not have it.
    """
    if not isinstance(row[name], str):
        raise ValueError(f"{name} is not a text: {row[name]!r}")
    return str(row[name])


def fingerprint(rows: list[Row]) -> str:
    """The sha256 of the rows' content, for ``result.json``."""
    text = "\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def answer_of(row: Row) -> str:
    """The right answer to a row, for a model that answers with a text."""
    if "messages" in row:
        return str(row["messages"][-1]["content"])
    return str(row.get("eval_response", row["response"]))
