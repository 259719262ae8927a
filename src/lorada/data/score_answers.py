"""Scores answers to rows: those of a model, or one answer that is given to every row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.data.metrics import (
    answer_classes,
    are_classes,
    class_scores,
    exact_match,
    fits,
    row_metrics,
    row_value,
    weighted_by_class,
)
from lorada.data.rows import Rows
from lorada.data.task import Metrics
from lorada.data.tasks import TASKS
from lorada.runs.recipe import JSONL
from lorada.support.metric_names import CLASS_METRICS


@dataclass(frozen=True)
class AnswerScores:
    """What answers to rows score, without their losses."""

    metrics: Metrics  # of all rows; those that were asked for first
    by_row: list[dict[str, float]]  # of each row, in their order


def are_own(rows: Rows) -> bool:
    """Whether rows are a user's own, which may be scored by a metric that the user names."""
    return rows.protocol in TASKS[JSONL].protocols.values()


def metric_names_for(rows: Rows, metrics: Sequence[str]) -> list[str]:
    """Those of some metrics that rows can be scored by; benchmarks have their own."""
    return [metric for metric in metrics if are_own(rows) and fits(metric, rows.form)]


def score_answers(rows: Rows, answers: Sequence[Any], metrics: Sequence[str] = ()) -> AnswerScores:
    """Score the answer to each row, by the metrics of its protocol and by those asked for.

    ``metrics`` are names that the rows can be scored by, or code of a user's file, which runs here.
    Texts that name one of a few classes are scored as a classifier is, too.
    """
    answers = list(answers)
    by_row = row_metrics(rows.protocol, answers, rows.rows)
    for metric in metrics:
        _add_metric(metric, by_row, rows, answers)
    if rows.protocol.score is exact_match:
        found = _scores_of_texts(rows, answers, by_row, metrics)
    else:
        found = rows.protocol.score(answers, rows.rows)
    names = [Path(metric).name for metric in metrics]
    first = {name: found[name] for name in names if name in found}  # the loss is not among them
    return AnswerScores({**first, **found}, by_row)


def _add_metric(
    metric: str, by_row: list[dict[str, float]], rows: Rows, answers: list[Any]
) -> None:
    """Add a metric that is computed only where it is asked for to the scores of each row."""
    value_of = row_value(metric)
    if value_of is None:
        return
    for index, answer in enumerate(answers):
        value = value_of(answer, rows.rows[index], rows.as_read(index))
        by_row[index][Path(metric).name] = value


def _scores_of_texts(
    rows: Rows, answers: list[str], by_row: list[dict[str, float]], metrics: Sequence[str]
) -> Metrics:
    """The means over rows, and how each class is found where the right answers are classes."""
    given, right = answer_classes(answers, rows.rows)
    classes = are_classes(right)
    by_class: Metrics = {}
    if classes or set(metrics) & set(CLASS_METRICS):
        by_class = class_scores(given, right)
        exact = [scores["exact_match"] for scores in by_row]
        for scores, value in zip(by_row, weighted_by_class(exact, right), strict=True):
            scores["balanced_accuracy"] = value
    if not classes:  # the recall of each answer that nobody else gives says nothing
        by_class = {name: by_class[name] for name in CLASS_METRICS if name in by_class}
    means = {name: sum(scores[name] for scores in by_row) / len(by_row) for name in by_row[0]}
    return {**means, **by_class}
