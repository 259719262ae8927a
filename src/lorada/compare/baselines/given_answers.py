"""Scores of answers that somebody else gave: another model, a rule, a person.

A file of answers has a line for each held-out row, with the field ``answer``, and says which row it
answers: by its number in the held-out file, counted from 1 (``row``), or by the row's own text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorada.data.files.read_rows import read_rows
from lorada.data.rows.rows import Rows
from lorada.data.scoring.score_answers import metric_names_for, score_answers
from lorada.support.in_words import counted
from lorada.support.row_sources import NAMED, Row

ANSWER, NUMBER = "answer", "row"
TEXTS = ("prompt", "text")  # fields of a held-out row that a file may repeat to say which row it is


def given_scores(
    path: Path, held_out: Sequence[Rows], metric: str | None
) -> dict[str, list[float]]:
    """The scores of the answers in a file: metric → the score of each held-out row, by its number.

    Raises:
        ValueError: for an answer to no row, two answers to one row, or a row without an answer.
    """
    answers = read_rows(path)
    _refuse_without_answers(path, answers)
    by_row: list[dict[str, float]] = []
    found = 0
    for rows in held_out:
        ordered = rows.part(sorted(range(len(rows.rows)), key=rows.number))
        matched = _matched(path, answers, ordered, sole=len(held_out) == 1)
        found += len(matched)
        values = [_in_form(path, matched[index], ordered, index) for index in range(len(matched))]
        metrics = metric_names_for(ordered, [] if metric is None else [metric])
        by_row += score_answers(ordered, values, metrics).by_row
    return {name: [row[name] for row in by_row] for name in by_row[0]}


def _refuse_without_answers(path: Path, answers: Sequence[Row]) -> None:
    for number, row in enumerate(answers, start=1):
        if row.get(ANSWER) is None:
            fields = ", ".join(map(str, row)) or "no field"
            raise ValueError(
                f"{path}, row {number}, has no {ANSWER!r}, but {fields}: a file of answers has "
                f"{ANSWER!r}, and {NUMBER!r} or the text of the row"
            )


def _matched(path: Path, answers: Sequence[Row], rows: Rows, *, sole: bool) -> dict[int, Any]:
    """The answer to each row, by the row's index."""
    index_of = _index_by_number(rows) if _has_numbers(answers) else _index_by_text(rows)
    matched: dict[int, Any] = {}
    for number, row in enumerate(answers, start=1):
        key = _key_of(path, number, row, by_number=_has_numbers(answers))
        index = index_of.get(key)
        if index is None:
            if sole:
                raise ValueError(
                    f"{path}, row {number}, answers {key!r}, which is no held-out row of "
                    f"{rows.path}: leave it out"
                )
            continue
        if index in matched:
            raise ValueError(
                f"{path}, row {number}, answers {rows.place(index)} a second time: leave one out"
            )
        matched[index] = row[ANSWER]
    missing = [index for index in range(len(rows.rows)) if index not in matched]
    if missing:
        raise ValueError(
            f"{path} has no answer to {counted(len(missing), 'held-out row')}, the first is "
            f"{rows.place(missing[0])}: answer every row"
        )
    return matched


def _has_numbers(answers: Sequence[Row]) -> bool:
    return any(NUMBER in row for row in answers)


def _index_by_number(rows: Rows) -> dict[str, int]:
    return {str(rows.number(index)): index for index in range(len(rows.rows))}


def _index_by_text(rows: Rows) -> dict[str, int]:
    """The index of each row by its text; of copies the first, as nobody can tell them apart."""
    index_of: dict[str, int] = {}
    for index, row in enumerate(rows.rows):
        index_of.setdefault(_words(_text_of(row)), index)
    return index_of


def _key_of(path: Path, number: int, row: Row, *, by_number: bool) -> str:
    if by_number:
        return str(row.get(NUMBER, "")).strip()
    for field in (*TEXTS, "messages"):
        if field in row:
            return _words(_text_of(row))
    raise ValueError(
        f"{path}, row {number}, does not say which row it answers: give {NUMBER!r}, the number in "
        f"the held-out file, or its text as {' or '.join(map(repr, TEXTS))}"
    )


def _text_of(row: Row) -> str:
    """What a row asks, as one text."""
    if "messages" in row:
        turns = row["messages"]
        asked = turns[:-1] if turns[-1]["role"] == "assistant" else turns
        return "\n".join(str(turn.get("content") or "") for turn in asked)
    parts = [row.get(field) for field in (*TEXTS, "text_pair")]
    return "\n".join(str(part) for part in parts if part)


def _words(text: str) -> str:
    """A text in which blanks count as one."""
    return " ".join(text.split())


def _in_form(path: Path, answer: Any, rows: Rows, index: int) -> Any:
    """An answer in the form that a model's is scored in."""
    if rows.form == "labels":
        if isinstance(answer, list):
            return [str(label) for label in answer]
        return [label.strip() for label in str(answer).split(",") if label.strip()]
    if rows.form == "score":
        try:
            return float(answer)
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: the answer to {rows.place(index)} is {answer!r}, which is no number"
            ) from None
    if rows.form == "choice":
        candidates = rows.rows[index]["candidates"]
        if str(answer) in candidates:
            return candidates.index(str(answer))
        if str(answer).isdigit() and int(answer) < len(candidates):
            return int(answer)
        raise ValueError(
            f"{path}: the answer to {rows.place(index)} is {answer!r}, which is none of its "
            "candidates nor the index of one"
        )
    if rows.form in NAMED and str(answer) not in rows.labels:
        raise ValueError(
            f"{path}: the answer to {rows.place(index)} is {answer!r}, which is none of the "
            f"classes {', '.join(rows.labels)}"
        )
    return str(answer)
