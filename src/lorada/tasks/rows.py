"""The six forms that a row may have, and what is asked of a row of any form."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

Row = dict[str, Any]
Form = Literal["messages", "choice", "prompt", "label", "score", "text"]

BUILTIN = "builtin:"
LARGEST = 3.4e38  # the largest score: what fp32 holds


class Fields(BaseModel):
    """The fields of a form; an error about a field prints the field's description."""

    model_config = ConfigDict(strict=True)


class _Turn(Fields):
    role: str
    content: str


def _check_turns(turns: list[_Turn]) -> list[_Turn]:
    if turns[-1].role != "assistant":
        raise ValueError
    return turns


class _Messages(Fields):
    messages: Annotated[list[_Turn], AfterValidator(_check_turns)] = Field(
        min_length=2,
        description="must be a list of two or more role/content objects, the last by the assistant",
    )


def _check_index(answer: int, info: ValidationInfo) -> int:
    if answer not in range(len(info.data.get("candidates", []))):
        raise ValueError
    return answer


class _Choice(Fields):
    prompt: str
    candidates: list[str] = Field(min_length=2, description="must be a list of two texts or more")
    answer: Annotated[int, AfterValidator(_check_index)] = Field(
        description="must be the index of one of the candidates, from 0"
    )


class _Prompt(Fields):
    prompt: str
    response: str


class _Text(Fields):
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


FORMS: dict[Form, type[Fields]] = {
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
