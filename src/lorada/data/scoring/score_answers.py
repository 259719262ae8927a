"""Scores answers to rows: those of a model, or one answer that is given to every row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.data.rows.rows import Rows
from lorada.data.scoring.metrics import (
    answer_classes,
    are_classes,
    class_scores,
    exact_match,
    weighted_by_class,
)
from lorada.data.scoring.row_metrics import RowScores, fits, row_metrics, row_value
from lorada.data.task import Metrics
from lorada.data.tasks import TASKS
from lorada.runs.recipe import JSONL
from lorada.support.metric_names import CLASS_METRICS


@dataclass(frozen=True)
class AnswerScores:
    """What answers to rows score, without their losses."""

    metrics: Metrics  # of all rows; those that were asked for first
    by_row: list[RowScores]  # of each row, in their order


def are_own(rows: Rows) -> bool:
    """Whether rows are a user's own, which may be scored by a metric that the user names."""
    return rows.protocol in TASKS[JSONL].protocols.values()


def metric_names_for(rows: Rows, metrics: Sequence[str]) -> list[str]:
    """Those of some metrics that rows can be scored by; benchmarks have their own."""
    if not are_own(rows):
        return []
    return [metric for metric in metrics if fits(metric, rows.form)]


def score_answers(rows: Rows, answers: Sequence[Any], metrics: Sequence[str] = ()) -> AnswerScores:
    """Score the answer to each row, by the metrics of its protocol and by those asked for.

    ``metrics`` are names that the rows can be scored by, or code of a user's file, which runs here.
    Texts that name one of a few classes are scored as a classifier is, too.

    Raises:
        ValueError: if the user's code fails, or gives no finite number.
    """
    answers = list(answers)
    by_row = row_metrics(rows.protocol, answers, rows.rows)
    for metric in metrics:
        _add_metric(metric, by_row, rows, answers)
    if rows.protocol.score is exact_match:
        scores = _score_texts(rows, answers, by_row, metrics)
    else:
        scores = rows.protocol.score(answers, rows.rows)
    # A table shows the first, so those that were asked for are; a loss is measured elsewhere.
    names = [Path(metric).name for metric in metrics]
    asked_scores = {name: scores[name] for name in names if name in scores}
    return AnswerScores({**asked_scores, **scores}, by_row)


def _add_metric(metric: str, by_row: list[RowScores], rows: Rows, answers: list[Any]) -> None:
    """Add a metric that is computed only where it is asked for to the scores of each row."""
    value_of = row_value(metric)
    if value_of is None:  # it is there already
        return
    for index, answer in enumerate(answers):
        value = value_of(answer, rows.rows[index], rows.as_read(index))
        by_row[index][Path(metric).name] = value


def _score_texts(
    rows: Rows, answers: list[str], by_row: list[RowScores], metrics: Sequence[str]
) -> Metrics:
    """The means over rows, and how each class is found where the right answers are classes.

    The rows' scores get ``balanced_accuracy`` here, as a row's weight needs the classes of all.
    """
    predicted, targets = answer_classes(answers, rows.rows)
    has_classes = are_classes(targets)
    scores_of_classes: Metrics = {}
    if has_classes or set(metrics) & set(CLASS_METRICS):
        scores_of_classes = class_scores(predicted, targets)
        exact = [scores["exact_match"] for scores in by_row]
        for scores, weighted in zip(by_row, weighted_by_class(exact, targets), strict=True):
            scores["balanced_accuracy"] = weighted
    if not has_classes:  # the recall of each answer that nobody else gives says nothing
        scores_of_classes = {
            name: scores_of_classes[name] for name in CLASS_METRICS if name in scores_of_classes
        }
    means = {}
    for name in by_row[0]:
        means[name] = sum(scores[name] for scores in by_row) / len(by_row)
    return {**means, **scores_of_classes}
