"""The commands ``table`` and ``plot``: the paper's tables and figures."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Column, Table

from lorada.cli import options as opt
from lorada.cli.shared import (
    app,
    console,
    importing,
    load_with_spinner,
    make_pool,
    note,
    print_json,
    prints_to_stderr,
    say,
    spinner,
    suggest,
)
from lorada.cli.use_commands import recipe_to_score
from lorada.support.files import write_atomic
from lorada.support.in_words import counted
from lorada.support.metric_names import main_metric
from lorada.support.progress import progress_bar

# Options that are not repeated in the command that goes on with the same runs.
ONCE = ("--dry-run", "--resume", "--overwrite")
Names = Annotated[
    Any, typer.Option(parser=opt.parse_names, metavar="NAMES", help="with commas; else all")
]
# A folder of the user's own: a checkout has results of other machines in docs/results.
OWN_RESULTS = Path("results")
Results = Annotated[Path, typer.Option(help="where results are kept")]
Scale = Annotated[
    Literal["paper", "local"],
    typer.Option(help="models and data of the paper, or small ones for a CPU"),
]


@app.command(rich_help_panel=opt.PAPER)
def table(
    number: Annotated[int, typer.Argument(help="number of the table in the paper")],
    overrides: opt.Overrides = None,
    scale: Scale = "local",
    rows: Names = None,
    tasks: Names = None,
    seeds: opt.Seeds = None,
    dry_run: opt.DryRun = False,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    results: Results = OWN_RESULTS,
    output: Annotated[Path, typer.Option(help="where the runs are")] = Path("runs"),
    workers: opt.Workers = None,
    gpus_per_job: opt.GpusPerJob = 1.0,
    cluster: opt.Cluster = None,
    data_dir: opt.DataDir = None,
    as_json: opt.Json = False,
) -> None:
    """Run the rows of one of the paper's tables, and print them beside the published scores."""
    pairs = list(overrides or [])
    if number in (2, 3):
        if pairs:
            raise ValueError(f"table {number} is computed, so {pairs[0]} changes nothing in it")
        _show_costs(number, as_json=as_json)
        return
    chosen = _table_named(f"table{number}", data_dir, resume=resume, overwrite=overwrite)
    chosen.rows_named(rows)
    chosen.tasks_at("paper", tasks)
    with importing(quiet=as_json):
        from lorada.paper.table_page import make_page
        from lorada.paper.table_runs import Folders, list_jobs, run_all
    found = list_jobs(
        chosen, scale, rows=rows, tasks=tasks, seeds=seeds,
        folders=Folders(results, output, data_dir), overrides=pairs,
    )  # fmt: skip
    again = [word for word in sys.argv[1:] if word not in ONCE]
    if dry_run:
        begun = _show_plan(found, as_json=as_json)
        if not as_json:
            suggest(*again, *(["--resume"] if begun else []))
        return
    pool = make_pool(workers, cluster, gpus_per_job)
    with prints_to_stderr(as_json):
        complete, outcomes = run_all(found, say=note, resume=resume, overwrite=overwrite, pool=pool)
    if any(complete):
        kept = [(job.row, result) for job, result in zip(found, complete, strict=True) if result]
        _show_page(make_page(chosen, scale, kept, every=rows is None), as_json=as_json)
        written = _write_so_far(chosen, scale, found[0].tasks, results, pairs)
        if not as_json:
            say(written)
            suggest(*again, "--dry-run")
    _check_outcomes(outcomes)


def _table_named(name: str, data_dir: str | None, *, resume: bool, overwrite: bool) -> Any:
    """A table or figure by its name, after the checks that need no torch."""
    from lorada.data.read_rows import data_folder
    from lorada.paper.table_spec import load_table
    from lorada.runs.folder import refuse_both

    refuse_both(resume=resume, overwrite=overwrite)
    if data_dir is not None:
        data_folder(data_dir)
    return load_table(name)


def _print_table(title: str, columns: Iterable[str], rows: Iterable[Any], notes: list[str]) -> None:
    """Print a table of any width, and sentences below it."""
    shown = Table(*(Column(name, overflow="fold") for name in columns), title=title)
    for cells in rows:
        shown.add_row(*map(str, cells))
    console.print(shown)
    for sentence in notes:
        console.print(f"• {sentence}")


def _show_costs(number: int, *, as_json: bool) -> None:
    from lorada.paper.map_costs import cost_table

    costs = cost_table(number)
    if as_json:
        print_json(vars(costs))
        return
    _print_table(costs.title, costs.columns, costs.rows, costs.notes)
    suggest("table", number, "--json")


def _show_page(page: Any, *, as_json: bool) -> None:
    """Print a page of one of the paper's tables."""
    from lorada.paper.table_page import column_headers, format_cells

    if as_json:
        print_json({**vars(page), "lines": [vars(line) for line in page.lines]})
        return
    rows = (format_cells(page, line) for line in page.lines)
    _print_table(page.title, column_headers(page), rows, page.notes)


def _write_so_far(
    chosen: Any, scale: Any, tasks: list[str], results: Path, overrides: list[str]
) -> str:
    """Write the page of every row and seed so far; if one run learns all tasks, of these tasks."""
    from lorada.paper.table_page import format_markdown, make_page
    from lorada.paper.table_runs import stored_rows

    of = tasks if chosen.train == "together" else None
    so_far = stored_rows(chosen, scale, of, results, report=note, overrides=overrides)
    part = "" if of in (None, chosen.tasks_at(scale)) else f"-{'-'.join(tasks)}"
    path = results / chosen.name / scale / f"table{part}.md"
    write_atomic(path, format_markdown(make_page(chosen, scale, so_far, every=True)))
    return str(path)


def _check_outcomes(outcomes: Mapping[str, Any]) -> None:
    """Say which jobs of a queue (name → ``Outcome``) are held, and which failed and why."""
    failed = [name for name, outcome in outcomes.items() if outcome.status == "failed"]
    held = sum(outcome.status == "held" for outcome in outcomes.values())
    if held:
        note(
            f"{held} of {len(outcomes)} jobs are held by other processes, which finish them; "
            "--resume goes on with what is left then"
        )
    for name in failed:
        note(f"{name} failed: {outcomes[name].error}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(outcomes)} jobs failed; --resume runs them again, and only them"
        )


def _show_plan(found: list[Any], *, as_json: bool) -> bool:
    """Print the runs of a table with their parameters; whether any is done."""
    from lorada.paper.table_runs import load_complete_result
    from lorada.training.parameter_counts import counts_of

    plan = []
    for job in progress_bar(found, "Counting parameters"):
        plan.append({
            "row": job.row.key, "model": job.recipe.model, "tasks": job.tasks,
            "seed": job.seed, **counts_of(job.recipe), "share": job.row.share,
            "done": load_complete_result(job) is not None,
        })  # fmt: skip
    if as_json:
        print_json(plan)
    else:
        names = ("row", "tasks", "seed", "trained", "paper", "done")
        models = ", ".join(dict.fromkeys(entry["model"] for entry in plan))
        _print_table(f"On {models}", names, map(_planned, plan), [])
    return any(entry["done"] for entry in plan)


def _planned(one: dict[str, Any]) -> list[str]:
    return [
        one["row"],
        " ".join(one["tasks"]),
        str(one["seed"]),
        f"{one['percent']:.3f}%",
        "–" if one["share"] is None else f"{one['share']}%",
        "yes" if one["done"] else "no",
    ]


@app.command(rich_help_panel=opt.PAPER)
def plot(
    what: Annotated[Literal["1", "3", "4"], typer.Argument(help="figure")],
    run: Annotated[Path | None, typer.Argument(help="a finished run (1, 3)")] = None,
    text: Annotated[
        str, typer.Option(help="the sentence that 1 shows")
    ] = "an exquisitely written and superbly acted film that moved me deeply",
    text_pair: Annotated[
        str | None, typer.Option(help="its pair, for a run that learned pairs (1)")
    ] = None,
    head: Annotated[
        int | None, typer.Option(min=0, help="head that 1 shows; else the strongest")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="draw all of each map in 3, not its part on a row")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="test rows that 3 looks at")] = 64,
    scale: Scale = "local",
    seeds: opt.Seeds = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    results: Results = OWN_RESULTS,
    output: Annotated[
        Path, typer.Option(help="folder of the picture; runs of 4 are in runs")
    ] = OWN_RESULTS,
    data: Annotated[
        str | None, typer.Option(help="rows that 3 looks at; else the run's own")
    ] = None,
    data_dir: opt.DataDir = None,
) -> None:
    """Draw a figure of the paper."""
    if (run is None) != (what == "4"):
        raise ValueError(f"lorada plot {what} takes {'no' if run else 'a'} run")
    if run is None:
        _plot_sweep(
            scale, seeds, results, output, data_dir, resume=resume, overwrite=overwrite
        )  # fmt: skip
    elif what == "1":
        _plot_maps(run, text, text_pair, head, output)
    else:
        _plot_layers(run, rows, output, data, data_dir, whole=whole)


def _plot_maps(run: Path, text: str, text_pair: str | None, head: int | None, output: Path) -> None:
    from lorada.paper.figures import attention_maps
    from lorada.runs.folder import finished_run

    recipe = finished_run(run)
    loaded = load_with_spinner(run, recipe.model, remote=False, quiet=False)
    from lorada.explore.page_data import pair_sentences, sentence_maps

    (sentence,) = pair_sentences([text], [text_pair] if text_pair else None)
    found = sentence_maps(loaded, sentence, head)
    title = f"{found['layer']}, head {found['head']}"
    maps = found["tokens"], found["maps"]
    _draw("figure1", output, lambda *paths: attention_maps(*maps, *paths, title=title))
    suggest("explore", run, *_asked_text(loaded))


def _asked_text(run: Any) -> list[str]:
    """The options for a sentence of the kind that a run has learned."""
    return ["--text", "TEXT", *(["--text-pair", "TEXT"] if run.pairs else [])]


def _plot_layers(
    run: Path, rows: int, output: Path, data: str | None, data_dir: str | None, *, whole: bool
) -> None:
    from lorada.paper.figures import layers_figure

    recipe = recipe_to_score(run, data, data_dir)
    loaded = load_with_spinner(run, recipe.model, remote=False, quiet=False)
    from lorada.explore.page_data import ratios_by_layer

    layers = ratios_by_layer(loaded, rows, data, data_dir, whole=whole)
    _draw("figure3", output, lambda *paths: layers_figure(layers, *paths))
    for one in layers["layers"]:
        line = f"{one['layer']}: map {100 * one['map_negative_ratio']:.1f}% below 0, fused "
        console.print(f"{line}{100 * one['negative_ratio']:.1f}%")
    suggest("plot", "1", run, *(_asked_text(loaded) if loaded.pairs else []))


def _plot_sweep(
    at: Literal["paper", "local"], seeds: list[int] | None, results: Path, output: Path,
    data_dir: str | None, *, resume: bool, overwrite: bool,
) -> None:  # fmt: skip
    """Train the runs of Figure 4 that are not there, and draw it from those that are."""
    figure = _table_named("figure4", data_dir, resume=resume, overwrite=overwrite)
    with importing():
        from lorada.paper.figures import sweep_figure
        from lorada.paper.table_runs import Folders, list_jobs, run_all
    folders = Folders(results, Path("runs"), data_dir)
    found = list_jobs(figure, at, seeds=seeds, folders=folders)
    complete, outcomes = run_all(
        found, say=note, resume=resume, overwrite=overwrite, pool=make_pool(None, None, 1.0)
    )
    scores: dict[tuple[int, int], list[float]] = {}  # by heads and rank, one for each seed
    for job, result in zip(found, complete, strict=True):
        if result is None or result.recipe is None:
            continue
        lmam, model = result.recipe.parts["lmam"], result.model
        task_scores = result.metrics[job.tasks[0]].scores
        metric = main_metric(task_scores)
        score = task_scores[metric]
        if score is not None:
            scores.setdefault((lmam["heads"], lmam["rank"]), []).append(score)
    if scores:
        for sentence in figure.differs if at == "local" else []:
            console.print(f"• {sentence}")
        counts = sorted({len(each) for each in scores.values()})
        fewest = f"{counts[0]} to " if counts[1:] else ""
        title = f"{figure.title} ({model}, {at} scale, {fewest}{counted(counts[-1], 'seed')})"
        labels = {"title": title, "metric": f"{metric} (%)"}
        _draw("figure4", output, lambda *paths: sweep_figure(scores, *paths, **labels))
        suggest("table", "5", "--scale", at, "--dry-run")
    _check_outcomes(outcomes)


def _draw(name: str, folder: Path, write: Any) -> None:
    """Draw a picture as PNG and SVG, and print the paths."""
    paths = [folder / f"{name}{suffix}" for suffix in (".png", ".svg")]
    with spinner("drawing"):
        write(*paths)
    say(", ".join(map(str, paths)))
