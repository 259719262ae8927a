"""The lines of a table's page: rows as published, as measured, and what they are set beside."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lorada.methods.provenance import NOT_FROM_THE_PAPER
from lorada.paper.beside_scores import error_of_mean, score_in, standard_error
from lorada.paper.table_spec import PaperTable, ScoreColumn
from lorada.runs.result import RowsMetrics, RunResult
from lorada.support.metric_names import main_metric
from lorada.support.tables import NOTHING

MEAN = "mean"
AVERAGE = "avg"  # the name of the paper's own column of means

Results = Sequence[RunResult]
Columns = dict[str, ScoreColumn]  # by the column's name


@dataclass(frozen=True)
class TableLine:
    """One line of a page: a row as published, or as measured."""

    label: str
    source: str  # ``paper``, ``ours``, or ``rows`` for what follows from the scored rows alone
    percent: str  # trained parameters in percent of the base, or as published
    scores: dict[str, list[float]]  # column (or ``MEAN``) → one number per seed, or the published
    spread: dict[str, float] = field(default_factory=dict)  # column → published standard deviation
    minutes: float | None = None  # of training, summed over runs


@cache
def load_published(number: int) -> dict[str, Any]:
    """The published numbers of a table: ``columns`` and ``rows``."""
    path = Path(__file__).with_name("published.yaml")
    tables: dict[int, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tables[number]


def has_models(number: int) -> bool:
    """Whether a published table has rows of several models."""
    models = {row.get("model") for row in load_published(number)["rows"]}
    return len(models) > 1


def keys_in_paper_alone(table: PaperTable) -> list[str]:
    """The keys of the rows that only the paper has, such as ChatGPT's."""
    runnable = {row.key for row in table.rows}
    rows = load_published(table.table)["rows"]
    return [row["key"] for row in rows if row["key"] not in runnable]


def published_line(number: int, key: str, averaged: Sequence[str] = ()) -> TableLine | None:
    """A published row by its key; None if the paper has no such row.

    Its mean is over the columns ``averaged``, or the printed one if the paper prints only a mean.
    """
    table = load_published(number)
    row = next((row for row in table["rows"] if row["key"] == key), None)
    if row is None:
        return None
    # The paper leaves cells empty, and most of its tables print no spread.
    numbers = _without_gaps(table["columns"], row["scores"])
    spread = _without_gaps(table["columns"], row.get("std") or [None] * len(row["scores"]))
    scores = {name: [score] for name, score in numbers.items()}
    if set(scores) == {AVERAGE}:
        scores[MEAN] = scores[AVERAGE]
        if AVERAGE in spread:
            spread[MEAN] = spread[AVERAGE]
    else:
        mean = _mean_over(averaged, numbers)
        if mean is not None:
            scores[MEAN] = [mean]

    label = row["label"]
    if has_models(number) and row["model"] != label:
        label = f"{row['model']}, {label}"
    share = row["params"]
    if share[-1].isdigit():  # others are a count, as 3.5M, or a dash
        share += "%"
    return TableLine(label, "paper", share, scores, spread)


def _without_gaps(columns: Sequence[str], cells: Sequence[float | None]) -> dict[str, float]:
    """The cells of a row that have a number, by column."""
    numbers = {}
    for name, number in zip(columns, cells, strict=True):
        if number is not None:
            numbers[name] = number
    return numbers


def _mean_over(averaged: Sequence[str], scores: Mapping[str, float]) -> float | None:
    """The mean of some columns; None where there are none, or one has no score."""
    if not averaged or any(name not in scores for name in averaged):
        return None
    return statistics.fmean(scores[name] for name in averaged)


def measured_line(
    label: str, results: Results, columns: Columns, averaged: Sequence[str] = ()
) -> TableLine:
    """The measured line of a row, from the results of all its seeds and tasks.

    Its mean is over the columns ``averaged``, seed by seed.
    """
    by_seed = _scores_by_seed(results, columns)
    scores: dict[str, list[float]] = {}
    for name in columns:
        values = [seed_scores[name] for seed_scores in by_seed if name in seed_scores]
        if values:
            scores[name] = values
    # The spread of the mean is that of the seeds' means, so each seed has one of its own.
    means = [_mean_over(averaged, seed_scores) for seed_scores in by_seed]
    complete = [mean for mean in means if mean is not None]
    if complete:
        scores[MEAN] = complete

    minutes = None
    if results:
        minutes = sum(result.wall_time_s for result in results) / 60
    shares = {f"{result.parameters.percent:.3f}%" for result in results}
    percent = " / ".join(sorted(shares)) or NOTHING
    if any(NOT_FROM_THE_PAPER in result.settings_from for result in results):
        label = f"{label} (settings {NOT_FROM_THE_PAPER})"
    return TableLine(label, "ours", percent, scores, minutes=minutes)


def _scores_by_seed(results: Results, columns: Columns) -> list[dict[str, float]]:
    """For each seed, in order, the scores by column; its tasks may be results of their own."""
    by_seed: dict[int, dict[str, float]] = {}
    for result in sorted(results, key=lambda result: result.seed):
        seed_scores = by_seed.setdefault(result.seed, {})
        for name, column in columns.items():
            metrics = result.metrics.get(column.task)
            if metrics is None:
                continue
            # Some columns exist at one scale only, such as a length in tokens.
            score = score_in(metrics.scores, column.metric)
            if score is not None:
                seed_scores[name] = score
    return list(by_seed.values())


def row_lines(
    table: PaperTable, key: str, results: Results, columns: Columns, averaged: Sequence[str]
) -> Iterator[TableLine]:
    """A row as published, if it is, and as measured, if it was run."""
    published = published_line(table.table, key, averaged)
    if published is not None:
        yield published
    if results:
        (row,) = (row for row in table.rows if row.key == key)
        label = key if has_models(table.table) else row.label  # the key names the paper's model
        yield measured_line(label, results, columns, averaged)


def reference_lines(
    results: Results, columns: Columns, averaged: Sequence[str]
) -> Iterator[TableLine]:
    """What the commonest answer scores, and the standard error that the number of rows gives."""
    guesses: dict[str, float] = {}
    errors: dict[str, float] = {}
    for name, column in columns.items():
        for result in results:
            guess = score_in(result.guessing.get(column.task, {}), column.metric)
            if guess is not None:
                guesses[name] = guess
            error = _error_of_score(result.metrics.get(column.task), column.metric)
            if error is not None:
                # Rows of the table differ in score, and so in their error: the largest is said.
                errors[name] = max(error, errors.get(name, 0.0))
    mean_guess = _mean_over(averaged, guesses)
    if mean_guess is not None:
        guesses[MEAN] = mean_guess
    mean_error = error_of_mean(errors.get(name) for name in averaged)
    if mean_error is not None:
        errors[MEAN] = mean_error
    if guesses:
        yield _reference_line("the commonest answer alone", guesses)
    if errors:
        yield _reference_line("standard error by the number of rows", errors)


def _error_of_score(metrics: RowsMetrics | None, metric: str | None) -> float | None:
    """The standard error of a score that its number of rows gives, where it is known."""
    if metrics is None:
        return None
    score = score_in(metrics.scores, metric)
    if score is None:
        return None
    return standard_error(metric or main_metric(metrics.scores), score, metrics.n)


def _reference_line(label: str, numbers: Mapping[str, float]) -> TableLine:
    """A line of numbers that no training gave."""
    scores = {name: [number] for name, number in numbers.items()}
    return TableLine(label, "rows", NOTHING, scores)
