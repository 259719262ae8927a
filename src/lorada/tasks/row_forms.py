"""Finds the form of a user's rows, checks each row, and converts rows as other tools write them.

``READINGS`` is the table of all fields that rows may have, and the form that each comes to.
"""

import json
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from lorada.tasks.llm_adapters_prompt import clean_prompt
from lorada.tasks.rows import FORMS, Fields, Form, Row
from lorada.tasks.task import unchanged

CHATS = "messages", "conversations"  # fields that hold the turns of a chat
ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "assistant": "assistant",
}  # fmt: skip


class _Said(Fields):
    role: Literal["system", "human", "user", "gpt", "assistant"] = Field(alias="from")
    value: str


def _check_said(turns: list[_Said]) -> list[_Said]:
    if ROLES[turns[-1].role] != "assistant":
        raise ValueError
    return turns


class _ShareGpt(Fields):
    conversations: Annotated[list[_Said], AfterValidator(_check_said)] = Field(
        min_length=2,
        description="must be a list of two or more from/value objects, each from system, human or "
        "gpt, the last from gpt",
    )


class _Alpaca(Fields):
    instruction: str
    output: str
    input: str | None = None


class _Question(Fields):
    question: str
    answer: str


def _chat_of(row: Row) -> Row:
    turns = ({"role": ROLES[t["from"]], "content": t["value"]} for t in row["conversations"])
    return {"messages": list(turns)}


def _prompt_of_alpaca(row: Row) -> Row:
    prompt = clean_prompt(row["instruction"], row.get("input") or "")
    return {"prompt": prompt, "response": row["output"]}


def _prompt_of_question(row: Row) -> Row:
    return {"prompt": f"Question: {row['question']}\nAnswer:", "response": f" {row['answer']}"}


@dataclass(frozen=True)
class Reading:
    """One way to read a row.

    Attributes:
        form: the form that the row comes to.
        fields: the fields that it must have, and may have.
        convert: row with these fields → row of the form.
        answer: the field that holds the right answer; None for the last turn of a chat, or if the
            whole row is to be learned.
    """

    form: Form
    fields: type[Fields]
    convert: Callable[[Row], Row] = unchanged
    answer: str | None = None

    @property
    def required(self) -> list[str]:
        """The fields that a row must have."""
        return [name for name, one in self.fields.model_fields.items() if one.is_required()]


READINGS = (
    Reading("messages", FORMS["messages"]),
    Reading("choice", FORMS["choice"], answer="answer"),
    Reading("prompt", FORMS["prompt"], answer="response"),
    Reading("label", FORMS["label"], answer="label"),
    Reading("score", FORMS["score"], answer="score"),
    Reading("text", FORMS["text"]),
    Reading("messages", _ShareGpt, _chat_of),
    Reading("prompt", _Alpaca, _prompt_of_alpaca, answer="output"),
    Reading("prompt", _Question, _prompt_of_question, answer="answer"),
)
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
    answers = {one.answer: stand_ins[one.form] for one in readings if one.answer is not None}
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
    rows: list[Row], path: str | Path, readings: Iterable[Reading], given: Iterable[str] = ()
) -> tuple[list[Row], Form]:
    """The rows by the one of the readings that fits; ``given`` are fields that we have added."""
    added = set(given)
    fitting = [reading for reading in readings if rows[0].keys() >= set(reading.required)]
    if len(fitting) > 1:  # a text alone is read only if nothing else is asked of it
        fitting = [reading for reading in fitting if reading.form != "text"]
    shown = ["/".join(n for n in one.required if n not in added) for one in fitting or readings]
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
        kept = {name: row[name] for name in reading.fields.model_fields if name in row}
        _check_row(kept, reading.fields, f"{path} row {number}")
        found.append(reading.convert(kept))
    return found, reading.form


def _check_row(row: Row, fields: type[Fields], where: str) -> None:
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


def _explain(error: ValidationError, row: Row, fields: type[Fields]) -> str:
    """The end of an error about a row: the first thing that is wrong with it."""
    first = error.errors(include_url=False)[0]
    name, *inner = map(str, first["loc"])
    description = fields.model_fields[name].description
    if first["type"] == "missing" and not inner:
        return f" has no field {name!r}"
    if first["type"] == "string_type" and (description is None or name in CHATS):
        return f": {[name, *inner][-1]} is not a text: {reprlib.repr(first['input'])}"
    return f": {name} {description}: {reprlib.repr(row[name])}"
