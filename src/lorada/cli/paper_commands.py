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
NOT_REPEATED = ("--dry-run", "--resume", "--overwrite")
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
    spec = _load_spec(f"table{number}", data_dir, resume=resume, overwrite=overwrite)
    # Both refuse unknown names, before torch loads.
    spec.rows_named(rows)
    spec.tasks_at("paper", tasks)
    with importing(quiet=as_json):
        from lorada.paper.table_page import make_page
        from lorada.paper.table_runs import Folders, list_jobs, run_all
    jobs = list_jobs(
        spec, scale, rows=rows, tasks=tasks, seeds=seeds,
        folders=Folders(results, output, data_dir), overrides=pairs,
    )  # fmt: skip
    same_command = [word for word in sys.argv[1:] if word not in NOT_REPEATED]
    if dry_run:
        has_begun = _show_plan(jobs, as_json=as_json)
        if not as_json:
            suggest(*same_command, *(["--resume"] if has_begun else []))
        return
    pool = make_pool(workers, cluster, gpus_per_job)
    with prints_to_stderr(as_json):
        job_results, outcomes = run_all(
            jobs, say=note, resume=resume, overwrite=overwrite, pool=pool
        )
    # The result of a job is None if it failed or another process holds it.
    if any(job_results):
        row_results = [
            (job.row, result) for job, result in zip(jobs, job_results, strict=True) if result
        ]
        _show_page(make_page(spec, scale, row_results, every=rows is None), as_json=as_json)
        path = _write_so_far(spec, scale, jobs[0].tasks, results, pairs)
        if not as_json:
            say(path)
            suggest(*same_command, "--dry-run")
    _check_outcomes(outcomes)


def _load_spec(name: str, data_dir: str | None, *, resume: bool, overwrite: bool) -> Any:
    """The ``PaperTable`` of a table or figure, after the checks that need no torch."""
    from lorada.data.files.benchmark_files import data_folder
    from lorada.paper.table_spec import load_table
    from lorada.runs.folder import refuse_both

    refuse_both(resume=resume, overwrite=overwrite)
    if data_dir is not None:
        data_folder(data_dir)
    return load_table(name)


def _print_table(title: str, columns: Iterable[str], rows: Iterable[Any], notes: list[str]) -> None:
    """Print a table of any width, and sentences below it."""
    table = Table(*(Column(name, overflow="fold") for name in columns), title=title)
    for cells in rows:
        table.add_row(*map(str, cells))
    console.print(table)
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
    rows = [format_cells(page, line) for line in page.lines]
    _print_table(page.title, column_headers(page), rows, page.notes)


def _write_so_far(
    spec: Any, scale: Any, tasks: list[str], results: Path, overrides: list[str]
) -> str:
    """Write the page of every row and seed that has a result, and return its path.

    If one run learns all tasks, the page is of the runs that learn these ``tasks``.
    """
    from lorada.paper.table_page import format_markdown, make_page
    from lorada.paper.table_runs import stored_rows

    learned_together = tasks if spec.train == "together" else None
    row_results = stored_rows(
        spec, scale, learned_together, results, report=note, overrides=overrides
    )
    # A page of all tasks has the plain name, one of a part has their names in its own.
    has_all_tasks = learned_together in (None, spec.tasks_at(scale))
    suffix = "" if has_all_tasks else f"-{'-'.join(tasks)}"
    path = results / spec.name / scale / f"table{suffix}.md"
    write_atomic(path, format_markdown(make_page(spec, scale, row_results, every=True)))
    return str(path)


def _check_outcomes(outcomes: Mapping[str, Any]) -> None:
    """Say which jobs of a queue (name → ``Outcome``) are held, and which failed and why."""
    failed = [name for name, outcome in outcomes.items() if outcome.status == "failed"]
    held_count = sum(outcome.status == "held" for outcome in outcomes.values())
    if held_count:
        note(
            f"{held_count} of {len(outcomes)} jobs are held by other processes, which finish them; "
            "--resume goes on with what is left then"
        )
    for name in failed:
        note(f"{name} failed: {outcomes[name].error}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(outcomes)} jobs failed; --resume runs them again, and only them"
        )


def _show_plan(jobs: list[Any], *, as_json: bool) -> bool:
    """Print the runs of a table with their parameters; whether any is done."""
    from lorada.paper.table_runs import load_complete_result
    from lorada.training.parameter_counts import counts_of

    plan = []
    for job in progress_bar(jobs, "Counting parameters"):
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
        _print_table(f"On {models}", names, map(_plan_cells, plan), [])
    return any(entry["done"] for entry in plan)


def _plan_cells(entry: dict[str, Any]) -> list[str]:
    """The cells of one run; its ``share`` of the parameters is what the paper prints."""
    return [
        entry["row"],
        " ".join(entry["tasks"]),
        str(entry["seed"]),
        f"{entry['percent']:.3f}%",
        "–" if entry["share"] is None else f"{entry['share']}%",
        "yes" if entry["done"] else "no",
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
    takes_run = what != "4"  # which trains its own
    if takes_run and run is None:
        raise ValueError(f"lorada plot {what} takes a run")
    if not takes_run and run is not None:
        raise ValueError(f"lorada plot {what} takes no run")
    if run is None:
        _plot_sweep(
            scale, seeds, results, output, data_dir, resume=resume, overwrite=overwrite
        )  # fmt: skip
    elif what == "1":
        _plot_maps(run, text, text_pair, head, output)
    else:
        _plot_layers(run, rows, output, data, data_dir, whole=whole)


def _plot_maps(run: Path, text: str, text_pair: str | None, head: int | None, output: Path) -> None:
    """Draw Figure 1: the attention map of a sentence, the map that is added, and their sum."""
    from lorada.paper.figures import attention_maps
    from lorada.runs.folder import finished_run

    recipe = finished_run(run)
    loaded = load_with_spinner(run, recipe.model, remote=False, quiet=False)
    from lorada.explore.page_data import pair_sentences, sentence_maps

    (sentence,) = pair_sentences([text], [text_pair] if text_pair else None)
    maps = sentence_maps(loaded, sentence, head)
    title = f"{maps['layer']}, head {maps['head']}"
    _draw(
        "figure1",
        output,
        lambda *paths: attention_maps(maps["tokens"], maps["maps"], *paths, title=title),
    )
    suggest("explore", run, *_text_options(loaded))


def _text_options(run: Any) -> list[str]:
    """The options for a sentence of the kind that a run has learned."""
    return ["--text", "TEXT", "--text-pair", "TEXT"] if run.pairs else ["--text", "TEXT"]


def _plot_layers(
    run: Path, rows: int, output: Path, data: str | None, data_dir: str | None, *, whole: bool
) -> None:
    """Draw Figure 3: the share of negative entries, layer by layer."""
    from lorada.paper.figures import layers_figure

    recipe = recipe_to_score(run, data, data_dir)
    loaded = load_with_spinner(run, recipe.model, remote=False, quiet=False)
    from lorada.explore.page_data import ratios_by_layer

    layers = ratios_by_layer(loaded, rows, data, data_dir, whole=whole)
    _draw("figure3", output, lambda *paths: layers_figure(layers, *paths))
    for layer in layers["layers"]:
        map_percent = 100 * layer["map_negative_ratio"]
        fused_percent = 100 * layer["negative_ratio"]
        console.print(
            f"{layer['layer']}: map {map_percent:.1f}% below 0, fused {fused_percent:.1f}%"
        )
    # Figure 1 has a sentence of its own, but none for a run that reads pairs.
    suggest("plot", "1", run, *(_text_options(loaded) if loaded.pairs else []))


def _plot_sweep(
    scale: Literal["paper", "local"], seeds: list[int] | None, results: Path, output: Path,
    data_dir: str | None, *, resume: bool, overwrite: bool,
) -> None:  # fmt: skip
    """Train the runs of Figure 4 that are not there, and draw it from those that are."""
    figure = _load_spec("figure4", data_dir, resume=resume, overwrite=overwrite)
    with importing():
        from lorada.paper.figures import sweep_figure
        from lorada.paper.table_runs import Folders, list_jobs, run_all
    folders = Folders(results, Path("runs"), data_dir)
    jobs = list_jobs(figure, scale, seeds=seeds, folders=folders)
    job_results, outcomes = run_all(
        jobs, say=note, resume=resume, overwrite=overwrite, pool=make_pool(None, None, 1.0)
    )
    scores: dict[tuple[int, int], list[float]] = {}  # by heads and rank, one for each seed
    for job, result in zip(jobs, job_results, strict=True):
        if result is None or result.recipe is None:
            continue
        lmam, model = result.recipe.parts["lmam"], result.model
        task_scores = result.metrics[job.tasks[0]].scores
        metric = main_metric(task_scores)
        score = task_scores[metric]
        if score is not None:
            scores.setdefault((lmam["heads"], lmam["rank"]), []).append(score)
    if scores:
        if scale == "local":  # which differs from the paper's runs
            for sentence in figure.differs:
                console.print(f"• {sentence}")
        seed_counts = [len(seed_scores) for seed_scores in scores.values()]
        fewest, most = min(seed_counts), max(seed_counts)
        seed_range = counted(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
        title = f"{figure.title} ({model}, {scale} scale, {seed_range})"
        labels = {"title": title, "metric": f"{metric} (%)"}
        _draw("figure4", output, lambda *paths: sweep_figure(scores, *paths, **labels))
        suggest("table", "5", "--scale", scale, "--dry-run")
    _check_outcomes(outcomes)


def _draw(name: str, folder: Path, write: Any) -> None:
    """Draw a picture as PNG and SVG, and print the paths."""
    paths = [folder / f"{name}{suffix}" for suffix in (".png", ".svg")]
    with spinner("drawing"):
        write(*paths)
    say(", ".join(map(str, paths)))
