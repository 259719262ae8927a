"""Runs a table's jobs that have no result yet, and lays out its results as a page."""

from collections.abc import Callable, Iterable
from typing import Any

from lorada.compare.jobs.engine import Workers
from lorada.compare.jobs.job import JobEngine, Outcome
from lorada.compare.jobs.queue import run_queue, shard
from lorada.paper.estimate import estimate
from lorada.paper.page import Results, RowResults, paper_page
from lorada.paper.render import Page, published
from lorada.paper.table_runs import TableJob, delete_runs, is_done, usable_result
from lorada.paper.table_spec import PaperTable, Scale, TableRow
from lorada.support.progress import progress_bar


def run_all(
    found: list[TableJob],
    scale: Scale,
    *,
    report: Callable[[str], None],
    resume: bool,
    overwrite: bool,
    engine: JobEngine | None = None,
    part: tuple[int, int] | None = None,
) -> tuple[list[dict[str, Any] | None], dict[str, Outcome]]:
    """Run the jobs that have no result yet.

    ``resume`` keeps the results that exist, ``overwrite`` deletes them first. ``engine`` runs one
    job after another if it is not given. ``part`` (i, n) runs the i-th of n parts of the jobs.

    Returns:
        The stored result of each job in order, None where there is none; and what became of each
        job that was to be run, by its name.

    Raises:
        ValueError: if there are results and neither ``resume`` nor ``overwrite`` is given.
    """
    mine = part_of(found, part)
    stored = [job.stored for job in mine if job.stored.is_file()]
    if stored and not (resume or overwrite):
        raise ValueError(f"{stored[0]} is there already: use --resume, --overwrite or --results")
    todo = mine if overwrite else [job for job in mine if not is_done(job)]
    for job in progress_bar(todo, "Counting parameters"):
        estimate(job, scale)  # fails for a row that cannot be built, before any row is trained
    if overwrite:
        delete_runs(todo)
    queue = [job.in_queue() for job in mine]
    outcomes = run_queue(queue, engine or Workers(), report=report)
    return [usable_result(job, report) for job in found], outcomes


def part_of(found: list[TableJob], part: tuple[int, int] | None) -> list[TableJob]:
    """The i-th of n parts (i, n) of a table's jobs; all if no part is given."""
    if part is None:
        return found
    chosen = {job.name for job in shard([job.in_queue() for job in found], *part)}
    return [job for job in found if job.in_queue().name in chosen]


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


def page_rows(kept: Iterable[tuple[TableRow, Results]]) -> list[RowResults]:
    """The rows of a page; pairs with the same row become one row with the results of all."""
    rows: dict[str, RowResults] = {}
    for row, results in kept:
        before = rows[row.key].results if row.key in rows else []
        rows[row.key] = RowResults(row.key, row.label, [*before, *results])
    return list(rows.values())
