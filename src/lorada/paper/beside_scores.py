"""What a score has to be set beside: its standard error by its rows alone, and what guessing gets.

A test set of 143 rows gives any score near a half a standard error of 4.2 points, whatever was
trained, and the commonest answer alone is right on half of its rows or more.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lorada.data.rows.benchmark_rows import scored_rows
from lorada.data.rows.rows import Rows
from lorada.data.scoring.commonest_answer import repeated_answer
from lorada.runs.recipe import Recipe
from lorada.support.metric_names import main_metric
from lorada.training.models.loading import kind_of, load_config

# Metrics that are a share of right rows, and those that are correlations. The variance over rows of
# any other, such as F1 or BLEU, does not follow from the score and the number of rows.
SHARES = ("accuracy", "exact", "exact_match", "quanta_one_sided")
CORRELATIONS = ("matthews", "pearson", "spearman")


def standard_error(metric: str, score: float, rows: int) -> float | None:
    """The standard error of a score that its number of rows gives; None where it is unknown."""
    share = score / 100
    if metric in SHARES:
        return 100 * math.sqrt(share * (1 - share) / rows)
    if metric in CORRELATIONS:
        return 100 * (1 - share**2) / math.sqrt(rows)
    return None


def error_of_mean(errors: Iterable[float | None]) -> float | None:
    """The standard error of the mean of columns with these standard errors."""
    total = 0.0
    count = 0
    for error in errors:
        if error is None:
            return None  # one column whose error is unknown leaves that of the mean unknown
        total += error**2
        count += 1
    if count == 0:
        return None
    return math.sqrt(total) / count


def guessing_scores(
    recipe: Recipe, form: Any, labels: Iterable[str]
) -> dict[str, dict[str, float | None]]:
    """The metrics of always giving the commonest answer, by task, on the rows that are scored.

    Tasks whose answers are all different, such as translations, are left out.
    """
    kind = kind_of(load_config(recipe.model))
    guessing = {}
    for task, rows in scored_rows(recipe, form, tuple(labels), kind).items():
        metrics = _score_guessing(rows)
        if metrics:
            guessing[task] = metrics
    return guessing


def _score_guessing(rows: Rows) -> dict[str, float | None]:
    """The metrics of the commonest answer; empty where none is common."""
    answer = repeated_answer(rows)
    if answer is None:
        return {}
    metrics = rows.protocol.score([answer] * len(rows.rows), rows.rows)
    # A constant has no correlation, which is as good as one of 0.
    return {name: value or 0.0 for name, value in metrics.items()}


def score_in(metrics: Mapping[str, float | None], metric: str | None) -> float | None:
    """A metric of a task, its main one for None; None where it is not there."""
    if not metrics:
        return None
    value = metrics.get(metric or main_metric(metrics))
    if value is None:
        return None
    return float(value)
