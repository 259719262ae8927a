"""The commands ``compare``, ``report``, ``quickstart``: which method is the best on some rows."""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorada.cli import options as opt
from lorada.cli import several_models
from lorada.cli.compare_request import CompareRequest, TimeBudget, run_and_show, target_folder
from lorada.cli.forecast_table import show_forecast
from lorada.cli.next_steps_table import show_next_steps
from lorada.cli.retention_table import show_retention
from lorada.cli.score_table import SHARED, ScoreLine, show_scores
from lorada.cli.shared import (
    app,
    console,
    importing,
    make_pool,
    note,
    print_json,
    prints_to_stderr,
    say,
    split_overrides,
    suggest_line,
)
from lorada.cli.use_commands import predict
from lorada.support.files import as_typed
from lorada.support.in_words import counted

if TYPE_CHECKING:
    from lorada.compare.report.summarize_comparison import Summary


Methods = Annotated[
    Any, typer.Option(parser=opt.parse_names, metavar="NAMES", help="such as lora,lora:r=1,ia3")
]
Models = Annotated[
    str | None, typer.Option(help="hub id, folder, or a packaged name; several with commas")
]
Keep = Annotated[str | None, typer.Option(help="rows that it should still do: FILE,FILE")]
Budgets = Annotated[
    Any, typer.Option(parser=opt.parse_budgets, metavar="SIZES", help="parameters: 0.2% or 100000")
]
Rates = Annotated[
    Any, typer.Option(parser=opt.parse_rates, metavar="RATES", help="learning rates to try for all")
]
Trials = Annotated[
    int | None,
    typer.Option(help="rates tried for each method: 4; then up to 3 beyond an end, 5 for a map"),
]
Hours = Annotated[
    float | None,
    typer.Option(help="the time that it may take; what does not fit is left for --resume"),
]
Price = Annotated[float | None, typer.Option(help="of an hour of this machine, to say the costs")]
Curve = Annotated[
    bool,
    typer.Option(
        "--curve", help="then train the pick on half and a quarter of the rows: do more rows help?"
    ),
]
Shots = Annotated[
    Any,
    typer.Option(
        parser=opt.parse_shots, metavar="NUMBERS", help="score prompts with examples too: 4,8"
    ),
]
Answers = Annotated[
    Any,
    typer.Option(
        parser=opt.parse_names,
        metavar="FILES",
        help="score answers of anything else too: rows with answer, and row or the row's text",
    ),
]
Overlap = Annotated[
    bool, typer.Option("--allow-overlap", help="held-out rows may be training rows too")
]
Text = Annotated[
    bool | None,
    typer.Option(
        "--with-text/--no-text",
        help="texts of held-out rows in report.json and predictions too, or nowhere; else only in "
        "report.html",
    ),
]


@app.command(no_args_is_help=True, rich_help_panel=opt.COMPARE)
def compare(
    folder: Annotated[str | None, typer.Argument(help="a comparison, for --resume")] = None,
    overrides: opt.Overrides = None,
    methods: Methods = None,
    model: Models = None,
    data: Annotated[str | None, typer.Option(help="training rows: a file or a hub id")] = None,
    columns: opt.Columns = None,
    held_out: Annotated[str | None, typer.Option(help="rows to score, or 20% of --data")] = None,
    keep: Keep = None,
    task: Annotated[str | None, typer.Option(help="a benchmark, instead of your rows")] = None,
    data_dir: opt.DataDir = None,
    budget: Budgets = None,
    seeds: opt.Seeds = None,
    trials: Trials = None,
    rates: Rates = None,
    metric: opt.Metric = None,
    until: Annotated[float | None, typer.Option(help="end at this expected loss (points)")] = None,
    hours: Hours = None,
    price: Price = None,
    margin: opt.Margin = None,
    curve: Curve = False,
    shots: Shots = None,
    answers: Answers = None,
    output: Annotated[str | None, typer.Option(help="folder of the comparison")] = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    allow_overlap: Overlap = False,
    with_text: Text = None,
    workers: opt.Workers = None,
    gpus_per_job: opt.GpusPerJob = 1.0,
    cluster: opt.Cluster = None,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> Any:
    """Train methods at matched sizes on your rows, and say which differences can be trusted."""
    folder, pairs = split_overrides(folder, overrides)
    request = CompareRequest(
        folder=target_folder(folder, output, resume=resume, overwrite=overwrite),
        pairs=pairs,
        recipe_options={
            "model": model, "data": data, "columns": columns, "task": task,
            "data_dir": data_dir, "metric": metric, "trust_remote_code": remote or None,
        },
        comparison_options={
            "methods": methods, "budgets": budget, "seeds": seeds, "trials": trials,
            "rates": rates, "until": until, "margin": margin, "held_out": held_out, "keep": keep,
            "shots": shots, "answers": answers, "with_text": with_text,
            "allow_overlap": allow_overlap or None, "curve": curve or None,
        },
        time_budget=TimeBudget(hours, price, time.monotonic(), gpus_per_job, cluster),
        pool=partial(make_pool, workers, cluster, gpus_per_job),
        folder_is_output=folder is None, resume=resume, overwrite=overwrite,
        dry_run=dry_run, as_json=as_json,
    )  # fmt: skip
    return _run_or_forecast(request, model)


def _run_or_forecast(request: CompareRequest, model: str | None) -> Any:
    """Do what a command asks for, with one model or several; returns what its report shows."""
    models = several_models.models_of(model, request.folder, resume=request.resume)
    if models:
        return several_models.compare_each(request, models)
    comparison = request.comparison()
    if request.dry_run:
        return _forecast(comparison, request)
    return _run(comparison, request)


def _run(comparison: Any, request: CompareRequest) -> Any:
    """Run a comparison, and print its report; see ``run_and_show``."""
    with importing():
        from lorada.compare.run import compare as run_comparison

    return run_and_show(request, partial(run_comparison, comparison), _show_report)


def _forecast(comparison: Any, request: CompareRequest) -> None:
    """Print what a comparison would run, and the time and memory that it would take."""
    with importing():
        from lorada.compare.forecast import forecast
        from lorada.compare.run import planned

    # The pool is asked only how many jobs it would run at once.
    pool = request.pool()
    slots = pool.slots
    pool.close()
    with prints_to_stderr(request.as_json):
        plan = planned(comparison, request.folder, resume=request.resume, report=note)
        gpus_here = request.time_budget.gpus_here
        estimate = forecast(comparison, plan, slots, note, gpus_per_job=gpus_here)
    if request.as_json:
        train, held_out = plan.train_lengths, plan.held_out_lengths
        lengths = {
            "train_lengths": None if train is None else asdict(train),
            "held_out_lengths": None if held_out is None else asdict(held_out),
        }
        print_json({**estimate.plain(), **lengths, "kept_rows": plan.kept.count})
        return
    show_forecast(estimate, request.time_budget.costs_of)
    if plan.train_lengths is not None:
        console.print(f"Tokens of the training rows: {plan.train_lengths.spread}.")
    for sentence in plan.losses:
        console.print(sentence)
    if plan.kept.rows:
        rows = f"{counted(plan.kept.count, 'row')} of {', '.join(plan.kept.rows)}"
        console.print(f"Behind its training each run is scored on {rows}, to see what it loses.")


@app.command(rich_help_panel=opt.COMPARE)
def report(
    folder: Annotated[Path, typer.Argument(help="folder of a comparison")],
    metric: opt.Metric = None,
    margin: opt.Margin = None,
    unit: Annotated[
        str | None, typer.Option(help="of your function's values: %, or any; 0/1 need none")
    ] = None,
    with_text: Annotated[
        bool | None,
        typer.Option(
            "--with-text/--no-text",
            help="texts of held-out rows in report.json too, or in neither file; else only in "
            "report.html",
        ),
    ] = None,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Write a comparison's report again, perhaps by another metric; nothing is trained."""
    models = several_models.saved_models(folder)
    if models:
        several_models.refuse_of_one_model(folder, models, (metric, unit, with_text))
        several_models.report_on_models(folder, models, margin, as_json=as_json)
        return
    if metric is not None and _needs_rescoring(folder, metric):
        with importing(quiet=as_json):
            from lorada.compare.run import rescore

        rescore(folder, metric, trust_remote_code=remote)
    from lorada.compare.report.write_report import write_report

    summary, paths = write_report(folder, metric, margin, unit, with_text)
    _show_report(summary, paths, as_json=as_json)


def _needs_rescoring(folder: Path, metric: str) -> bool:
    """Whether a metric is not stored and has to be computed from the answers of the runs first.

    That is so of a user's function, of metrics that are too slow for every run, and of class
    metrics of written answers. A metric that does not fit the rows of a run is refused.
    """
    from lorada.data.scoring.row_metrics import LATER, refuse_metric
    from lorada.runs.recipe import JSONL
    from lorada.runs.result import read_result
    from lorada.support.metric_names import CLASS_METRICS, FREE, LOSS
    from lorada.support.row_sources import CODE

    answers_are_written = False
    for path in folder.glob("runs/*/*/*/result.json"):
        result = read_result(path.parent)
        if result.task == JSONL:
            refuse_metric(metric, result.form)
            answers_are_written = result.form in FREE
        elif metric != LOSS:
            raise ValueError(f"--metric {metric} is for rows of your own: take loss")
    if CODE in metric or metric in LATER:
        return True
    return answers_are_written and metric in CLASS_METRICS


def _show_report(summary: "Summary", reports: list[Path], *, as_json: bool) -> None:
    """Print the verdict, the table, sentences on it, the report's files and the next command."""
    if as_json:
        print_json(summary.plain())
        return
    console.print(summary.verdict)
    show_scores(summary.scale.title, summary.score_format, _score_lines(summary))
    show_retention(summary)
    show_next_steps(summary)
    sentences = []
    for line in summary.lines:
        if line.score is None:
            # The reason begins with the method, which the label names already.
            reason = str(line.result.reason).removeprefix(f"{line.result.method} ")
            sentences.append(f"{line.label}: {reason}")
    if any(line.decided.letter for line in summary.scored):
        sentences.append(f"{SHARED}.")
    for sentence in (*sentences, *summary.sentences):
        console.print(f"• {sentence}")
    say(", ".join(map(str, reports)))
    open_page = as_typed("python", "-m", "webbrowser", reports[0])
    suggest_line(next(iter(summary.commands.values()), open_page))


def _score_lines(summary: "Summary") -> list[ScoreLine]:
    """The candidates that are scored, then the scores without training."""
    lines = []
    for candidate in summary.scored:
        decided = candidate.decided
        lines.append(
            ScoreLine(
                candidate.label, candidate.score, decided.low, decided.high, decided.letter,
                decided.expected_loss, candidate.result.trainable, decided.mark,
            )
        )  # fmt: skip
    for baseline in summary.baselines:
        if baseline.score is not None:
            lines.append(ScoreLine(baseline.name, baseline.score, baseline.low, baseline.high))
    return lines


# Of the quickstart: what trains three methods on a laptop's processor in minutes.
QUICKSTART_SETTINGS = [
    "pooling=mean", "max_length=64", "max_steps=80", "warmup_steps=8",
    "per_device_train_batch_size=16",
]  # fmt: skip
SENTENCE = "All dogs are pets. No pets are cats. Therefore, no dogs are cats."


@app.command(rich_help_panel=opt.COMPARE)
def quickstart(
    output: Annotated[Path, typer.Option(help="folder of the comparison")] = Path(
        "runs/quickstart"
    ),
    workers: opt.Workers = 2,
    overwrite: opt.Overwrite = False,
) -> None:
    """Compare LoRA, IA3 and LoRA with a map on bundled rows, and use the one to take."""
    summary = compare(
        overrides=QUICKSTART_SETTINGS, model="minilm-l6", data="builtin:syllogisms.csv",
        held_out="33%", methods=["lora", "ia3", "lora+lmam"], budget=["0.2%"],
        rates=[1e-3, 3e-3, 1e-2],
        output=str(output), resume=not overwrite, overwrite=overwrite, workers=workers,
    )  # fmt: skip
    # Jobs are left to other commands, or no method has a score: there is none to use.
    if summary is None or not summary.best:
        return
    best = next(line for line in summary.lines if line.label == summary.best)
    run = output / best.result.first_run.folder
    say("\n" + as_typed("lorada", "predict", run, "--text", SENTENCE))
    predict(run, text=[SENTENCE])
