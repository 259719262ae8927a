"""The scores of answers to the held-out rows, in the form that baselines are kept in."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from lorada.compare.stored_plan import RowScores
from lorada.data.rows.rows import Rows
from lorada.data.scoring.score_answers import metric_names_for, score_answers


def scores_of(
    held_out: Sequence[Rows], answers_to: Callable[[Rows], Sequence[Any]], metric: str | None
) -> RowScores:
    """The scores of each held-out row: of one file after the other, by the rows' numbers.

    Args:
        held_out: the rows of each name.
        answers_to: gives the answers to some rows, in their order.
        metric: what answers are scored by besides the metrics that cost nothing, if anything is.
    """
    by_row: list[dict[str, float]] = []
    for rows in held_out:
        # Predictions are in the order of the rows' numbers, and so must these be.
        ordered = rows.by_number()
        metrics = metric_names_for(ordered, [] if metric is None else [metric])
        by_row += score_answers(ordered, answers_to(ordered), metrics).by_row
    return columns(by_row)


def scores_of_stored(
    held_out: Sequence[Rows], answers: Sequence[str], metric: str | None
) -> RowScores:
    """The same of answers to all rows, in the order of the rows' scores."""
    remaining = iter(answers)
    return scores_of(held_out, lambda rows: list(islice(remaining, len(rows.rows))), metric)


def columns(by_row: Sequence[Mapping[str, float | None]]) -> RowScores:
    """The metrics of rows by name, each with its values in the rows' order.

    A metric that some row does not have is left out.
    """
    row_scores: RowScores = {}
    for name in by_row[0]:
        if all(name in metrics for metrics in by_row):
            row_scores[name] = [metrics[name] for metrics in by_row]
    return row_scores
