"""The commands ``compare``, which tells the best of several methods, and ``report``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorada.cli.app import (
    COMPLETE_METHOD,
    COMPLETE_TASK,
    METRIC,
    MODEL,
    Columns,
    DataDir,
    Json,
    Remote,
    app,
    columns_of,
    errors,
    importing,
    prints_to_stderr,
    suggest,
)
from lorada.cli.dry_run import show_comparison
from lorada.cli.queue_options import (
    AUTO,
    Cluster,
    GpusPerJob,
    Shard,
    Workers,
    check_queue,
    split_names,
    split_seeds,
)
from lorada.cli.score_table import show_report
from lorada.cli.table_command import print_progress

Folder = Annotated[str | None, typer.Argument(help="folder of a comparison, for --resume")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value …, settings that all runs share")
]
Methods = Annotated[
    str | None,
    typer.Option(
        help="with commas; `lorada methods` lists them; lora:r=1 is one with a setting",
        autocompletion=COMPLETE_METHOD,
    ),
]
Model = Annotated[str | None, MODEL]
Rows = Annotated[str | None, typer.Option(help="training rows: a file or a hub id")]
HeldOut = Annotated[
    str | None, typer.Option(help="rows to score: a file or a hub id, or a share of --data: 20%")
]
Task = Annotated[
    str | None,
    typer.Option(
        help="instead of --data and --held-out; see `lorada tasks`", autocompletion=COMPLETE_TASK
    ),
]
Budget = Annotated[
    str | None, typer.Option(help="trained parameters, such as 0.2% or 100000; commas for several")
]
Seeds = Annotated[str | None, typer.Option(help="with commas; 1,2,3 if not given")]
Trials = Annotated[
    int | None, typer.Option(help="learning rates to try for each method; 4 if not given")
]
Rates = Annotated[
    str | None,
    typer.Option(help="learning rates to try, with commas, the same for all; instead of --trials"),
]
Search = Annotated[
    str | None,
    typer.Option(help="once, or each-seed: choose a learning rate anew with every seed"),
]
Metric = Annotated[str | None, METRIC]
Against = Annotated[
    str | None, typer.Option(help="a method to test the others against, besides the best")
]
Until = Annotated[
    float | None,
    typer.Option(help="run no more seeds once the leader's expected loss is so many points"),
]
Margin = Annotated[
    float | None,
    typer.Option(help="points that a cheaper method may cost: 1; of losses 2 % of the lowest"),
]
Output = Annotated[str | None, typer.Option(help="folder of the comparison")]
Resume = Annotated[bool, typer.Option(help="go on with the comparison in the folder")]
Overwrite = Annotated[bool, typer.Option(help="delete the comparison in --output first")]
DryRun = Annotated[bool, typer.Option(help="only say what would be run")]
Overlap = Annotated[bool, typer.Option(help="held-out rows may be training rows too")]
Text = Annotated[bool, typer.Option(help="keep the text of held-out rows in the report")]


@app.command(no_args_is_help=True)
def compare(
    folder: Folder = None,
    overrides: Overrides = None,
    methods: Methods = None,
    model: Model = None,
    data: Rows = None,
    columns: Columns = None,
    held_out: HeldOut = None,
    task: Task = None,
    data_dir: DataDir = None,
    budget: Budget = None,
    seeds: Seeds = None,
    trials: Trials = None,
    rates: Rates = None,
    search: Search = None,
    metric: Metric = None,
    against: Against = None,
    until: Until = None,
    margin: Margin = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    allow_overlap: Overlap = False,
    with_text: Text = False,
    workers: Workers = AUTO,
    gpus_per_job: GpusPerJob = 1.0,
    cluster: Cluster = None,
    shard: Shard = None,
    remote: Remote = False,
    as_json: Json = False,
) -> Any:
    """Train methods at matched sizes on your rows, and say which differences can be trusted."""
    pairs = list(overrides or [])
    # In `lorada compare max_steps=100 …` the first word is an override, not a folder.
    if folder is not None and "=" in folder and not Path(folder).is_dir():
        pairs, folder = [folder, *pairs], None
    pool, part = check_queue(workers, gpus_per_job, cluster, shard)
    place = _place(folder, output, resume=resume)
    options = {
        "model": model, "data": data, "columns": columns_of(columns), "task": task,
        "data_dir": data_dir, "metric": metric, "trust_remote_code": remote or None,
    }  # fmt: skip
    asked = {
        "methods": split_names("methods", methods), "budgets": split_names("budget", budget),
        "seeds": split_seeds(seeds), "trials": trials, "rates": _rates(rates),
        "search": search, "against": against, "until": until, "margin": margin,
        "held_out": held_out,
        "with_text": with_text or None, "allow_overlap": allow_overlap or None,
    }  # fmt: skip
    if part is not None and (overwrite or until is not None):
        raise ValueError("--shard goes with neither --overwrite nor --until: parts run at once")
    # Parts of one comparison may be started together: the later ones join the first.
    resume = resume or (part is not None and is_there(place))
    chosen = _checked(place, pairs, options, asked, resume=resume, overwrite=overwrite)
    if dry_run:
        _forecast(chosen, place, pool, resume=resume, as_json=as_json)
    else:
        return _run(chosen, place, pool, part, overwrite=overwrite, as_json=as_json)
    return None


def _checked(
    place: Path,
    pairs: list[str],
    options: dict[str, Any],
    asked: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> Any:
    """The comparison that was asked for; most mistakes are found before torch is loaded."""
    from lorada.compare import spec
    from lorada.data.rows import data_folder, share_of, there
    from lorada.support.models import check_name
    from lorada.training.load_recipe import read_recipe

    spec.refuse_taken_by_other(place, resume=resume, overwrite=overwrite)
    if resume:
        chosen = spec.saved_comparison(place)
    else:
        shared = read_recipe(None, pairs, {**options, **spec.FIXED})
        chosen = spec.comparison_of(shared.recipe, asked)
    check_name(chosen.recipe["model"])
    if chosen.has_own_rows:
        there(chosen.recipe.get("data"))
        if share_of(chosen.held_out) is None:
            there(chosen.held_out)
    else:
        data_folder(chosen.recipe.get("data_dir"))
    with importing():
        if resume:
            return spec.resumed_comparison(place, pairs, options, asked)
        return spec.comparison_of(shared.complete(), asked)


def _run(chosen: Any, place: Path, pool: Any, part: Any, *, overwrite: bool, as_json: bool) -> Any:
    """Run a comparison, and print its report or how it goes on; code 2 if a job has failed."""
    with importing():
        from lorada.compare.run import compare as run_comparison

    try:
        with prints_to_stderr(as_json):
            compared = run_comparison(
                chosen, place, pool, overwrite=overwrite, part=part, report=print_progress
            )
    except KeyboardInterrupt:
        errors.print("stopped and saved")
        suggest("compare", place, "--resume", on=errors)
        raise
    for job, error in compared.failures.items():
        errors.print(f"failed: {job}: {error}", highlight=False, soft_wrap=True)
    if compared.left:
        errors.print(f"{compared.left} jobs are left to other commands")
        suggest("compare", place, "--resume", on=errors)
    else:
        show_report(compared.summary, compared.reports, as_json=as_json)
    if compared.failures:
        raise typer.Exit(2)
    return compared.summary


def _forecast(chosen: Any, place: Path, pool: Any, *, resume: bool, as_json: bool) -> None:
    """Print what a comparison would run, and what it would take."""
    with importing():
        from lorada.compare.measure import forecast
        from lorada.compare.run import planned

    made = pool()
    slots = made.slots
    made.close()
    with prints_to_stderr(as_json):
        plan = planned(chosen, place, resume=resume, report=print_progress)
        found = forecast(chosen, plan, slots, print_progress)
    show_comparison(found, as_json=as_json)


def _place(folder: str | None, output: str | None, *, resume: bool) -> Path:
    """The folder of the comparison: the argument with --resume, else --output."""
    if resume:
        if folder is None and output is None:
            raise ValueError("nothing to resume: lorada compare FOLDER --resume")
        return Path(str(folder or output))
    if folder is not None:
        raise ValueError(f"{folder}: a folder is for --resume; pass --output FOLDER for a new one")
    if output is None:
        raise ValueError("no folder for the comparison: pass --output FOLDER")
    return Path(output)


def is_there(place: Path) -> bool:
    """Whether a folder holds a comparison."""
    from lorada.compare.spec import SPEC_FILE

    return (place / SPEC_FILE).is_file()


def _rates(text: str | None) -> list[float] | None:
    """Read learning rates with commas between."""
    found = split_names("rates", text)
    try:
        return None if found is None else [float(name) for name in found]
    except ValueError as error:
        raise ValueError(f"--rates {text} must be learning rates, such as 1e-3,1e-2") from error


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="folder of a comparison")],
    metric: Metric = None,
    against: Against = None,
    margin: Margin = None,
    with_text: Text = False,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Write a comparison's report again, perhaps by another metric; nothing is trained."""
    if metric is not None and _asks_answers(folder, metric):
        with importing(quiet=as_json):
            from lorada.compare.run import rescore

        rescore(folder, metric, trust_remote_code=remote)
    from lorada.compare.report.page import write_report

    found = write_report(folder, against, with_text, metric, margin)
    show_report(*found, as_json=as_json)


def _asks_answers(folder: Path, metric: str) -> bool:
    """Whether a metric has to be computed from the answers first; refuses one that does not fit."""
    from lorada.data.metrics import LATER, refuse_metric
    from lorada.runs.recipe import JSONL
    from lorada.runs.result import read_result
    from lorada.support.metric_names import LOSS
    from lorada.support.row_sources import CODE

    for path in folder.glob("runs/*/*/*/result.json"):
        result = read_result(path.parent)
        if result.get("task") == JSONL:
            refuse_metric(metric, result["form"])
        elif metric != LOSS:
            raise ValueError(f"--metric {metric} is for rows of your own: take loss")
    return CODE in metric or metric in LATER
