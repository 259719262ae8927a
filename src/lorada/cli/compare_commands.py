"""The commands ``compare``, ``report``, ``decide``, ``quickstart``: which method is the best."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorada.cli import options as opt
from lorada.cli import several_models
from lorada.cli.forecast_table import show_forecast
from lorada.cli.retention_table import show_retention
from lorada.cli.score_table import SHARED, ScoreLine, show_scores, what_was_tested
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
from lorada.support.in_words import counted

if TYPE_CHECKING:
    from lorada.compare.report.summarize_comparison import Summary
    from lorada.decision.decision_record import Decision
    from lorada.decision.read_scores import ScoreTable

Methods = Annotated[
    Any, typer.Option(parser=opt.parse_names, metavar="NAMES", help="such as lora,lora:r=1,ia3")
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
Margin = Annotated[
    float | None,
    typer.Option(
        help="what a cheaper method may cost: a point, or a fifth of the best one's errors if that "
        "is less; of losses 2 % of the lowest; other units need one"
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
BaselineNames = Annotated[
    list[str] | None, typer.Option(help="a name in the file without training; may be repeated")
]
AlternativeNames = Annotated[
    list[str] | None,
    typer.Option(help="a name that may be taken instead of a training; may be repeated"),
]


@app.command(no_args_is_help=True, rich_help_panel=opt.COMPARE)
def compare(
    folder: Annotated[str | None, typer.Argument(help="a comparison, for --resume")] = None,
    overrides: opt.Overrides = None,
    methods: Methods = None,
    model: Annotated[
        str | None, typer.Option(help="hub id, folder, or a packaged name; several with commas")
    ] = None,
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
    margin: Margin = None,
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
    target = _target_folder(folder, output, resume=resume, overwrite=overwrite)
    recipe_options = {
        "model": model, "data": data, "columns": columns, "task": task,
        "data_dir": data_dir, "metric": metric, "trust_remote_code": remote or None,
    }  # fmt: skip
    comparison_options = {
        "methods": methods, "budgets": budget, "seeds": seeds, "trials": trials, "rates": rates,
        "until": until, "margin": margin, "held_out": held_out, "keep": keep, "shots": shots,
        "answers": answers, "with_text": with_text, "allow_overlap": allow_overlap or None,
    }  # fmt: skip
    pool_factory = partial(make_pool, workers, cluster, gpus_per_job)
    is_new = not resume or (folder is None and methods is not None and _is_new(target))
    read = _new_comparison if is_new else partial(_saved_comparison, target)
    if models := several_models.models_of(model, target, resume=resume):
        return several_models.compare_each(
            models, target, partial(_saved_comparison if resume else _new_comparison, pairs=pairs),
            (recipe_options, comparison_options), pool_factory,
            resume=resume, overwrite=overwrite, dry_run=dry_run, as_json=as_json,
        )  # fmt: skip
    comparison = read(pairs, recipe_options, comparison_options)
    if dry_run:
        gpus = _gpus_here(gpus_per_job, cluster)
        _forecast(comparison, target, pool_factory, gpus, resume=resume, as_json=as_json)
        return None
    return _run(comparison, target, pool_factory, overwrite=overwrite, as_json=as_json)


def _gpus_here(gpus_per_job: float, cluster: str | None) -> float:
    """The GPUs of a job that is measured on this machine, which may be outside of the cluster."""
    return gpus_per_job if cluster is None else min(1.0, gpus_per_job)


def _target_folder(
    folder: str | None, output: str | None, *, resume: bool, overwrite: bool
) -> Path:
    """The folder of a comparison: a new one is named by --output, an old one by either word.

    One that may not be written to is refused.
    """
    from lorada.compare.spec import refuse_taken

    if folder is not None and not resume:
        raise ValueError(f"{folder}: a folder is for --resume; pass --output FOLDER for a new one")
    if folder is None and output is None:
        raise ValueError("no folder for the comparison: pass --output FOLDER, or FOLDER --resume")
    target = Path(str(folder or output))
    refuse_taken(target, resume=resume, overwrite=overwrite)
    return target


def _is_new(folder: Path) -> bool:
    """Whether no comparison has begun in a folder, so that one can begin there with --resume.

    A command that has all that it takes to begin may be given to each of several machines: the
    first one begins, and the others find its comparison in the folder.
    """
    from lorada.compare.spec import SPEC_FILE

    return not (folder / SPEC_FILE).is_file()


def _new_comparison(
    pairs: list[str], recipe_options: dict[str, Any], comparison_options: dict[str, Any]
) -> Any:
    """The ``Comparison`` that options describe; most mistakes are found before torch is loaded.

    Args:
        pairs: settings ``key=value`` of the trainings.
        recipe_options: options that a recipe has; None for one that is not given.
        comparison_options: options of the comparison itself, likewise.
    """
    from lorada.compare import spec
    from lorada.data.files.read_rows import HELD_OUT
    from lorada.training.load_recipe import read_recipe

    draft = read_recipe(None, pairs, {**recipe_options, **spec.FIXED})
    # A first, unchecked comparison knows the held-out rows, so that missing files are seen early.
    first = spec.comparison_of(draft.recipe, comparison_options)
    check_inputs(draft.recipe, first.held_out, HELD_OUT, resumed=False, keep=first.keep)
    with importing():  # settings are checked against PEFT's and transformers' classes
        return spec.comparison_of(draft.complete(), comparison_options)


def _saved_comparison(
    folder: Path,
    pairs: list[str],
    recipe_options: dict[str, Any],
    comparison_options: dict[str, Any],
) -> Any:
    """The ``Comparison`` in a folder; refuses options that say something else than it does.

    Args:
        folder: of the comparison.
        pairs: settings ``key=value`` of the trainings.
        recipe_options: options that a recipe has; None for one that is not given.
        comparison_options: options of the comparison itself, likewise.
    """
    from lorada.compare import spec
    from lorada.data.files.read_rows import HELD_OUT

    saved = spec.saved_comparison(folder)
    draft = spec.asked_again(saved, pairs, recipe_options)
    check_inputs(draft.recipe, saved.held_out, HELD_OUT, resumed=True, keep=saved.keep)
    with importing():
        return spec.resumed_comparison(folder, saved, draft.complete(), comparison_options)


def _run(comparison: Any, folder: Path, pool: Any, *, overwrite: bool, as_json: bool) -> Any:
    """Run a comparison, and print its report, or how to go on if jobs are left to others.

    Returns:
        Its summary; None while jobs are left.

    Raises:
        typer.Exit: with code 2 if a job has failed, after all that is printed.
    """
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
    if compared.summary is None:
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
    """Print what a comparison would run, and the time and memory that it would take.

    Args:
        comparison: what is asked.
        folder: of it.
        pool_factory: makes what would run the jobs.
        gpus_per_job: on this machine, where the time of a job is measured.
        resume: whether to go on with what is in the folder.
        as_json: whether to print for programs.
    """
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
        train, held_out = plan.train_lengths, plan.held_out_lengths
        lengths = {
            "train_lengths": None if train is None else asdict(train),
            "held_out_lengths": None if held_out is None else asdict(held_out),
        }
        print_json({**estimate.plain(), **lengths, "kept_rows": plan.kept.count})
        return
    show_forecast(estimate)
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
    margin: Margin = None,
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
    baseline: BaselineNames = None,
    alternative: AlternativeNames = None,
    as_json: opt.Json = False,
) -> None:
    """Decide which method to take, from scores of any trainer."""
    from lorada.decision.decide import decide as decide_method
    from lorada.decision.read_scores import read_costs

    scores_read = _read_scores(scores, metric, lower_is_better=lower_is_better)
    table = scores_read.table
    alternatives = _take_alternatives(table, alternative or [], baseline or [])
    baselines = _take_baselines(table, baseline or [])
    decision = decide_method(
        table.scores,
        read_costs(costs) if costs else {},
        margin,
        lower_is_better=scores_read.lower_is_better,
        groups=table.groups,
        baselines=baselines,
        alternatives=alternatives,
        seeds={name: seeds for name, seeds in table.seeds.items() if name in table.scores},
        unit=unit,
    )
    notes = [f"• {sentence}." for sentence in scores_read.notes]
    if as_json:
        print_json(asdict(decision))
        for line in notes:
            note(line)
        return
    _show_decision(decision)
    row_count = len(next(iter(table.scores.values()))[0])
    for line in notes:
        console.print(line)
    console.print(f"• {what_was_tested(row_count, table.groups, decision)}")
    options = {"--metric": metric, "--margin": margin, "--unit": unit, "--costs": costs}
    names = {"--baseline": baseline, "--alternative": alternative}
    words = _as_words(options, names, lower_is_better=lower_is_better)
    suggest("decide", scores, *words, "--json")


def _take_baselines(table: "ScoreTable", names: Sequence[str]) -> dict[str, Any]:
    """Take what needs no training out of a table, as it is no method to choose.

    Returns:
        Name → the score of each row.
    """
    from lorada.decision.read_scores import baseline_of

    baselines = {}
    for name in dict.fromkeys(names):
        if name not in table.scores:
            raise unknown_name("--baseline", name, table.scores)
        baselines[name] = baseline_of(name, table.scores.pop(name))
    return baselines


def _take_alternatives(
    table: "ScoreTable", names: Sequence[str], baselines: Sequence[str]
) -> dict[str, Any]:
    """The runs of what may be taken instead of a training: a prompt, another model."""
    from lorada.decision.read_scores import finished_runs

    alternatives = {}
    for name in dict.fromkeys(names):
        if name in baselines:
            raise ValueError(f"{name} is a baseline and an alternative: leave one of them out")
        if name not in table.scores:
            raise unknown_name("--alternative", name, table.scores)
        alternatives[name] = finished_runs("--alternative", name, table.scores.pop(name))
    return alternatives


def _as_words(
    options: Mapping[str, object], names: Mapping[str, list[str] | None], *, lower_is_better: bool
) -> list[str]:
    """Options of ``lorada decide`` as they are typed, those that were given."""
    words = []
    for option, names_of_option in names.items():
        for name in names_of_option or []:
            words += [option, name]
    for option, value in options.items():
        if isinstance(value, float):
            words += [option, f"{value:g}"]
        elif value is not None:
            words += [option, str(value)]
    if lower_is_better:
        words.append("--lower-is-better")
    return words


def _read_scores(path: Path, metric: str | None, *, lower_is_better: bool) -> Any:
    """Read the scores in a table or in logs of other tools, as ``LogScores``."""
    from lorada.data.files.read_rows import read_rows
    from lorada.decision.read_logs import LogScores, holds_logs, read_logs
    from lorada.decision.read_scores import read_scores

    if holds_logs(path):
        return read_logs(path, metric, lower_is_better=lower_is_better)
    if metric is not None:
        raise ValueError(f"--metric {metric} is for logs, but {path} is a table with one score")
    table = read_scores(read_rows(path), str(path))
    return LogScores(table, "score", lower_is_better=lower_is_better, notes=())


def _show_decision(decision: "Decision") -> None:
    """Print a decision's sentence and its table: methods, the best first, then baselines."""
    console.print(decision.sentence)
    highest_first = not decision.lower_is_better
    best_first = sorted(decision.scores, key=decision.scores.__getitem__, reverse=highest_first)
    lines = []
    for name in best_first:
        low, high = decision.intervals[name]
        lines.append(
            ScoreLine(
                name, decision.scores[name], low, high, decision.letters.get(name, ""),
                decision.expected_loss.get(name), decision.costs.get(name, {}).get("parameters"),
                decision.mark(name),
            )
        )  # fmt: skip
    without_training = decision.baselines | decision.alternatives
    lines += [ScoreLine(name, score) for name, score in without_training.items()]
    show_scores("score", decision.score_format, lines)


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
