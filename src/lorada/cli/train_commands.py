"""The command ``train``."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lorada.cli import options as opt
from lorada.cli.shared import (
    app,
    errors,
    importing,
    print_json,
    prints_to_stderr,
    say,
    say_why,
    split_overrides,
    suggest,
    suggest_scoring,
)
from lorada.support.in_words import counted
from lorada.support.models import check_name
from lorada.support.processes import is_main_process, refuse_several

if TYPE_CHECKING:  # its import takes seconds
    from lorada.data.dry_run import FirstRow


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
        str | None, typer.Option("--from", help="a run, or a saved PEFT adapter, to start from")
    ] = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Train a method on a model and your rows."""
    recipe, pairs = split_overrides(recipe, overrides)
    options = {
        "method": method, "model": model, "task": task, "data_dir": data_dir, "data": data,
        "columns": columns, "output": output,
        "from_adapter": from_adapter, "trust_remote_code": remote or None,
    }  # fmt: skip
    draft = _read_draft(recipe, pairs, options, resume=resume)
    if is_main_process():  # other processes may already see what the first has begun to write
        from lorada.data.files.read_rows import EVAL_DATA
        from lorada.runs.folder import refuse_taken

        refuse_taken(draft.recipe, resume=resume, overwrite=overwrite)
        check_inputs(draft.recipe, draft.recipe.eval_data, EVAL_DATA, resumed=resume)
    with importing(quiet=as_json):
        from lorada.training.train import train as run_training

        # The run keeps its recipe, which is read from any folder later.
        complete_recipe = draft.complete().with_absolute_paths()
    if dry_run:
        refuse_several("lorada train --dry-run")
        show_training(complete_recipe, as_json=as_json)
        return
    with prints_to_stderr(as_json):
        trained = run_training(complete_recipe, resume=resume, overwrite=overwrite, quiet=as_json)
    _print_result(trained, complete_recipe, as_json=as_json)


def _read_draft(
    recipe: str | None, pairs: list[str], options: dict[str, Any], *, resume: bool
) -> Any:
    """Read the ``RecipeDraft`` of a command line, and check the model's name.

    With ``resume`` it is of the recipe in the output folder, if the command names no other. A
    function of a file that only that recipe names is refused.

    Args:
        recipe: a YAML file or a built-in recipe; None for none.
        pairs: settings ``key=value``.
        options: those of the command line; None for one that is not given.
        resume: whether to go on with the run in the output folder.
    """
    from lorada.data.scoring.row_metrics import refuse_unnamed
    from lorada.runs.recipe import RECIPE_FILE
    from lorada.training.load_recipe import read_recipe

    saved_recipe = Path(options["output"] or ".") / RECIPE_FILE
    run = saved_recipe.parent
    reads_saved = resume and recipe is None and saved_recipe.is_file()
    if reads_saved:
        # The output in the saved recipe may be relative to another folder.
        recipe, options = str(saved_recipe), {**options, "output": str(run)}
    elif resume and recipe is None and options["model"] is None:
        raise ValueError(f"{run} holds no run to resume: give the --output of one")
    if options["model"] is not None:  # first, since some methods' names need PEFT
        check_name(options["model"])
    draft = read_recipe(recipe, pairs, options)
    names_metric = any(pair.startswith("metric=") for pair in pairs)
    if reads_saved and not names_metric:
        refuse_unnamed(draft.recipe.metric, run, "metric=")
    return draft


def check_inputs(
    recipe: Any, held_out: str | None, setting: Any, *, resumed: bool, keep: str | None = None
) -> None:
    """Check the model's name and that the rows are there, before torch loads.

    Args:
        recipe: with the training rows.
        held_out: files of held-out rows, or a share of the training rows; None for none.
        setting: the ``RowsSetting`` that names the held-out rows.
        resumed: whether the rows must be those of before, which errors then say.
        keep: files of rows that a model should still do; None for none of the user's.
    """
    from lorada.data.files.read_rows import DATA, KEEP, refuse_missing
    from lorada.data.rows.held_out_share import share_of
    from lorada.data.rows.training_rows import refuse_absent
    from lorada.runs.folder import read_template

    check_name(recipe.model)
    if recipe.chat_template is not None:
        read_template(recipe.chat_template)
    refuse_absent(recipe, recipe.data, setting=DATA.resumed if resumed else DATA)
    if held_out is not None and share_of(held_out) is None:  # a share lies in the training rows
        refuse_missing(held_out, setting.resumed if resumed else setting)
    if keep is not None:
        refuse_missing(keep, KEEP.resumed if resumed else KEEP)


def show_training(recipe: Any, *, as_json: bool) -> None:
    """Print the rows and parameters of a training, and its first row; no weights are loaded."""
    from lorada.data.dry_run import examine_rows
    from lorada.data.tokenize import fit_context
    from lorada.training.inputs import prepare_training
    from lorada.training.models.adapters import config_to_start, trained_parts
    from lorada.training.models.loading import stretched
    from lorada.training.parameter_counts import parameters_of, refuse_impossible
    from lorada.training.setup import trainer_settings

    # The same steps as a training takes, up to where it would load weights, so that it would be
    # refused for the same mistakes.
    prepared = prepare_training(recipe)
    rows, held_out = prepared.rows, prepared.held_out
    args = trainer_settings(prepared, quiet=True).args
    counts = parameters_of(recipe)
    refuse_impossible(prepared.recipe, prepared.plan, counts)
    checkpointing = "full" if args.gradient_checkpointing else "off"
    # What a training does with rows that are longer than the model's context.
    fitted = fit_context(prepared.recipe, stretched(prepared.config, recipe.rope_factor))
    examine = partial(
        examine_rows,
        recipe=fitted,
        tokenizer=prepared.tokenizer,
        kind=prepared.kind,
        reads=prepared.context,
    )
    examined_rows = examine(rows)
    examined_held_out = None if held_out is None else examine(held_out)
    if as_json:
        print_json({
            "method": recipe.method, "model": recipe.model, "output": recipe.output,
            "rows": len(rows.rows), "classes": rows.classes, **_counts_of(examined_rows), **counts,
            "lengths": _lengths_of(examined_rows),
            "held_out": len(held_out.rows) if held_out else 0,
            "held_out_lengths": examined_held_out and _lengths_of(examined_held_out),
            "activation_checkpointing": checkpointing,
            "first_row": examined_rows.first and asdict(examined_rows.first),
        })  # fmt: skip
        return
    parameters = _parameters(counts["trainable"], counts["percent"])
    say(f"{recipe.output}: {recipe.method} on {recipe.model}, {parameters}")
    if recipe.from_adapter is not None and prepared.plan.config is not None:
        config, old_kinds = config_to_start(prepared.plan.config, recipe, prepared.config)
        say(trained_parts(config, old_kinds, recipe))
    _say_examined("row", len(rows.rows), examined_rows, fitted.max_length)
    if held_out is not None and examined_held_out is not None:
        _say_examined("held-out row", len(held_out.rows), examined_held_out, fitted.max_length)
    setting = recipe.activation_checkpointing
    if setting == "auto":
        say(f"activation_checkpointing=auto takes {checkpointing}")
    else:
        say(f"activation_checkpointing={setting}")
    if examined_rows.first is not None:
        say(_first_row_text(examined_rows.first))


def _lengths_of(examined_rows: Any) -> dict[str, Any] | None:
    """The lengths of rows for JSON; None for texts, which are joined."""
    return examined_rows.lengths and asdict(examined_rows.lengths)


def _counts_of(examined_rows: Any) -> dict[str, int]:
    """How many rows are cut, left out, empty or copies, by the names that JSON has for it."""
    cut = dropped = 0  # of texts, which are joined, no row is
    if examined_rows.lengths is not None:
        cut, dropped = examined_rows.lengths.cut, examined_rows.lengths.dropped
    return {
        "cut": cut,
        "dropped": dropped,
        "empty": examined_rows.empty,
        "copies": examined_rows.copies,
    }


def _say_examined(what: str, count: int, examined_rows: Any, max_length: int) -> None:
    """Print how many rows are cut, left out, empty or copies, and how long rows are.

    ``what`` names one of the rows, such as ``held-out row``; ``count`` is how many there are.
    """
    counts = [f"{number:,} {name}" for name, number in _counts_of(examined_rows).items()]
    say(f"{counted(count, what)} at max_length={max_length}: {', '.join(counts)}")
    if examined_rows.lengths is None:
        return
    say(f"tokens of these rows: {examined_rows.lengths.spread}")
    if examined_rows.lengths.losses:
        say(f"of these rows {examined_rows.lengths.summary}")


def _method_and_start(result: Any) -> str:
    """The method, or, if the training started from an adapter, all its parts and that adapter."""
    if result.started_from is None:
        return str(result.method)
    return f"{' and '.join(result.adapter_parts)} from {result.started_from}"


def _losses(history: list[dict[str, float]]) -> str:
    """The first and the last logged loss of a training; of a single log, which steps it is of.

    Each is a mean over the steps between two logs.
    """
    # The history has entries without a loss too, such as those of evaluations.
    logged = [entry for entry in history if entry.get("loss") is not None]
    if not logged:
        return "no loss"
    first, last = logged[0], logged[-1]
    if len(logged) > 1:
        return f"loss {first['loss']:.3f} at first, {last['loss']:.3f} at last"
    if first["step"] == 1:
        return f"loss {first['loss']:.3f} in the first step"
    steps = f"{first['step']:.0f} steps (logging_steps=1 logs each)"
    return f"loss {first['loss']:.3f}, the mean of {steps}"


def _parameters(trainable: int, percent: float) -> str:
    """How many parameters are trained, with their share of the base."""
    return f"{trainable:,} parameters ({percent:.3f}%)"


def _first_row_text(row: "FirstRow") -> Text:
    """The first row as the model reads it, with the tokens that count in the loss between ⟦ and ⟧.

    A row of texts to classify has no such tokens: there the head learns a label.
    """
    name = "the first window" if row.row is None else f"row {row.row}"
    if row.learned is None:
        learned = f"the {row.counted:,} between ⟦ and ⟧ count in the loss"
    else:
        learned = f"the head learns {row.learned!r}"
    text = Text(f"{name} as the model reads it, {row.tokens:,} tokens; {learned}:\n")
    for piece, is_counted in row.pieces:
        if is_counted:
            text.append(f"⟦{piece}⟧", style="bold")
        else:
            text.append(piece)
    return text


def _print_result(trained: Any, recipe: Any, *, as_json: bool) -> None:
    """Print the result of a training and the next command; only the first process prints.

    Raises:
        typer.Exit: of all other processes; with code 130 of a training that was interrupted, which
            is what a shell takes for Ctrl-C.
    """
    if not is_main_process():
        raise typer.Exit(130 if trained.interrupted else 0)
    if trained.interrupted:
        errors.print(f"stopped and saved at step {trained.steps}")
        suggest("train", "--resume", "--output", trained.run, on=errors)
        raise typer.Exit(130)
    result = trained.result
    if as_json:
        print_json(result.stored())
        return
    say_why(result.metric)
    say(_losses(result.history))
    counts = result.parameters
    parameters = _parameters(counts.trainable, counts.percent)
    steps = f"{result.steps} steps"
    if result.resumed_from:  # the time is that since the checkpoint
        steps += f", those after {result.resumed_from}"
    memory = f"peak memory {result.peak_memory_bytes / 2**30:.1f} GiB"
    norm = ""
    if result.relative_norm is not None:
        norm = f", relative norm {result.relative_norm:.2g}"
    say(
        f"{_method_and_start(result)} on {result.model}: {parameters}, {steps} in "
        f"{result.wall_time_s:.0f} s, {memory}{norm}"
    )
    suggest_scoring(trained.run, recipe)
