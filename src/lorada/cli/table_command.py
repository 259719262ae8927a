"""The command ``table``: runs a table of the paper and prints it beside the published scores."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lorada.cli.app import (
    DataDir,
    Json,
    app,
    console,
    errors,
    importing,
    print_json,
    prints_to_stderr,
    suggest,
)
from lorada.cli.dry_run import show_table
from lorada.cli.queue_options import (
    AUTO,
    Cluster,
    GpusPerJob,
    Shard,
    Workers,
    check_outcomes,
    check_queue,
    split_names,
    split_seeds,
)
from lorada.cli.terminal import page_table
from lorada.support.files import write_atomic


@app.command()
def table(
    number: Annotated[int, typer.Argument(help="number of the table in the paper")],
    scale: Annotated[
        str | None, typer.Option(help="paper or local; local where there is no GPU")
    ] = None,
    rows: Annotated[str | None, typer.Option(help="keys or methods, with commas")] = None,
    tasks: Annotated[str | None, typer.Option(help="names, with commas")] = None,
    seeds: Annotated[str | None, typer.Option(help="numbers, with commas")] = None,
    dry_run: Annotated[bool, typer.Option(help="only say what would be run")] = False,
    resume: Annotated[bool, typer.Option(help="run only what has no result yet")] = False,
    overwrite: Annotated[bool, typer.Option(help="delete results first, and run again")] = False,
    results: Annotated[Path, typer.Option(help="where results are kept")] = Path("docs/results"),
    output: Annotated[Path, typer.Option(help="where the runs are")] = Path("runs"),
    workers: Workers = AUTO,
    gpus_per_job: GpusPerJob = 1.0,
    cluster: Cluster = None,
    shard: Shard = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run the rows of one of the paper's tables, and print them beside the published scores."""
    if number in (2, 3):
        _show_costs(number, as_json=as_json)
        return
    pool, part = check_queue(workers, gpus_per_job, cluster, shard)
    chosen = check_table(f"table{number}", scale, data_dir, resume=resume, overwrite=overwrite)
    of_rows, of_tasks = split_names("rows", rows), split_names("tasks", tasks)
    of_seeds = split_seeds(seeds)
    chosen.rows_named(of_rows)
    chosen.tasks_at("paper", of_tasks)
    with importing(quiet=as_json):
        from lorada.paper.page import page_of
        from lorada.paper.table_runs import jobs, part_of, run_all

        at = scale_named(scale)
    found = jobs(
        chosen, at, rows=of_rows, tasks=of_tasks, seeds=of_seeds,
        results=results, output=output, data_dir=data_dir,
    )  # fmt: skip
    again = _words(number, scale=at, rows=rows, tasks=tasks, seeds=seeds, results=results,
                   output=output, data_dir=data_dir)  # fmt: skip
    if dry_run:
        show_table(part_of(found, part), as_json=as_json)
        if not as_json:
            suggest(*again, "--resume")
        return
    with prints_to_stderr(as_json):
        complete, outcomes = run_all(
            found, say=print_progress, resume=resume, overwrite=overwrite,
            pool=pool(), part=part,
        )  # fmt: skip
    if any(complete):
        kept = [(job.row, result) for job, result in zip(found, complete, strict=True) if result]
        _show_page(page_of(chosen, at, kept, every=rows is None), as_json=as_json)
        _write_so_far(chosen, at, found[0].tasks, results, again, quiet=as_json)
    check_outcomes(outcomes, print_progress)


def _words(number: int, **options: Any) -> list[Any]:
    """The arguments of the command that asks for the same runs."""
    given = {f"--{key.replace('_', '-')}": v for key, v in options.items() if v is not None}
    return ["table", number, *(word for pair in given.items() for word in pair)]


def _show_page(page: Any, *, as_json: bool) -> None:
    if as_json:
        print_json({**vars(page), "lines": [vars(line) for line in page.lines]})
        return
    for note in page.notes:
        console.print(f"• {note}", highlight=False)
    console.print(page_table(page))


def _write_so_far(
    chosen: Any, scale: Any, tasks: list[str], results: Path, again: list[Any], *, quiet: bool
) -> None:
    """Write the page of every row and seed so far; if one run learns all tasks, of these tasks.

    Unless ``quiet``, it prints the paths and the next command; ``again`` is this one.
    """
    from lorada.paper.page import comma_separated, latex, markdown, page_of
    from lorada.paper.table_runs import stored_rows

    of = tasks if chosen.train == "together" else None
    so_far = stored_rows(chosen, scale, of, results, report=print_progress)
    part = "" if of in (None, chosen.tasks_at(scale)) else f"-{'-'.join(tasks)}"
    stem = f"{results / chosen.name / scale}/table{part}"
    page = page_of(chosen, scale, so_far, every=True)
    for suffix, write in ((".md", markdown), (".csv", comma_separated), (".tex", latex)):
        write_atomic(Path(f"{stem}{suffix}"), write(page))
    if quiet:
        return
    console.print(f"{stem}.md, .csv, .tex", highlight=False, soft_wrap=True)
    suggest(*again, "--dry-run")


def check_table(
    name: str,
    scale: str | None,
    data_dir: str | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Any:
    """A table or figure by its name, after the checks that need no torch."""
    from lorada.data.rows import data_folder
    from lorada.paper.table_spec import SCALES, load_table
    from lorada.runs.folder import refuse_both

    chosen = load_table(name)
    if scale is not None and scale not in SCALES:
        raise ValueError(f"--scale {scale} is not one of {', '.join(SCALES)}")
    refuse_both(resume=resume, overwrite=overwrite)
    if data_dir is not None:
        data_folder(data_dir)
    return chosen


def scale_named(name: str | None) -> Any:
    """A scale by its name; by default ``paper`` where there is a GPU, else ``local``."""
    import torch

    return name or ("paper" if torch.cuda.is_available() else "local")


def print_progress(line: str) -> None:
    """Print progress on the error stream."""
    errors.print(line, highlight=False, soft_wrap=True)


def _show_costs(number: int, *, as_json: bool) -> None:
    from lorada.paper.map_costs import cost_table

    found = cost_table(number)
    if as_json:
        print_json(found)
        return
    shown = Table(title=found["title"])
    for name in found["columns"]:
        shown.add_column(name, overflow="fold")
    for row in found["rows"]:
        shown.add_row(*map(str, row))
    console.print(shown)
    for note in found["notes"]:
        console.print(f"• {note}", highlight=False)
    suggest("table", number, "--json")
