"""The held-out rows that some candidates get right and others do not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorada.compare.read_results import CandidateResult, Results, RowKey
from lorada.support.row_sources import BUILTIN, file_names

MOST_ROWS = 50  # disagreements that a report shows
RIGHT, WRONG = 100.0, 0.0  # scores of rows that are right or wrong


@dataclass(frozen=True)
class Disagreement:
    """A held-out row that some candidates get right in most seeds and others do not."""

    rows: str  # name of the held-out rows
    row: int  # number in that file, from 1
    right: tuple[str, ...]  # labels of the candidates that get it right
    wrong: tuple[str, ...]  # of the others
    text: str | None = None  # the row itself, if it is to be shown
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
        rows.append(_disagreement(candidates, is_right[:, index], results.rows[index]))
    return rows


def _disagreement(
    candidates: Sequence[CandidateResult], is_right: Iterable[bool], row: RowKey
) -> Disagreement:
    """Who gets a row right and who does not; ``is_right`` says it of each candidate."""
    right, wrong = list[str](), list[str]()
    for candidate, gets_it_right in zip(candidates, is_right, strict=True):
        if gets_it_right:
            right.append(candidate.label)
        else:
            wrong.append(candidate.label)
    return Disagreement(*row, tuple(right), tuple(wrong))


def shown_name(results: Results, rows_name: str) -> str:
    """What a reader calls some held-out rows: their file, or the share of the file of all rows."""
    data = results.asked.recipe.get("data")
    if data and rows_name.endswith("%"):
        return f"{rows_name} of {file_names(data).removeprefix(BUILTIN)}"
    return Path(rows_name).name
