"""The commands ``compare``, ``report``, ``decide``, ``quickstart``: which method is the best."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from lorada.cli import options as opt
from lorada.cli.shared import (
    app,
    console,
    errors,
    importing,
    make_pool,
    note,
    print_json,
    prints_to_stderr,
    say,
    split_overrides,
    suggest,
    suggest_line,
)
from lorada.cli.train_commands import check_inputs
from lorada.cli.use_commands import predict
from lorada.support.error_messages import FREE_AND_RESUME, full_disk_in_one_line, unknown_name
from lorada.support.files import as_typed
from lorada.support.in_words import counted, duration
from lorada.support.tables import NOTHING

NAME = 12  # letters of a name that stand in a line, however narrow the terminal


Methods = Annotated[
    Any, typer.Option(parser=opt.parse_names, metavar="NAMES", help="such as lora,lora:r=1,ia3")
]
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
Margin = Annotated[
    float | None,
    typer.Option(
        help="what a cheaper method may cost: a point, or a fifth of the best one's errors if that "
        "is less; of losses 2 % of the lowest; other units need one"
    ),
]
Overlap = Annotated[
    bool, typer.Option("--allow-overlap", help="held-out rows may be training rows too")
]
Text = Annotated[
    bool, typer.Option("--with-text", help="keep the text of held-out rows in the report")
]

SHARED = "Methods that share a letter of a group are not significantly different"
# Name, score, ends of its interval, letters, expected loss, trained parameters, what is decided.
Scored = tuple[str, float | None, float | None, float | None, str, float | None, float | None, str]


@app.command(no_args_is_help=True, rich_help_panel=opt.COMPARE)
def compare(
    folder: Annotated[str | None, typer.Argument(help="a comparison, for --resume")] = None,
    overrides: opt.Overrides = None,
    methods: Methods = None,
    model: Annotated[str | None, opt.MODEL] = None,
    data: Annotated[str | None, typer.Option(help="training rows: a file or a hub id")] = None,
    columns: opt.Columns = None,
    held_out: Annotated[str | None, typer.Option(help="rows to score, or 20% of --data")] = None,
    task: Annotated[str | None, typer.Option(help="a benchmark, instead of your rows")] = None,
    data_dir: opt.DataDir = None,
    budget: Budgets = None,
    seeds: opt.Seeds = None,
    trials: Trials = None,
    rates: Rates = None,
    metric: opt.Metric = None,
    until: Annotated[float | None, typer.Option(help="end at this expected loss (points)")] = None,
    margin: Margin = None,
    output: Annotated[str | None, typer.Option(help="folder of the comparison")] = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    allow_overlap: Overlap = False,
    with_text: Text = False,
    workers: opt.Workers = None,
    gpus_per_job: opt.GpusPerJob = 1.0,
    cluster: opt.Cluster = None,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> Any:
    """Train methods at matched sizes on your rows, and say which differences can be trusted."""
    folder, pairs = split_overrides(folder, overrides)
    target = _target_folder(folder, output, resume=resume)
    # Settings that all runs share, as in `lorada train`, then those of the comparison itself.
    recipe_options = {
        "model": model, "data": data, "columns": columns, "task": task,
        "data_dir": data_dir, "metric": metric, "trust_remote_code": remote or None,
    }  # fmt: skip
    comparison_options = {
        "methods": methods, "budgets": budget, "seeds": seeds, "trials": trials, "rates": rates,
        "until": until, "margin": margin, "held_out": held_out,
        "with_text": with_text or None, "allow_overlap": allow_overlap or None,
    }  # fmt: skip
    from lorada.compare.spec import SPEC_FILE, refuse_taken_by_other

    refuse_taken_by_other(target, resume=resume, overwrite=overwrite)
    # A command that has all that it takes to begin may be given to each of several machines, with
    # --resume: the first one begins, and the others find its comparison in the folder.
    can_begin = folder is None and methods is not None and not (target / SPEC_FILE).is_file()
    if resume and not can_begin:
        comparison = _saved_comparison(target, pairs, recipe_options, comparison_options)
    else:
        comparison = _new_comparison(pairs, recipe_options, comparison_options)
    # Made by what runs the jobs: nothing is started for a comparison that is refused.
    pool_factory = partial(make_pool, workers, cluster, gpus_per_job)
    if dry_run:
        # What a job takes is measured on this machine, which may be outside of the cluster.
        gpus_here = gpus_per_job if cluster is None else min(1.0, gpus_per_job)
        _forecast(comparison, target, pool_factory, gpus_here, resume=resume, as_json=as_json)
        return None
    return _run(comparison, target, pool_factory, overwrite=overwrite, as_json=as_json)


def _target_folder(folder: str | None, output: str | None, *, resume: bool) -> Path:
    """The folder of a comparison: a new one is named by --output, an old one by either word."""
    if folder is not None and not resume:
        raise ValueError(f"{folder}: a folder is for --resume; pass --output FOLDER for a new one")
    if folder is None and output is None:
        raise ValueError("no folder for the comparison: pass --output FOLDER, or FOLDER --resume")
    return Path(str(folder or output))


def _new_comparison(
    pairs: list[str], recipe_options: dict[str, Any], comparison_options: dict[str, Any]
) -> Any:
    """The ``Comparison`` that options describe; most mistakes are found before torch is loaded."""
    from lorada.compare import spec
    from lorada.data.files.read_rows import HELD_OUT
    from lorada.training.load_recipe import read_recipe

    shared = read_recipe(None, pairs, {**recipe_options, **spec.FIXED})
    held_out = spec.comparison_of(shared.recipe, comparison_options).held_out
    check_inputs(shared.recipe, held_out, HELD_OUT, resumed=False)
    with importing():  # settings are checked against PEFT's and transformers' classes
        return spec.comparison_of(shared.complete(), comparison_options)


def _saved_comparison(
    folder: Path,
    pairs: list[str],
    recipe_options: dict[str, Any],
    comparison_options: dict[str, Any],
) -> Any:
    """The ``Comparison`` in a folder, if no option says something else than it does."""
    from lorada.compare import spec
    from lorada.data.files.read_rows import HELD_OUT

    saved = spec.saved_comparison(folder)
    shared = spec.asked_again(saved, pairs, recipe_options)
    check_inputs(shared.recipe, saved.held_out, HELD_OUT, resumed=True)
    with importing():
        return spec.resumed_comparison(folder, saved, shared.complete(), comparison_options)


def _run(comparison: Any, folder: Path, pool: Any, *, overwrite: bool, as_json: bool) -> Any:
    """Run a comparison, and print its report or how it goes on; code 2 if a job has failed."""
    with importing():
        from lorada.compare.run import compare as run_comparison

    try:
        with full_disk_in_one_line(folder, FREE_AND_RESUME), prints_to_stderr(as_json):
            compared = run_comparison(comparison, folder, pool, overwrite=overwrite, report=note)
    except KeyboardInterrupt:
        note("stopped and saved")
        suggest("compare", folder, "--resume", on=errors)
        raise
    for job, error in compared.failures.items():
        note(f"failed: {job}: {error}")
    if compared.left:
        jobs = counted(compared.left, "job")
        note(f"left to other commands, the last of which writes the report: {jobs}")
        suggest("compare", folder, "--resume", on=errors)
    else:
        _show_report(compared.summary, compared.reports, as_json=as_json)
    if compared.failures:
        raise typer.Exit(2)
    return compared.summary


def _forecast(
    comparison: Any,
    folder: Path,
    pool_factory: Any,
    gpus_per_job: float,
    *,
    resume: bool,
    as_json: bool,
) -> None:
    """Print what a comparison would run, and what it would take."""
    with importing():
        from lorada.compare.forecast import forecast
        from lorada.compare.run import planned

    # The pool is asked only how many jobs it would run at once.
    pool = pool_factory()
    slots = pool.slots
    pool.close()
    with prints_to_stderr(as_json):
        plan = planned(comparison, folder, resume=resume, report=note)
        estimate = forecast(comparison, plan, slots, note, gpus_per_job=gpus_per_job)
    if as_json:
        print_json(estimate | {
            "train_lengths": plan.train_lengths and asdict(plan.train_lengths),
            "held_out_lengths": plan.held_out_lengths and asdict(plan.held_out_lengths),
        })  # fmt: skip
        return
    _show_forecast(estimate)
    if plan.train_lengths is not None:
        console.print(f"Tokens of the training rows: {plan.train_lengths.spread}.")
    for sentence in plan.losses:
        console.print(sentence)


def _show_forecast(estimate: dict[str, Any]) -> None:
    """Print the table of candidates, the trainings of each stage, and what all of it takes."""
    from lorada.compare.stored_plan import as_given

    names = ("method", "budget", "sizes", "parameters", "runs", "time", "memory")
    table = Table(*(Column(name, overflow="fold") for name in names), title="Each at most")
    for row in estimate["candidates"]:
        budgets = ", ".join(
            f"{budget} (above)" if above else budget for budget, above in row["budgets"].items()
        )
        if row["reason"] is not None:  # it cannot be run, and has no parameters or times
            table.add_row(row["method"], budgets, row["reason"])
            continue
        table.add_row(
            row["method"], budgets, as_given(row["parts"]),
            f"{row['trainable']:,} ({row['percent']:.3f}%)", str(row["runs"]),
            duration(row["seconds"]), f"{row['peak_memory_bytes'] / 2**30:.1f} GiB",
        )  # fmt: skip
    console.print(table)
    slots = estimate["slots"]
    for name, stage in estimate["stages"].items():
        if not stage["trainings"]:
            continue
        at_most = f"{stage['trainings']:.0f} ({duration(stage['seconds'] / slots)})"
        probably = f"{stage['probably']:.0f} ({duration(stage['probably_seconds'] / slots)})"
        if at_most == probably:
            console.print(f"Trainings for the {name}: {at_most}")
        else:
            console.print(f"Trainings for the {name}: probably {probably}, at most {at_most}")
    probably = duration(estimate["probably_seconds"])
    at_most = duration(estimate["seconds"])
    console.print(
        f"{estimate['steps']} steps each, {slots} at once: probably {probably}, at most {at_most}. "
        "Times are those of a few steps with the longest rows; the start of each process, mostly "
        "the loading of the model, and the scoring come on top."
    )


@app.command(rich_help_panel=opt.COMPARE)
def report(
    folder: Annotated[Path, typer.Argument(help="folder of a comparison")],
    metric: opt.Metric = None,
    margin: Margin = None,
    unit: Annotated[
        str | None, typer.Option(help="of your function's values: %, or any; 0/1 need none")
    ] = None,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Write a comparison's report again, perhaps by another metric; nothing is trained."""
    if metric is not None and _needs_rescoring(folder, metric):
        with importing(quiet=as_json):
            from lorada.compare.run import rescore

        rescore(folder, metric, trust_remote_code=remote)
    from lorada.compare.report.write_report import write_report

    summary, paths = write_report(folder, metric, margin, unit)
    _show_report(summary, paths, as_json=as_json)


def _needs_rescoring(folder: Path, metric: str) -> bool:
    """Whether a metric has to be computed from the answers first; refuses one that does not fit."""
    from lorada.data.scoring.row_metrics import LATER, refuse_metric
    from lorada.runs.recipe import JSONL
    from lorada.runs.result import read_result
    from lorada.support.metric_names import CLASS_METRICS, FREE, LOSS
    from lorada.support.row_sources import CODE

    written = False
    for path in folder.glob("runs/*/*/*/result.json"):
        result = read_result(path.parent)
        if result.task == JSONL:
            refuse_metric(metric, result.form)
            written = result.form in FREE
        elif metric != LOSS:
            raise ValueError(f"--metric {metric} is for rows of your own: take loss")
    return CODE in metric or metric in LATER or (written and metric in CLASS_METRICS)


def _show_report(summary: Any, reports: list[Path], *, as_json: bool) -> None:
    """Print the verdict, the table, the files of the report and the next command."""
    if as_json:
        print_json(summary.plain())
        return
    console.print(summary.verdict)
    rows = [
        (line.label, line.score, line.decided.low, line.decided.high, line.decided.letter,
         line.decided.expected_loss, line.result.trainable, line.decided.mark)
        for line in summary.scored
    ]  # fmt: skip
    rows += [
        (one.name, one.score, one.low, one.high, "", None, None, "")
        for one in summary.baselines if one.score is not None
    ]  # fmt: skip
    _show_scores(summary.scale.title, summary.score_format, rows)
    missing = [
        f"{line.label}: {str(line.result.reason).removeprefix(f'{line.result.method} ')}"
        for line in summary.lines if line.score is None
    ]  # fmt: skip
    shared = [f"{SHARED}."] if any(line.decided.letter for line in summary.scored) else []
    for sentence in (*missing, *shared, *summary.sentences):
        console.print(f"• {sentence}")
    say(", ".join(map(str, reports)))
    see = as_typed("python", "-m", "webbrowser", reports[0])
    suggest_line(next(iter(summary.commands.values()), see))


@app.command(rich_help_panel=opt.COMPARE)
def decide(
    scores: Annotated[
        Path,
        typer.Argument(
            exists=True,
            help="table of method, seed, row, score (and group), or logs of lm-eval, Inspect or "
            "promptfoo: a file, or a folder with METHOD-SEED for each run",
        ),
    ],
    margin: Margin = None,
    metric: Annotated[
        str | None, typer.Option(help="of the logs, where they have several, such as acc_norm")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="of the scores: %, or any; 0/1 and 0/100 need none")
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="scores are losses or errors")
    ] = False,
    costs: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="method → parameters, seconds, bytes"),
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="a name in the file without training; may be repeated")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Decide which method to take, from scores of any trainer."""
    from lorada.decision.decide import decide as decided
    from lorada.decision.read_scores import baseline_of, read_costs

    scores_read = _read_scores(scores, metric, lower_is_better=lower_is_better)
    read = scores_read.table
    without = {}
    for name in dict.fromkeys(baseline or []):
        if name not in read.scores:
            raise unknown_name("--baseline", name, read.scores)
        without[name] = baseline_of(name, read.scores.pop(name))
    seeds = {name: one for name, one in read.seeds.items() if name in read.scores}
    given = read_costs(costs) if costs else {}
    found = decided(
        read.scores, given, margin, lower_is_better=scores_read.lower_is_better,
        groups=read.groups, baselines=without, seeds=seeds, unit=unit,
    )  # fmt: skip
    if as_json:
        print_json(asdict(found))
        for sentence in scores_read.notes:
            note(f"• {sentence}.")
        return
    _show_decision(found)
    count = len(next(iter(read.scores.values()))[0])
    for sentence in scores_read.notes:
        console.print(f"• {sentence}.")
    console.print(f"• {_tested(count, read.groups, found)}")
    typed = [word for name in baseline or [] for word in ("--baseline", name)]
    typed += [] if metric is None else ["--metric", metric]
    typed += [] if margin is None else ["--margin", f"{margin:g}"]
    typed += [] if unit is None else ["--unit", unit]
    typed += ["--lower-is-better"] if lower_is_better else []
    suggest("decide", scores, *typed, *(["--costs", costs] if costs else []), "--json")


def _read_scores(path: Path, metric: str | None, *, lower_is_better: bool) -> Any:
    """The scores in a table or in logs of other tools, as ``LogScores``."""
    from lorada.data.files.read_rows import read_rows
    from lorada.decision.read_logs import LogScores, holds_logs, read_logs
    from lorada.decision.read_scores import read_scores

    if holds_logs(path):
        return read_logs(path, metric, lower_is_better=lower_is_better)
    if metric is not None:
        raise ValueError(f"--metric {metric} is for logs, but {path} is a table with one score")
    table = read_scores(read_rows(path), str(path))
    return LogScores(table, "score", lower_is_better=lower_is_better, notes=())


def _show_decision(found: Any) -> None:
    """Print the sentence and the table of a ``Decision``, then scores without training."""
    console.print(found.sentence)
    best_first = sorted(
        found.scores, key=found.scores.__getitem__, reverse=not found.lower_is_better
    )
    rows: list[Scored] = [
        (name, found.scores[name], *found.intervals[name], found.letters.get(name, ""),
         found.expected_loss.get(name), found.costs.get(name, {}).get("parameters"),
         found.mark(name)) for name in best_first
    ]  # fmt: skip
    rows += [
        (name, score, None, None, "", None, None, "") for name, score in found.baselines.items()
    ]
    _show_scores("score", found.score_format, rows)


def _tested(rows: int, groups: Sequence[str] | None, decision: Any) -> str:
    """What was tested, and how to read the letters; ``decision`` is a ``Decision``."""
    in_groups = f" in {len(set(groups))} groups" if groups is not None else ""
    runs = decision.runs.values()
    fewest, most = min(runs), max(runs)
    number_of_runs = counted(most, "run") if fewest == most else f"{fewest} to {most} runs"
    of = f"{counted(rows, 'row')}{in_groups}, {number_of_runs} of each method"
    if not any(decision.letters.values()):
        reason = "" if decision.no_letters in decision.sentence else f" {decision.no_letters}"
        return f"{of}.{reason}"
    return f"{of}. {SHARED} (t-tests, corrected for all pairs by Holm's method)."


def _show_scores(what: str, score_format: Any, rows: Sequence[Scored]) -> None:
    """Print the table: ``what`` heads the scores, a ``ScoreFormat`` writes them."""
    heads = ["", f"{what} ± 95 %", "group", "expected loss", "parameters", ""]
    lines = []
    for name, score, low, high, letter, loss, parameters, mark in rows:
        shown = NOTHING if score is None else score_format.number(score)
        if score is not None and low is not None and high is not None:
            shown += f" ± {score_format.number(max(high - score, score - low))}"
        lost = NOTHING if loss is None else score_format.short_loss(loss)
        trained = NOTHING if parameters is None else f"{parameters:,.0f}"
        lines.append([name, shown, letter or NOTHING, lost, trained, mark])
    wide = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("", overflow="fold")  # long names are folded where there is no room
    for head in heads[1:-1]:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    least = min(NAME, wide[0]) + sum(wide[1:]) + 2 * len(wide[1:])
    table.width = least if least > console.width else None
    console.print(table, crop=False)


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
