"""Scores of answers that somebody else gave: another model, a rule, a person.

A file of answers has a line for each held-out row, with the field ``answer``, and says which row it
answers: by its number in the held-out file, counted from 1 (``row``), or by the row's own text.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorada.compare.baselines.row_scores import scores_of
from lorada.compare.stored_plan import Untrained
from lorada.data.files.read_rows import read_rows
from lorada.data.rows.rows import Rows
from lorada.support.in_words import counted
from lorada.support.row_sources import NAMED, Form, Row

ANSWER, NUMBER = "answer", "row"
# Fields of a held-out row that a file may repeat to say which row it answers.
TEXTS = ("messages", "prompt", "text", "text_pair")


def given_answers(
    path: Path, held_out: Sequence[Rows], metric: str | None, *, of_a_share: bool
) -> Untrained:
    """The scores of the answers in a file.

    Args:
        path: the file.
        held_out: the held-out rows, of one name.
        metric: what they are scored by besides the metrics that cost nothing, if anything is.
        of_a_share: whether the held-out rows are a share of the training file. Nobody knows before
            which they are, so the file may answer the other rows too.

    Raises:
        ValueError: for an answer to no row, two answers to one row, a row without an answer, and an
            answer that the rows cannot have.
    """
    answers = read_rows(path)

    def answers_to(rows: Rows) -> list[Any]:
        answer_of = _matched(path, answers, rows, may_answer_others=of_a_share)
        return [_in_form(path, answer_of[index], rows, index) for index in range(len(rows.rows))]

    return Untrained(scores_of(held_out, answers_to, metric), title=f"the answers of {path.name}")


def _matched(
    path: Path, answers: Sequence[Row], rows: Rows, *, may_answer_others: bool
) -> dict[int, Any]:
    """The answer to each row, by the row's index.

    Args:
        path: the file of answers, for errors.
        answers: its lines. If any of them has a number of a row, all are matched by numbers.
        rows: the held-out rows.
        may_answer_others: whether answers to rows that are not held out are passed over.

    Raises:
        ValueError: for an answer to no row, a second one to a row, and a row without one.
    """
    by_number = any(NUMBER in answer for answer in answers)
    indices_of = _indices_by_key(rows, by_number=by_number)
    answer_of: dict[int, Any] = {}
    for number, answer in enumerate(answers, start=1):
        _refuse_without_answer(path, number, answer)
        key = _key_of(path, number, answer, by_number=by_number)
        indices = indices_of.get(key, [])
        if not indices and not may_answer_others:
            raise ValueError(
                f"{path}, row {number}, answers {_shortened(key)}, which is no held-out row of "
                f"{rows.path}: leave it out"
            )
        for index in indices:  # several only where rows are copies of each other
            if answer_of.setdefault(index, answer[ANSWER]) != answer[ANSWER]:
                raise ValueError(
                    f"{path}, row {number}, gives {rows.place(index)} a second answer: leave one "
                    "out"
                )
    missing = [index for index in range(len(rows.rows)) if index not in answer_of]
    if missing:
        raise ValueError(
            f"{path} has no answer to {counted(len(missing), 'held-out row')}, of which the first "
            f"is {rows.place(missing[0])}: answer every row"
        )
    return answer_of


def _indices_by_key(rows: Rows, *, by_number: bool) -> dict[str, list[int]]:
    """The indices of the rows with each number, or each text."""
    indices_of: dict[str, list[int]] = {}
    for index, row in enumerate(rows.rows):
        key = str(rows.number(index)) if by_number else _text_of(row)
        indices_of.setdefault(key, []).append(index)
    return indices_of


def _refuse_without_answer(path: Path, number: int, answer: Row) -> None:
    """Refuse a line of a file of answers that has no field ``answer``, or nothing in it."""
    if answer.get(ANSWER) is None:
        fields = ", ".join(map(str, answer)) or "no field"
        raise ValueError(
            f"{path}, row {number}, has no {ANSWER!r}, but {fields}: a file of answers has "
            f"{ANSWER!r}, and {NUMBER!r} or the text of the row"
        )


def _key_of(path: Path, number: int, answer: Row, *, by_number: bool) -> str:
    """What says which row an answer is to: its number as a text, or what the row asks.

    Raises:
        ValueError: for a line that has neither, and messages that are no turns.
    """
    if by_number:
        if answer.get(NUMBER) is None:
            raise ValueError(f"{path}, row {number}, has no {NUMBER!r}, which other rows have")
        return str(answer[NUMBER]).strip().removesuffix(".0")  # some tables make all numbers 1.0
    try:
        text = _text_of(answer)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, row {number}, has messages that are no list of turns with a role and a "
            f"content: give them, or {NUMBER!r}"
        ) from error
    if not text:
        raise ValueError(
            f"{path}, row {number}, does not say which row it answers: give {NUMBER!r}, the number "
            "in the held-out file, or the row's own prompt, text or messages"
        )
    return text


def _text_of(row: Row) -> str:
    """What a row asks, as one text in which blanks count as one."""
    parts: list[str] = []
    for field in TEXTS:
        value = row.get(field)
        if field == "messages" and value:
            parts += [str(turn.get("content") or "") for turn in _asked_turns(value)]
        elif value:
            parts.append(str(value))
    return " ".join(" ".join(parts).split())


def _asked_turns(turns: Sequence[Row]) -> Sequence[Row]:
    """The turns of a chat before its last answer."""
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def _shortened(text: str) -> str:
    """The beginning of a text, quoted."""
    return repr(text) if len(text) <= 40 else repr(f"{text[:40]}…")


def _in_form(path: Path, answer: Any, rows: Rows, index: int) -> Any:
    """An answer in the form that a model's is scored in.

    Raises:
        ValueError: for an answer that rows of this form cannot have. The functions in ``FORMS``
            raise it without a text, and here it is said of which row it is.
    """
    convert = FORMS.get(rows.form, _as_text)
    try:
        return convert(answer, rows, index)
    except (TypeError, ValueError):
        raise ValueError(
            f"{path}: the answer to {rows.place(index)} is {answer!r}, and not {_wanted(rows)}"
        ) from None


def _as_text(answer: Any, rows: Rows, index: int) -> str:
    """A text; of rows with classes it is the name of one, and others are refused."""
    if rows.form in NAMED and str(answer) not in rows.labels:
        raise ValueError
    return str(answer)


def _as_labels(answer: Any, rows: Rows, index: int) -> list[str]:
    """The labels in a list, or in a text with commas between them; refuses unknown ones."""
    if isinstance(answer, list):
        labels = [str(label) for label in answer]
    else:
        labels = [label.strip() for label in str(answer).split(",") if label.strip()]
    if not set(labels) <= set(rows.labels):
        raise ValueError
    return labels


def _as_number(answer: Any, rows: Rows, index: int) -> float:
    """A number; refuses one that is not finite."""
    number = float(answer)
    if not math.isfinite(number):
        raise ValueError
    return number


def _as_candidate(answer: Any, rows: Rows, index: int) -> int:
    """The index of a candidate, given as such or by its text; refuses one that the row lacks."""
    candidates = rows.rows[index]["candidates"]
    if str(answer) in candidates:
        return int(candidates.index(str(answer)))
    place = int(answer)
    if not 0 <= place < len(candidates):
        raise ValueError
    return place


FORMS: Mapping[Form, Callable[[Any, Rows, int], Any]] = {
    "labels": _as_labels,
    "score": _as_number,
    "choice": _as_candidate,
}


def _wanted(rows: Rows) -> str:
    """What an answer to rows of a form is."""
    if rows.form == "score":
        return "a number"
    if rows.form == "choice":
        return "one of its candidates, or the index of one"
    return f"of the classes {', '.join(rows.labels)}"
