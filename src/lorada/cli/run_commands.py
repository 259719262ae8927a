"""The commands ``train``, ``evaluate``, ``generate`` and ``run``."""

import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorada.cli import options as opt
from lorada.cli.app import (
    app,
    console,
    errors,
    importing,
    loaded_run,
    print_json,
    prints_to_stderr,
    say,
    suggest,
    without_override,
)
from lorada.support.models import check_name
from lorada.support.processes import is_first, refuse_several
from lorada.support.row_sources import HEADED

# Of the metrics; some are said in words.
NOT_SHOWN = ("sha256", "unfound", "max_new_tokens")
SITE = Path(__file__).parent / "site"  # its sitecustomize.py is imported when Python starts


@app.command(no_args_is_help=True, rich_help_panel=opt.TRAIN)
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="a YAML file, or the built-in recipe syllogisms")
    ] = None,
    overrides: opt.Overrides = None,
    method: Annotated[str | None, opt.METHOD] = None,
    model: Annotated[str | None, opt.MODEL] = None,
    task: Annotated[str | None, typer.Option(help="see `lorada tasks`; commas for more")] = None,
    data_dir: opt.DataDir = None,
    data: Annotated[
        str | None, typer.Option(help="training rows: a file or a hub id; commas for more")
    ] = None,
    columns: opt.Columns = None,
    output: Annotated[str | None, typer.Option(help="folder of the run; else the recipe's")] = None,
    from_adapter: Annotated[
        str | None, typer.Option("--from", help="a saved PEFT adapter to start from")
    ] = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Train a method on a model and your rows."""
    recipe, pairs = without_override(recipe, overrides)
    options = {
        "method": method, "model": model, "task": task, "data_dir": data_dir, "data": data,
        "columns": columns, "output": output,
        "from_adapter": from_adapter, "trust_remote_code": remote or None,
    }  # fmt: skip
    asked = _asked(recipe, pairs, options, resume=resume)
    if is_first():  # other processes may already see what the first has begun to write
        from lorada.runs.folder import refuse_taken

        refuse_taken(asked.recipe, resume=resume, overwrite=overwrite)
        check_inputs(asked.recipe, asked.recipe.eval_data)
    with importing(quiet=as_json):
        from lorada.training.train import train as run_training

        loaded = asked.complete().with_absolute_paths()
    if dry_run:
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
    from lorada.training.load_recipe import read_recipe

    saved = Path(options["output"] or ".") / RECIPE_FILE
    resumed = resume and recipe is None and saved.is_file()
    if resumed:  # the output in its recipe is relative to another folder
        recipe, options = str(saved), {**options, "output": str(saved.parent)}
    elif resume and recipe is None and options["model"] is None:
        raise ValueError(f"{saved.parent} holds no run to resume: give the --output of one")
    if options["model"] is not None:  # first, since some methods' names need PEFT
        check_name(options["model"])
    asked = read_recipe(recipe, pairs, options)
    if resumed and not any(pair.startswith("metric=") for pair in pairs):
        refuse_unnamed(asked.recipe.metric, saved.parent, "metric=")
    return asked


def check_inputs(recipe: Any, held_out: str | None) -> None:
    """Check the model's name and that the rows are there, before torch loads."""
    from lorada.data.read_rows import share_of, there
    from lorada.data.task_rows import refuse_absent

    check_name(recipe.model)
    refuse_absent(recipe, recipe.data)
    if held_out is not None and share_of(held_out) is None:
        there(held_out)


def show_training(recipe: Any, *, as_json: bool) -> None:
    """Print the rows and parameters of a training, and its first row; no weights are loaded."""
    from lorada.data.tokenize import fit_context, lost_and_first
    from lorada.training.inputs import prepare_training
    from lorada.training.models.loading import stretched
    from lorada.training.parameter_counts import parameters_of, refuse_impossible
    from lorada.training.train import checked_arguments

    prepared = prepare_training(recipe)
    args, *_ = checked_arguments(prepared, quiet=True)
    counts = parameters_of(recipe)
    refuse_impossible(prepared.recipe, prepared.plan, counts)
    chosen = "full" if args.gradient_checkpointing else "off"
    fitted = fit_context(prepared.recipe, stretched(prepared.config, recipe.rope_factor))
    lost, row = lost_and_first(prepared.rows, fitted, prepared.tokenizer, prepared.kind)
    if as_json:
        print_json({
            "method": recipe.method, "model": recipe.model, "output": recipe.output,
            "rows": len(prepared.rows.rows), "classes": prepared.rows.classes, **lost, **counts,
            "held_out": len(prepared.held_out.rows) if prepared.held_out else 0,
            "activation_checkpointing": chosen, "first_row": row,
        })  # fmt: skip
        return
    say(f"{recipe.output}: {recipe.method} on {recipe.model}, {_parameters(counts)}")
    said = ", ".join(f"{count:,} {what}" for what, count in lost.items())
    say(f"{len(prepared.rows.rows):,} rows at max_length={fitted.max_length}: {said}")
    asked = recipe.activation_checkpointing
    takes = f"{asked} takes {chosen}" if asked == "auto" else asked
    say(f"activation_checkpointing={takes}")
    if row is not None:
        say(_shown_row(row))


def _parameters(counts: Mapping[str, Any]) -> str:
    return f"{counts['trainable']:,} parameters ({counts['percent']:.3f}%)"


def _shown_row(row: dict[str, Any]) -> Text:
    """A row as the model reads it, with what counts in the loss between marks."""
    what = f"the {row['counted']:,} between ⟦ and ⟧ count in the loss"
    if row["learned"] is not None:
        what = f"the head learns {row['learned']!r}"
    which = "the first window" if row["row"] is None else f"row {row['row']}"
    head = f"{which} as the model reads it, {row['tokens']:,} tokens; {what}:\n"
    pieces = ((f"⟦{text}⟧", "bold") if counts else text for text, counts in row["pieces"])
    return Text.assemble(head, *pieces)


def _print_result(trained: Any, recipe: Any, *, as_json: bool) -> None:
    """Print the result of a training and the next command; only the first process prints."""
    if not is_first():
        raise typer.Exit(130 if trained.interrupted else 0)
    if trained.interrupted:
        errors.print(f"stopped and saved at step {trained.result['steps']}")
        suggest("train", "--resume", "--output", trained.run, on=errors)
        raise typer.Exit(130)
    result = trained.result
    if as_json:
        print_json(result)
        return
    _say_why(result)
    losses = [loss for entry in result["history"] if (loss := entry.get("loss")) is not None]
    say(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last" if losses else "no loss")
    effect = result["relative_norm"]
    text = f", relative norm {effect:.2g}" if effect is not None else ""
    say(
        f"{result['method']} on {result['model']}: {_parameters(result['parameters'])}, "
        f"{result['steps']} steps in {result['wall_time_s']:.0f} s, "
        f"peak memory {result['peak_memory_bytes'] / 2**30:.1f} GiB{text}"
    )
    suggest_scoring(trained.run, recipe)


def _say_why(result: dict[str, Any]) -> None:
    """Print by what the answers of a run are scored, if its rows have decided it."""
    metric = result.get("metric") or {}
    if metric.get("reason"):
        say(f"answers are scored by {metric['name']}, because {metric['reason']}")


def suggest_scoring(run: Path, recipe: Any, on: Console = console) -> None:
    """Suggest to score a run, with --data FILE if its recipe names no rows."""
    suggest("evaluate", run, *([] if recipe.scores_rows else ["--data", "FILE"]), on=on)


def scored_run(run: Path, data: str | None, data_dir: str | None, metric: str | None = None) -> Any:
    """The recipe of a finished run, if the rows to score it on are there; before torch loads.

    ``data`` are files of rows, None for those of the recipe; ``metric`` is what is asked for.
    """
    from lorada.data.metrics import refuse_unnamed
    from lorada.data.read_rows import share_of
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


@app.command(rich_help_panel=opt.TRAIN)
def evaluate(
    run: opt.RunFolder,
    data: Annotated[str | None, typer.Option(help="held-out rows; else the recipe's")] = None,
    columns: opt.Columns = None,
    data_dir: opt.DataDir = None,
    base: Annotated[bool, typer.Option("--base", help="score the base alone")] = False,
    metric: opt.Metric = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="keep the text of each row too")
    ] = False,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Score a finished run on held-out rows, or on the test rows of its tasks."""
    recipe = scored_run(run, data, data_dir, metric)
    opt.refuse_columns(columns, data)
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.inference import evaluate as scoring
    from lorada.runs.result import read_result

    if data is None and scoring.has_tasks(loaded):
        found = scoring.evaluate_tasks(loaded, data_dir, base=base, with_text=with_text)
    else:
        scored = scoring.evaluate(
            loaded, data, columns=columns, base=base, with_text=with_text, metric=metric
        )
        found = {"": scored}
    if as_json:
        print_json(found.get("", found))
        return
    _print_scores(found)
    if metric is None:
        _say_why(read_result(run))
    if loaded.form in HEADED:
        suggest("predict", run, "--text", "TEXT")
    elif loaded.form == "messages":
        suggest("chat", run)
    else:
        suggest("generate", run, "--prompt", "TEXT")


def _print_scores(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the metrics of each task as a table; the rows of a user have no name of a task."""
    own = [*found] == [""]
    table = Table(*([] if own else ["task"]), "metric", "value")
    for task, metrics in found.items():
        for name, value in metrics.items():
            if name not in NOT_SHOWN:
                shown = f"{value:.3f}" if isinstance(value, float) else str(value)
                shown = "undefined" if value is None else shown
                table.add_row(*([] if own else [task]), name, shown)
    console.print(table)
    for metrics in found.values():
        if metrics.get("cut"):
            said = f"{metrics['cut']} of {metrics['n']} answers were cut at"
            console.print(f"{said} {metrics['max_new_tokens']} tokens")
        if "unfound" in metrics:
            say(f"{metrics['unfound']} were found")


@app.command(rich_help_panel=opt.TRAIN)
def generate(
    run: opt.RunFolder,
    prompt: Annotated[list[str], typer.Option(help="a text to continue; repeat for more")],
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="tokens to generate")] = None,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Continue prompts with a finished run."""
    from lorada.runs.folder import writer

    recipe = writer(run)
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.inference import generate as generation

    outputs = generation.generate(loaded, prompt, max_new_tokens)
    if as_json:
        print_json([{"prompt": p, "output": o} for p, o in zip(prompt, outputs, strict=True)])
        return
    for text in outputs:
        say(text)
    suggest_scoring(run, recipe)


# All words after the program's name, even `--help`, are passed to the program. It takes the place
# of this process, so that exit code and signals are its own.
@app.command(
    rich_help_panel=opt.TRAIN,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run(
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="program and its arguments")],
) -> None:
    """Run another program (lm_eval, trl, accelerate …) that loads adapters of lorada."""
    become(command)


def become(command: list[str], folder: Path | None = None) -> None:
    """Go on as another program that loads adapters of lorada, in a ``folder`` if that is given."""
    own_folder = str(Path(sys.executable).parent)  # where a program has the same packages
    program = shutil.which(command[0], path=own_folder) or shutil.which(command[0])
    if program is None:
        raise ValueError(f"no command {command[0]!r} on PATH: is it installed?")
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = os.pathsep.join((str(SITE), *map(os.path.abspath, own)))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and so by what it starts
        signal.signal(number, signal.SIG_DFL)
    if folder is not None:
        os.chdir(folder)
    # The full path, because a Python finds its environment by this name.
    os.execve(program, [program, *command[1:]], {**os.environ, "PYTHONPATH": path})
