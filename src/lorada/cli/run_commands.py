"""The commands that make or use runs: train, evaluate, generate, export, run …"""

import gc
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from lorada.cli.app import (
    COMPLETE_TASK,
    METHOD,
    METRIC,
    MODEL,
    Columns,
    DataDir,
    Json,
    Remote,
    RunFolder,
    app,
    columns_of,
    console,
    errors,
    importing,
    loaded_run,
    print_json,
    prints_to_stderr,
    suggest,
)
from lorada.cli.queue_options import split_names
from lorada.support.processes import is_first, process_count, refuse_several

# Of the metrics; some are said in words.
NOT_SHOWN = ("sha256", "unfound", "max_new_tokens")
Tasks = Annotated[
    str | None,
    typer.Option(help="see `lorada tasks`; commas for more", autocompletion=COMPLETE_TASK),
]
TrainingData = Annotated[
    str | None, typer.Option(help="training rows: a file or a hub id; commas for more")
]
Output = Annotated[
    str | None, typer.Option(help="folder of the run; else the recipe's, or runs/TASK-METHOD-seedN")
]
SITE = Path(__file__).parent / "site"  # its sitecustomize.py is imported when Python starts


@app.command(no_args_is_help=True)
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="a YAML file or the name of a built-in recipe")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    method: Annotated[str | None, METHOD] = None,
    model: Annotated[str | None, MODEL] = None,
    task: Tasks = None,
    data_dir: DataDir = None,
    data: TrainingData = None,
    columns: Columns = None,
    output: Output = None,
    from_adapter: Annotated[
        str | None, typer.Option("--from", help="a saved PEFT adapter to start from")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --output")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="delete the run in --output first")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say what would be trained")
    ] = False,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Train a method on a model and your rows."""
    pairs = list(overrides or [])
    # In `lorada train --method lora rank=4` the first word is an override, not a recipe.
    if recipe is not None and "=" in recipe and not Path(recipe).is_file():
        pairs, recipe = [recipe, *pairs], None
    options = {
        "method": method, "model": model, "task": task, "data_dir": data_dir, "data": data,
        "columns": columns_of(columns), "output": output,
        "from_adapter": from_adapter, "trust_remote_code": remote or None,
    }  # fmt: skip
    asked = _asked(recipe, pairs, options, resume=resume)
    if is_first():  # other processes may already see what the first has begun to write
        _check_training(asked.recipe, resume=resume, overwrite=overwrite)
    with importing(quiet=as_json):
        from lorada.training.train import train as run_training

        loaded = asked.complete().with_absolute_paths()
    if dry_run:
        from lorada.cli.dry_run import show_training

        refuse_several("lorada train --dry-run")
        show_training(loaded, as_json=as_json)
        return
    with prints_to_stderr(as_json):
        trained = run_training(loaded, resume=resume, overwrite=overwrite, quiet=as_json)
    _print_result(trained, loaded, as_json=as_json)


def _asked(recipe: str | None, pairs: list[str], options: dict[str, Any], *, resume: bool) -> Any:
    """What was asked for, read; with ``resume``, the recipe in the output folder if none is named.

    A function of a file that only that recipe names is refused.
    """
    from lorada.data.metrics import refuse_unnamed
    from lorada.runs.recipe import RECIPE_FILE
    from lorada.support.models import check_name
    from lorada.training.load_recipe import read_recipe

    given = [pair.removeprefix("output=") for pair in pairs if pair.startswith("output=")]
    saved = Path((given or [options["output"] or ""])[-1]) / RECIPE_FILE
    resumed = resume and recipe is None and saved.is_file()
    if resume and recipe is None and not resumed and options["model"] is None:
        raise ValueError(f"{saved.parent} holds no run to resume: give the --output of one")
    if options["model"] is not None:  # first, since some methods' names need PEFT
        check_name(options["model"])
    asked = read_recipe(str(saved) if resumed else recipe, pairs, options, name_output=True)
    if resumed and not any(pair.startswith("metric=") for pair in pairs):
        refuse_unnamed(asked.recipe.metric, saved.parent, "metric=")
    return asked


def _check_training(recipe: Any, *, resume: bool, overwrite: bool) -> None:
    """Check the output folder, the model's name and the files of rows, before torch loads."""
    from lorada.data.rows import share_of, there
    from lorada.data.task_rows import refuse_absent
    from lorada.runs.folder import refuse_taken
    from lorada.support.models import check_name

    refuse_taken(recipe, resume=resume, overwrite=overwrite)
    check_name(recipe.model)
    refuse_absent(recipe, recipe.data)
    if recipe.eval_data is not None and share_of(recipe.eval_data) is None:
        there(recipe.eval_data)


def _print_result(trained: Any, recipe: Any, *, as_json: bool) -> None:
    """Print the result of a training and the next command; only the first process prints."""
    if not is_first():
        raise typer.Exit(130 if trained.interrupted else 0)
    if trained.interrupted:
        errors.print(f"stopped and saved at step {trained.result['steps']}")
        suggest("train", "--resume", "--output", trained.run, on=errors)
        raise typer.Exit(130)
    from lorada.cli.terminal import draw_loss, training_summary

    drawn = draw_loss(trained.run, trained.result)
    if not as_json:
        _say_why(trained.result)
        console.print(training_summary(trained.result), highlight=False, soft_wrap=True)
        console.print(drawn, highlight=False, soft_wrap=True)
    # Benchmarks are scored by a command of their own: their test rows can take hours.
    if recipe.eval_data is None or process_count() > 1:
        if as_json:
            print_json(trained.result)
        else:
            suggest_scoring(trained.run, recipe)
        return
    _score_held_out(trained.run, recipe, as_json=as_json)


def _say_why(result: dict[str, Any]) -> None:
    """Print by what the answers of a run are scored, if its rows have decided it."""
    metric = result.get("metric") or {}
    if metric.get("reason"):
        said = f"answers are scored by {metric['name']}, because {metric['reason']}"
        console.print(said, highlight=False, soft_wrap=True)


def _score_held_out(run: Path, recipe: Any, *, as_json: bool) -> None:
    """Score a run that has just been trained on its held-out rows, and print what was found."""
    gc.collect()  # the Trainer refers to itself, so its model would stay beside the loaded one
    loaded = loaded_run(run, recipe.model, remote=recipe.trust_remote_code, quiet=as_json)
    from lorada.data.rows import share_of
    from lorada.inference.evaluate import evaluate as evaluate_file
    from lorada.runs.result import read_result

    metrics = evaluate_file(loaded, metric=recipe.metric)
    if as_json:
        print_json(read_result(run))
        return
    held_out = recipe.eval_data
    held_out += f" of {recipe.data}" if share_of(held_out) is not None else ""
    console.print(f"scored on {held_out}:", highlight=False, soft_wrap=True)
    _print_scores({"": metrics})
    _suggest_use(run, loaded.form)


def suggest_scoring(run: Path, recipe: Any, on: Console = console) -> None:
    """Suggest to score a run, with --data FILE if its recipe names no rows."""
    suggest("evaluate", run, *([] if recipe.scores_rows else ["--data", "FILE"]), on=on)


def scored_run(run: Path, data: str | None, data_dir: str | None, metric: str | None = None) -> Any:
    """The recipe of a finished run, if the rows to score it on are there; before torch loads.

    ``data`` are files of rows, None for those of the recipe; ``metric`` is what is asked for.
    """
    from lorada.data.metrics import refuse_unnamed
    from lorada.data.rows import share_of
    from lorada.data.task_rows import refuse_absent
    from lorada.runs.folder import finished_run
    from lorada.runs.recipe import JSONL

    recipe = finished_run(run)
    own = recipe.data if share_of(recipe.eval_data) is not None else recipe.eval_data
    refuse_absent(recipe, data or own, data_dir)
    if metric is None:
        refuse_unnamed(recipe.metric, run)
    elif data is None and recipe.task != JSONL:
        raise ValueError(
            f"--metric {metric} is for rows of your own, and task={recipe.task} has its own: leave "
            "it out"
        )
    return recipe


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="held-out rows; else the recipe's")] = None,
    columns: Columns = None,
    data_dir: DataDir = None,
    base: Annotated[
        bool, typer.Option("--base", help="score the base, adapter switched off")
    ] = False,
    metric: Annotated[str | None, METRIC] = None,
    lm_eval: Annotated[
        str | None, typer.Option(help="score on tasks of lm-eval instead; commas for more")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="rows of each lm-eval task")] = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="also keep each row's text in predictions.jsonl")
    ] = False,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Score a finished run on held-out rows, on the test rows of its tasks, or by lm-eval."""
    if lm_eval is None and limit is not None:
        raise ValueError(f"--limit {limit} is for --lm-eval: eval_rows of the recipe limits others")
    named = columns_of(columns, data)
    own = data or data_dir or ("--with-text" if with_text else None)
    own = f"--metric {metric}" if metric else own
    if lm_eval is not None and own is not None:
        raise ValueError(f"--lm-eval {lm_eval} has rows and answers of its own: leave out {own}")
    from lorada.runs.folder import writers

    recipe = writers([run]) if lm_eval is not None else scored_run(run, data, data_dir, metric)
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.inference.evaluate import evaluate as evaluate_file
    from lorada.inference.evaluate import evaluate_tasks, has_tasks
    from lorada.runs.result import read_result

    if lm_eval is not None:
        from lorada.inference.evaluate import evaluate_lm_eval

        tasks = split_names("lm-eval", lm_eval) or []
        with redirect_stdout(sys.stderr):  # lm-eval and its tasks print
            found = evaluate_lm_eval(loaded, tasks, limit=limit, base=base)
    elif data is None and has_tasks(loaded):
        found = evaluate_tasks(loaded, data_dir, base=base, with_text=with_text)
    else:
        scored = evaluate_file(
            loaded, data, columns=named, base=base, with_text=with_text, metric=metric
        )
        found = {"": scored}
    if as_json:
        print_json(found.get("", found))
        return
    _print_scores(found)
    if metric is None:
        _say_why(read_result(run))
    _suggest_use(run, loaded.form)


def _print_scores(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the metrics of each task as a table; the rows of a user have no name of a task."""
    own = [*found] == [""]
    table = Table(*([] if own else ["task"]), "metric", "value")
    for task, metrics in found.items():
        for name, value in metrics.items():
            shown = (
                f"{value:.3f}"
                if isinstance(value, float)
                else str("undefined" if value is None else value)
            )
            if name not in NOT_SHOWN:
                table.add_row(*([] if own else [task]), name, shown)
    console.print(table)
    for metrics in found.values():
        if metrics.get("cut"):
            said = f"{metrics['cut']} of {metrics['n']} answers were cut at"
            console.print(f"{said} {metrics['max_new_tokens']} tokens", highlight=False)
        if "unfound" in metrics:
            console.print(f"{metrics['unfound']} were found", highlight=False, soft_wrap=True)


def _suggest_use(run: Path, form: str) -> None:
    """Suggest what to do with a run that has been scored."""
    from lorada.support.row_sources import HEADED

    if form in HEADED:
        suggest("predict", run, "--text", "TEXT")
    else:
        suggest("generate", run, "--prompt", "TEXT")


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[list[str], typer.Option(help="a text to continue; repeat for more")],
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="tokens to generate")] = None,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Continue prompts with a finished run."""
    from lorada.runs.folder import writers

    recipe = writers([run])
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.inference.generate import continue_prompts

    outputs = continue_prompts(loaded, prompt, max_new_tokens)
    if as_json:
        print_json([{"prompt": p, "output": o} for p, o in zip(prompt, outputs, strict=True)])
        return
    for text in outputs:
        console.print(text, highlight=False, soft_wrap=True)
    suggest_scoring(run, recipe)


# All words after the program's name, even `--help`, are passed to the program.
@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run(
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="program and its arguments")],
) -> None:
    """Run another program (lm_eval, trl, accelerate …) that loads adapters of lorada."""
    start_program(command)


def start_program(command: list[str]) -> NoReturn:
    """Replace this process by a command, so that exit code and signals are the command's.

    The program is looked for in the folder of this Python first, where it has the same packages.
    """
    own_folder = str(Path(sys.executable).parent)
    program = shutil.which(command[0], path=own_folder) or shutil.which(command[0])
    if program is None:
        script = Path(command[0]).is_file()
        remedy = f"write lorada run python {command[0]}" if script else "is it installed?"
        raise ValueError(f"no command {command[0]!r} on PATH: {remedy}")
    before = os.environ.get("PYTHONPATH")
    path = f"{SITE}{os.pathsep}{before}" if before else str(SITE)
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and the command would inherit that
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    # The full path, because a Python finds its environment by this name.
    os.execve(program, [program, *command[1:]], {**os.environ, "PYTHONPATH": path})
