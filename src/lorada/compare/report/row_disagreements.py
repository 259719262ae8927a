"""The held-out rows that some candidates get right and others do not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorada.compare.read_results import CandidateResult, Results, RowKey
from lorada.support.in_words import answer_in_words
from lorada.support.row_sources import BUILTIN, file_names

MOST_ROWS = 50  # disagreements that a report shows
RIGHT, WRONG = 100.0, 0.0  # scores of rows that are right or wrong


@dataclass(frozen=True)
class Disagreement:
    """A held-out row that some candidates get right in most seeds and others do not."""

    rows: str  # name of the held-out rows, such as ``test.jsonl``
    row: int  # number in that file, from 1
    right: tuple[str, ...]  # labels of the candidates that get it right
    wrong: tuple[str, ...]  # of the others
    text: str | None = None  # the row itself, if it is stored
    answer: str | None = None  # its right answer, likewise


def disagreements(results: Results, candidates: Sequence[CandidateResult]) -> list[Disagreement]:
    """The rows that divide the candidates most; none where rows are not right or wrong.

    ``candidates`` are those with runs, in the order in which they are named.
    """
    if not candidates:
        return []
    if not all(np.isin(candidate.scores, (RIGHT, WRONG)).all() for candidate in candidates):
        return []
    half = (RIGHT + WRONG) / 2
    # Candidates × rows: right in most seeds.
    is_right = np.array([candidate.scores.mean(axis=0) > half for candidate in candidates])
    size_of_minority = np.minimum(is_right.sum(axis=0), (~is_right).sum(axis=0))
    most_divided = np.argsort(-size_of_minority, kind="stable")[:MOST_ROWS]
    rows = []
    for index in most_divided:
        if size_of_minority[index] == 0:  # so have all others
            break
        rows.append(_disagreement(results, candidates, is_right[:, index], results.rows[index]))
    return rows


def _disagreement(
    results: Results, candidates: Sequence[CandidateResult], is_right: Iterable[bool], row: RowKey
) -> Disagreement:
    """Who gets a row right and who does not; ``is_right`` says it of each candidate."""
    right, wrong = list[str](), list[str]()
    for candidate, gets_it_right in zip(candidates, is_right, strict=True):
        if gets_it_right:
            right.append(candidate.label)
        else:
            wrong.append(candidate.label)
    text, answer = _stored_question_and_answer(candidates, row)
    rows_name, number = row
    return Disagreement(
        shown_name(results, rows_name), number, tuple(right), tuple(wrong), text, answer
    )


def _stored_question_and_answer(
    candidates: Sequence[CandidateResult], row: RowKey
) -> tuple[str | None, str | None]:
    """What was asked in a row and its right answer, as the last run has stored them."""
    for candidate in reversed(candidates):
        for run in reversed(candidate.runs):
            prediction = run.predictions[row]
            if prediction.text is not None:
                right = prediction.right
                answer = None if right is None else answer_in_words(right)
                return answer_in_words(prediction.text), answer
    return None, None


def shown_name(results: Results, rows_name: str) -> str:
    """What a reader calls some held-out rows: their file, or the share of the file of all rows."""
    data = results.asked.recipe.get("data")
    if data and rows_name.endswith("%"):
        return f"{rows_name} of {file_names(data).removeprefix(BUILTIN)}"
    return Path(rows_name).name
