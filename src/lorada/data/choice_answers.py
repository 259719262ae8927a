"""The right answers of choices: a letter, a number or a candidate's text becomes an index."""

import string
from collections.abc import Callable
from typing import Any

from lorada.support.row_sources import Row


def as_indices(rows: list[Row], where: Callable[[int], str]) -> list[Row]:
    """Rows of choices, each ``answer`` as the index of one of its ``candidates``.

    Texts are read in one way in all rows: as candidates if they all are, else as letters or as
    numbers, whichever most of them are. So "2" among the candidates 1, 2 and 3 is the text.

    Args:
        rows: of choices, with an integer or a text as the answer.
        where: index of a row → its file and number, for errors.
    """
    texts = [row for row in rows if isinstance(row["answer"], str)]
    read = max(
        (_text, _letter, _number), key=lambda way: sum(way(row) is not None for row in texts)
    )
    given = [row["answer"] for row in rows]
    found = [
        read(row) if isinstance(answer, str) else answer if type(answer) is int else None
        for row, answer in zip(rows, given, strict=True)
    ]
    for index, (answer, row) in enumerate(zip(found, rows, strict=True)):
        count = len(row["candidates"])
        if answer == count and 0 not in found:
            raise ValueError(
                f"{where(index)}: answer {row['answer']!r} is beyond the last of {count} candidates"
                ", and no row has 0, so the file counts from 1: subtract 1 from every answer"
            )
        if answer not in range(count):
            raise ValueError(
                f"{where(index)}: answer must be the index of one of the candidates, from 0, its "
                f"letter or its text: {row['answer']!r}"
            )
    return [{**row, "answer": answer} for row, answer in zip(rows, found, strict=True)]


def _text(row: dict[str, Any]) -> int | None:
    candidates = [text.strip() for text in row["candidates"]]
    answer = row["answer"].strip()
    return candidates.index(answer) if answer in candidates else None


def _letter(row: dict[str, Any]) -> int | None:
    letters = string.ascii_uppercase[: len(row["candidates"])]
    answer = row["answer"].strip().upper()
    return letters.index(answer) if len(answer) == 1 and answer in letters else None


def _number(row: dict[str, Any]) -> int | None:
    answer = row["answer"].strip()
    return int(answer) if answer.isdecimal() and len(answer) < 10 else None
