"""Runs a table's jobs that have no result yet, and lays out its results as a page."""

from collections.abc import Callable, Iterable
from typing import Any

from lorada.experiments.estimate import estimate
from lorada.experiments.table_runs import Job, carry_out, delete_runs, done
from lorada.experiments.table_spec import PaperTable, Scale, TableRow
from lorada.report.page import Results, Row, paper_page
from lorada.report.render import Page, published
from lorada.support.progress import progress_bar


def run_all(
    found: list[Job],
    scale: Scale,
    *,
    report: Callable[[str], None],
    resume: bool,
    overwrite: bool,
) -> list[dict[str, Any]]:
    """Run the jobs that have no result yet, and return the results of all jobs in order.

    ``resume`` keeps the results that exist, ``overwrite`` deletes them first.

    Raises:
        ValueError: if there are results and neither ``resume`` nor ``overwrite`` is given.
    """
    stored = [job.stored for job in found if job.stored.is_file()]
    if stored and not (resume or overwrite):
        raise ValueError(f"{stored[0]} is there already: use --resume, --overwrite or --results")
    known = [None if overwrite else done(job) for job in found]
    todo = [job for job, result in zip(found, known, strict=True) if result is None]
    for job in progress_bar(todo, "Counting parameters"):
        estimate(job, scale)  # fails for a row that cannot be built, before any row is trained
    if overwrite:
        delete_runs(todo)
    complete = []
    for job, result in zip(found, known, strict=True):
        if result is None:
            report(f"{todo.index(job) + 1} of {len(todo)}")
            result = carry_out(job, report=report)
        complete.append(result)
    return complete


def page_of(
    chosen: PaperTable, scale: Scale, kept: Iterable[tuple[TableRow, Results]], *, every: bool
) -> Page:
    """The page of rows and their results; with ``every`` also the rows that only the paper has."""
    rows = page_rows(kept)
    scored = {t for row in rows for r in row.results for t in r["recipe"]["task"].split(",")}
    named = {row.key for row in chosen.rows}
    others = [r["key"] for r in published(chosen.table)["rows"] if r["key"] not in named]
    return paper_page(
        chosen.table,
        f"Table {chosen.table}: {chosen.title} ({scale} scale)",
        rows,
        chosen.columns_of([task for task in chosen.tasks if task in scored]),
        mean=chosen.mean,
        digits=chosen.digits,
        notes=[*chosen.notes, *(chosen.differs if scale == "local" else [])],
        unrun=others if every else [],
    )


def page_rows(kept: Iterable[tuple[TableRow, Results]]) -> list[Row]:
    """The rows of a page; pairs with the same row become one row with the results of all."""
    rows: dict[str, Row] = {}
    for row, results in kept:
        before = rows[row.key].results if row.key in rows else []
        rows[row.key] = Row(row.key, row.label, [*before, *results])
    return list(rows.values())
