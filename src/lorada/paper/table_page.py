"""A table of the paper as a page: our scores beside the published ones, as Markdown.

Each number is a mean over seeds with its spread, from ``result.json`` files.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from lorada.paper.page_notes import page_notes
from lorada.paper.table_lines import (
    MEAN,
    Results,
    TableLine,
    keys_in_paper_alone,
    reference_lines,
    row_lines,
)
from lorada.paper.table_spec import PaperTable, Scale, TableRow
from lorada.runs.result import RunResult
from lorada.support.tables import NOTHING, markdown_table

TEXT_COLUMNS = 3  # columns before the numbers


@dataclass(frozen=True)
class Page:
    """A table with notes on what was compared."""

    title: str
    columns: list[str]  # names of scores, means included
    lines: list[TableLine]
    notes: list[str]  # sentences above the table
    digits: int = 1  # decimal places


class _ScoredRows(NamedTuple):
    """The rows of a task that a run was scored on."""

    sha256: str
    run: str  # in words


def make_page(
    table: PaperTable, scale: Scale, stored: Iterable[tuple[TableRow, RunResult]], *, every: bool
) -> Page:
    """The page of results and their rows; with ``every`` also the rows that only the paper has."""
    by_row: dict[str, list[RunResult]] = {}
    for row, result in stored:
        by_row.setdefault(row.key, []).append(result)
    _refuse_other_rows(by_row)
    results: list[RunResult] = []
    for row_results in by_row.values():
        results += row_results

    columns = table.columns_of(_scored_tasks(table, results))
    averaged = [name for name in columns if table.mean is None or name in table.mean]
    suffixes = _column_suffixes(by_row)
    # Each protocol has all columns once, side by side.
    protocols = list(dict.fromkeys(suffixes.values()))
    keys = list(by_row)
    if every:
        keys = keys_in_paper_alone(table) + keys
    lines = []
    for key in keys:
        # A row that only the paper has stands in the first columns.
        suffix = suffixes.get(key, protocols[0])
        for line in row_lines(table, key, by_row.get(key, []), columns, averaged):
            lines.append(_with_suffix(line, suffix))
    for suffix in protocols:
        of_protocol: list[RunResult] = []
        for key, row_results in by_row.items():
            if suffixes[key] == suffix:
                of_protocol += row_results
        for line in reference_lines(of_protocol, columns, averaged):
            lines.append(_with_suffix(line, suffix))

    names = list(columns)
    if averaged:
        names.append(MEAN)
    all_names: list[str] = []
    for suffix in protocols:
        all_names += [name + suffix for name in names]
    return Page(
        title=f"Table {table.table}: {table.title} ({scale} scale)",
        columns=all_names,
        lines=lines,
        notes=page_notes(table, scale, results, columns, averaged, lines),
        digits=table.digits,
    )


def _scored_tasks(table: PaperTable, results: Results) -> list[str]:
    """The tasks that any run has learned, in the table's order."""
    learned: set[str] = set()
    for result in results:
        learned |= set(result.task.split(","))
    return [task for task in table.tasks if task in learned]


def _column_suffixes(rows: Mapping[str, Results]) -> dict[str, str]:
    """What the names of a row's columns end with: its protocol, where rows differ in that."""
    protocols = {key: _protocol_of(results[0]) for key, results in rows.items()}
    if len(set(protocols.values())) <= 1:
        return dict.fromkeys(protocols, "")
    return {key: f" ({protocol})" for key, protocol in protocols.items()}


def _protocol_of(result: RunResult) -> str | None:
    return None if result.recipe is None else result.recipe.protocol


def _with_suffix(line: TableLine, suffix: str) -> TableLine:
    """A line whose columns have longer names."""
    scores = {name + suffix: values for name, values in line.scores.items()}
    spread = {name + suffix: deviation for name, deviation in line.spread.items()}
    return replace(line, scores=scores, spread=spread)


def _refuse_other_rows(rows: Mapping[str, Results]) -> None:
    """Refuse results that were scored on different rows of one task."""
    # The first run of a protocol and a task says which rows the others must have.
    first: dict[tuple[str | None, str], _ScoredRows] = {}
    for key, results in rows.items():
        for result in results:
            run = f"{key}, seed {result.seed}"
            protocol = _protocol_of(result)
            for task, metrics in result.metrics.items():
                sha256 = str(metrics.sha256)
                expected = first.setdefault((protocol, task), _ScoredRows(sha256, run))
                if expected.sha256 != sha256:
                    raise ValueError(
                        f"{task} was scored on other rows in {run} than in {expected.run}: "
                        "run one of them again with --overwrite"
                    )


def column_headers(page: Page) -> list[str]:
    """The names of all columns."""
    return ["method", "from", "trained", *page.columns, "minutes"]


def format_cells(page: Page, line: TableLine) -> list[str]:
    """The cells of a line."""
    scores = [_format_score(page, line, name) for name in page.columns]
    minutes = NOTHING
    if line.minutes is not None:
        minutes = f"{line.minutes:.1f}"
    return [line.label, line.source, line.percent, *scores, minutes]


def _format_score(page: Page, line: TableLine, name: str) -> str:
    """The mean of a column over seeds with its spread, ours or the published one."""
    values = line.scores.get(name)
    if not values:
        return NOTHING
    mean = f"{statistics.fmean(values):.{page.digits}f}"
    spread = line.spread.get(name)
    if len(values) > 1:
        spread = statistics.stdev(values)
    if spread is None:
        return mean
    return f"{mean} ± {spread:.{page.digits}f}"


def format_markdown(page: Page) -> str:
    """The page as a Markdown section."""
    rows = [format_cells(page, line) for line in page.lines]
    lines = [f"## {page.title}", ""]
    lines += [f"- {note}" for note in page.notes]
    lines.append("")
    lines += markdown_table(column_headers(page), rows, TEXT_COLUMNS)
    return "\n".join([*lines, ""])
