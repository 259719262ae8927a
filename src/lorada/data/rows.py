"""Rows, the six forms that they may have, and what is asked of a row of any form."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
Form = Literal["messages", "choice", "prompt", "label", "score", "text"]

BUILTIN = "builtin:"
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
        return str(row["messages"][-1].get("content") or "")  # a call of tools has none
    return str(row.get("eval_response", row["response"]))
