"""Renders a table of the paper, our scores beside the published ones, as Markdown, CSV and LaTeX.

Each number is a mean over seeds with its spread, from ``result.json`` files.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lorada.support.metric_names import main_metric
from lorada.support.tables import NOTHING, csv_table, latex_table, markdown_table

NOT_FROM_THE_PAPER = "not from the paper"  # how a result's ``settings_from`` begins if they are not
TEXTS = 3  # columns before the numbers
MEAN = "mean"
AVERAGE = "avg"  # the name of the paper's own column of means

Columns = dict[str, tuple[str, str | None]]  # name → (task, metric), None for the first metric


@dataclass(frozen=True)
class TableLine:
    """One line of a page: a row as published, or as measured.

    Attributes:
        label: the row.
        source: ``paper`` or ``ours``.
        percent: trained parameters in percent of the base, or as published.
        scores: column (or ``MEAN``) → one number per seed, or the published number.
        spread: column → published standard deviation.
        minutes: of training, summed over runs.
    """

    label: str
    source: str
    percent: str
    scores: dict[str, list[float]]
    spread: dict[str, float] = field(default_factory=dict)
    minutes: float | None = None


@dataclass(frozen=True)
class Page:
    """A table with notes on what was compared.

    Attributes:
        columns: names of scores, means included.
        digits: decimal places.
        notes: sentences above the table.
    """

    title: str
    columns: list[str]
    lines: list[TableLine]
    notes: list[str]
    digits: int = 1


@cache
def published(number: int) -> dict[str, Any]:
    """The published numbers of a table: ``columns`` and ``rows``."""
    path = Path(__file__).with_name("published.yaml")
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))[number]
    return found


def has_models(number: int) -> bool:
    """Whether a published table has rows of several models."""
    return len({row.get("model") for row in published(number)["rows"]}) > 1


def published_line(number: int, key: str, averaged: Sequence[str] = ()) -> TableLine | None:
    """A published row by its key; None if the paper has no such row.

    Its mean is over the columns ``averaged``, or the printed one if the paper prints only a mean.
    """
    table = published(number)
    row = next((row for row in table["rows"] if row["key"] == key), None)
    if row is None:
        return None
    scores = {c: [s] for c, s in zip(table["columns"], row["scores"], strict=True) if s is not None}
    spread = dict(zip(table["columns"], row.get("std") or [], strict=False))
    spread = {c: s for c, s in spread.items() if s is not None}
    if set(scores) == {AVERAGE}:
        scores[MEAN] = scores[AVERAGE]
        spread |= {MEAN: spread[AVERAGE]} if AVERAGE in spread else {}
    elif averaged and all(name in scores for name in averaged):
        scores[MEAN] = [statistics.fmean(scores[name][0] for name in averaged)]
    label = row["label"]
    if has_models(number) and row["model"] != label:
        label = f"{row['model']}, {label}"
    return TableLine(label, "paper", _percent(row["params"]), scores, spread)


def _percent(printed: Any) -> str:
    text = str(printed)
    return text if text in ("-", NOTHING) or not text[-1].isdigit() else f"{text}%"


def measured_line(
    label: str,
    results: Sequence[dict[str, Any]],
    columns: Columns,
    averaged: Sequence[str] = (),
) -> TableLine:
    """The measured line of a row, from the results of all its seeds and tasks.

    Its mean is over the columns ``averaged``, seed by seed.
    """
    by_seed: dict[int, dict[str, float]] = {}
    for result in sorted(results, key=lambda r: int(r["seed"])):
        found = by_seed.setdefault(result["seed"], {})
        for name, (task, metric) in columns.items():
            metrics = result["metrics"].get(task, {})
            # Some columns exist at one scale only, such as a length in tokens.
            if metrics and (metric is None or metric in metrics):
                found[name] = _score(metrics, metric)
    every = [(name, [f[name] for f in by_seed.values() if name in f]) for name in columns]
    scores = {name: values for name, values in every if values}
    whole = [f for f in by_seed.values() if averaged and all(name in f for name in averaged)]
    if whole:
        scores[MEAN] = [statistics.fmean(f[name] for name in averaged) for f in whole]
    shares = {f"{r['parameters']['percent']:.3f}%" for r in results}
    minutes = sum(r["wall_time_s"] for r in results) / 60 if results else None
    percent = " / ".join(sorted(shares)) or NOTHING
    if any(r.get("settings_from", "").startswith(NOT_FROM_THE_PAPER) for r in results):
        label = f"{label} (settings {NOT_FROM_THE_PAPER})"
    return TableLine(label, "ours", percent, scores, minutes=minutes)


def _score(metrics: dict[str, Any], name: str | None) -> float:
    return float(metrics[name or main_metric(metrics)])


def _cell(page: Page, line: TableLine, name: str) -> str:
    values = line.scores.get(name)
    if not values:
        return NOTHING
    text = f"{statistics.fmean(values):.{page.digits}f}"
    spread = line.spread.get(name)
    if len(values) > 1:
        spread = statistics.stdev(values)
    return text if spread is None else f"{text} ± {spread:.{page.digits}f}"


def cells(page: Page, line: TableLine) -> list[str]:
    """The cells of a line."""
    cells = [line.label, line.source, line.percent]
    cells += [_cell(page, line, name) for name in page.columns]
    return [*cells, NOTHING if line.minutes is None else f"{line.minutes:.1f}"]


def header_of(page: Page) -> list[str]:
    """The names of all columns."""
    return ["method", "from", "trained", *page.columns, "minutes"]


def markdown(page: Page) -> str:
    """The page as a Markdown section."""
    lines = [f"## {page.title}", "", *(f"- {note}" for note in page.notes), ""]
    lines += markdown_table(header_of(page), [cells(page, line) for line in page.lines], TEXTS)
    return "\n".join([*lines, ""])


def comma_separated(page: Page) -> str:
    """The page as CSV: one line for each number, with every seed's value."""
    rows: list[list[object]] = []
    for line in page.lines:
        for name in page.columns:
            values = line.scores.get(name)
            if not values:
                continue
            std = statistics.stdev(values) if len(values) > 1 else line.spread.get(name, "")
            every = " ".join(f"{v:.4f}" for v in values) if line.source == "ours" else ""
            mean = statistics.fmean(values)
            rows.append([line.label, line.source, line.percent, name, mean, std, every])
    return csv_table(["method", "from", "trained", "column", "mean", "std", "values"], rows)


def latex(page: Page) -> str:
    """The page as a LaTeX ``tabular``, with the notes as comments above it."""
    rows = [cells(page, line) for line in page.lines]
    return latex_table(header_of(page), rows, TEXTS, page.notes)
