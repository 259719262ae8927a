"""Finds the form of a user's rows, checks each row, and converts rows as other tools write them.

``READINGS`` is the table of all fields that rows may have, and the form that each comes to.
"""

import json
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from lorada.data.benchmarks.llm_adapters_prompt import clean_prompt
from lorada.data.rows import Form, Row

CHATS = "messages", "conversations"  # fields that hold the turns of a chat
LARGEST = 3.4e38  # the largest score: what fp32 holds
ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "assistant": "assistant",
}  # fmt: skip


class Reading(BaseModel):
    """One way to read a row: its fields. An error about a field prints the field's description.

    Attributes:
        form: the form that the row comes to.
        right: the field that holds the right answer; None for the last turn of a chat, or if the
            whole row is to be learned.
    """

    model_config = ConfigDict(strict=True)
    form: ClassVar[Form]
    right: ClassVar[str | None] = None

    @staticmethod
    def convert(row: Row) -> Row:
        """A row with these fields in the form."""
        return row

    @classmethod
    def required(cls) -> list[str]:
        """The fields that a row must have."""
        return [name for name, one in cls.model_fields.items() if one.is_required()]


class _Turn(BaseModel):
    role: str
    content: str


class _Said(BaseModel):
    role: Literal["system", "human", "user", "gpt", "assistant"] = Field(alias="from")
    value: str


def _last_from(*roles: str) -> AfterValidator:
    def check(turns: list[Any]) -> list[Any]:
        if turns[-1].role not in roles:
            raise ValueError
        return turns

    return AfterValidator(check)


class _Messages(Reading):
    form = "messages"
    messages: Annotated[list[_Turn], _last_from("assistant")] = Field(
        min_length=2,
        description="must be a list of two or more role/content objects, the last by the assistant",
    )


class _ShareGpt(Reading):
    form = "messages"
    conversations: Annotated[list[_Said], _last_from("gpt", "assistant")] = Field(
        min_length=2,
        description="must be a list of two or more from/value objects, each from system, human or "
        "gpt, the last from gpt",
    )

    @staticmethod
    def convert(row: Row) -> Row:
        turns = ({"role": ROLES[t["from"]], "content": t["value"]} for t in row["conversations"])
        return {"messages": list(turns)}


def _check_index(answer: int, info: ValidationInfo) -> int:
    if answer not in range(len(info.data.get("candidates", []))):
        raise ValueError
    return answer


class _Choice(Reading):
    form, right = "choice", "answer"
    prompt: str
    candidates: list[str] = Field(min_length=2, description="must be a list of two texts or more")
    answer: Annotated[int, AfterValidator(_check_index)] = Field(
        description="must be the index of one of the candidates, from 0"
    )


class _Prompt(Reading):
    form, right = "prompt", "response"
    prompt: str
    response: str


class _Alpaca(Reading):
    form, right = "prompt", "output"
    instruction: str
    output: str
    input: str | None = None

    @staticmethod
    def convert(row: Row) -> Row:
        prompt = clean_prompt(row["instruction"], row.get("input") or "")
        return {"prompt": prompt, "response": row["output"]}


class _Question(Reading):
    form, right = "prompt", "answer"
    question: str
    answer: str

    @staticmethod
    def convert(row: Row) -> Row:
        return {"prompt": f"Question: {row['question']}\nAnswer:", "response": f" {row['answer']}"}


class _Text(Reading):
    form = "text"
    text: str


class _Label(Reading):
    form, right = "label", "label"
    text: str
    label: str | int | bool = Field(description="is neither a text nor an integer")
    text_pair: str | None = None


def _check_score(score: Any) -> Any:
    try:
        if not isinstance(score, bool) and abs(float(score)) < LARGEST:  # NaN is not
            return score
    except (TypeError, OverflowError):
        pass
    raise ValueError


class _Score(Reading):
    form, right = "score", "score"
    text: str
    score: Annotated[Any, AfterValidator(_check_score)] = Field(
        description="is not a number that fp32 holds"  # in a CSV file it is a text
    )
    text_pair: str | None = None


READINGS: tuple[type[Reading], ...] = (
    _Messages, _Choice, _Prompt, _Label, _Score, _Text, _ShareGpt, _Alpaca, _Question,
)  # fmt: skip
# What stands for the right answer in rows that have none; no model's answer depends on it.
STAND_INS: dict[Form, Any] = {"prompt": "", "choice": 0, "score": 0.0}


def in_form(rows: list[Row], path: str | Path) -> tuple[list[Row], Form]:
    """The rows in the form that their fields decide, without fields that it does not have.

    A column of notes may have the name of a field that only benchmarks give their rows.

    Raises:
        ValueError: naming the first row that does not fit, the field and what is wrong with it; or
            for rows that can be read in two ways, with both.
    """
    return _read(rows, path, READINGS)


def to_answer(
    rows: list[Row], path: str | Path, form: Form, labels: Sequence[str] = ()
) -> tuple[list[Row], Form]:
    """Rows for a model to answer, which need no right answers, in its form or another it can read.

    Args:
        rows: as they were read; right answers in them are left out.
        path: the file they are from.
        form: of the rows that the model has learned.
        labels: its classes, for rows with labels.

    Raises:
        ValueError: as ``in_form``, for the fields that the model reads.
    """
    forms = (form,) if form in ("label", "score", "choice") else ("messages", "prompt", "text")
    readings = [reading for reading in READINGS if reading.form in forms]
    stand_ins = STAND_INS | {"label": next(iter(labels), "")}
    answers = {one.right: stand_ins[one.form] for one in readings if one.right is not None}
    asked = [{**row, **{name: _asked(row[name]) for name in CHATS if name in row}} for row in rows]
    return _read([{**row, **answers} for row in asked], path, readings, answers)


def _asked(turns: Any) -> Any:
    """The turns of a chat with an empty last answer; what is no list of turns is left for later."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return turns
    names = ("from", "value") if turns and "from" in turns[0] else ("role", "content")
    if turns and ROLES.get(str(turns[-1].get(names[0]))) == "assistant":
        turns = turns[:-1]
    return [*turns, {names[0]: "assistant", names[1]: ""}]


def _read(
    rows: list[Row],
    path: str | Path,
    readings: Iterable[type[Reading]],
    given: Iterable[str] = (),
) -> tuple[list[Row], Form]:
    """The rows by the one of the readings that fits; ``given`` are fields that we have added."""
    added = set(given)
    fitting = [reading for reading in readings if rows[0].keys() >= set(reading.required())]
    if len(fitting) > 1:  # a text alone is read only if nothing else is asked of it
        fitting = [reading for reading in fitting if reading.form != "text"]
    shown = ["/".join(n for n in one.required() if n not in added) for one in fitting or readings]
    if not fitting:
        wanted, has = " or ".join(shown), ", ".join(name for name in rows[0] if name not in added)
        raise ValueError(f"{path} row 1 has fields {has}; each needs {wanted}")
    if len(fitting) > 1:
        raise ValueError(
            f"{path} row 1 can be read as {' and as '.join(shown)}: leave out the fields of one"
        )
    (reading,) = fitting
    found = []
    for number, row in enumerate(rows, start=1):
        kept = {name: row[name] for name in reading.model_fields if name in row}
        _check_row(kept, reading, f"{path} row {number}")
        found.append(reading.convert(kept))
    return found, reading.form


def _check_row(row: Row, fields: type[Reading], where: str) -> None:
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


def _explain(error: ValidationError, row: Row, fields: type[Reading]) -> str:
    """The end of an error about a row: the first thing that is wrong with it."""
    first = error.errors(include_url=False)[0]
    name, *inner = map(str, first["loc"])
    description = fields.model_fields[name].description
    if first["type"] == "missing" and not inner:
        return f" has no field {name!r}"
    if first["type"] == "string_type" and (description is None or name in CHATS):
        return f": {[name, *inner][-1]} is not a text: {reprlib.repr(first['input'])}"
    return f": {name} {description}: {reprlib.repr(row[name])}"
