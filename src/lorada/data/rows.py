"""Rows, the six forms that they may have, and what is asked of a row of any form."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
Form = Literal["messages", "choice", "prompt", "label", "score", "text"]

BUILTIN = "builtin:"
MOST_NUMBERS = 5  # of rows that an error names
# Forms that a model answers with a head, not with text.
HEADED: tuple[Form, ...] = ("label", "score")


def resolve(path: str | Path) -> Path:
    """The path of a file; ``builtin:NAME`` is a file that ships with the package."""
    if not str(path).startswith(BUILTIN):
        return Path(path)
    name = Path(str(path).removeprefix(BUILTIN)).name
    return Path(__file__).parents[1] / "recipes" / "quickstart" / name


def files_of(path: str | Path) -> list[str]:
    """The files or data sets of the hub in ``a.jsonl,b.jsonl``; a file may have a comma itself."""
    text = str(path)
    return [text] if resolve(text).exists() else [name.strip() for name in text.split(",")]


def absolute_files(path: str) -> str:
    """The same files by their absolute paths; what is no file or folder here stays as it is."""
    each = files_of(path)
    return ",".join(os.path.abspath(name) if Path(name).exists() else name for name in each)


def file_names(path: str) -> str:
    """The names of files without their folders."""
    return ", ".join(Path(name).name for name in files_of(path))


def place_of(path: str, counts: Sequence[int], index: int) -> str:
    """The file of a row and its number there, from 1; ``counts`` are the rows of each file."""
    for name, count in zip(files_of(path), counts, strict=False):
        if index < count:
            return f"{name} row {index + 1}"
        index -= count
    return f"{path} row {index + 1}"


def places_of(path: str, counts: Sequence[int], indices: Sequence[int]) -> str:
    """The files and numbers of some rows, such as ``rows.csv rows 3, 7``, for an error."""
    shown = indices[:MOST_NUMBERS]
    more = f" and {len(indices) - len(shown)} more" if indices[MOST_NUMBERS:] else ""
    if len(counts) > 1:
        return ", ".join(place_of(path, counts, index) for index in shown) + more
    several = "s" if indices[1:] else ""
    return f"{path} row{several} {', '.join(str(index + 1) for index in shown)}{more}"


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


def content_of(row: Row) -> str:
    """A row as one text, the same from CSV and JSON; every stretch of white space is one blank."""
    of_kind = {"label": str, "score": float, "answer": str}
    plain = {
        key: of_kind.get(key, _plain)(value) for key, value in row.items() if value is not None
    }
    return json.dumps(plain, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def answer_of(row: Row) -> str:
    """The right answer to a row, for a model that answers with a text."""
    if "messages" in row:
        return str(row["messages"][-1].get("content") or "")  # a call of tools has none
    return str(row.get("eval_response", row["response"]))
