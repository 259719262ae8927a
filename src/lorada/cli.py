"""The command line: ``lorada train``, ``evaluate``, ``generate``, ``methods``, ``params`` …

Every command ends with the next one to try. A user's mistake is one line and exit code 2.
"""

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
errors = Console(stderr=True)

# A prompt in the form of the bundled task, for the command that the quickstart suggests.
PROMPT = (
    r"1. No cats are birds\n2. All birds are singers\n"
    r"Does it logically follow that: No cats are singers?\nAnswer:"
)

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON, for programs")]
Remote = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that a model repository ships")
]
RunFolder = Annotated[Path, typer.Argument(help="folder of a finished run")]


def main() -> None:
    """Entry point: run a command, and turn a user's mistake into one line and exit code 2."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_time=False, show_path=False)],
    )
    # Other libraries' announcements of their next version are no concern of who runs a command.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        # The code of an Exit, or of Ctrl-C, which typer returns instead of raising it.
        if code := app(standalone_mode=False):
            sys.exit(code)
    except (ValueError, OSError, ImportError, re.error) as error:
        if os.environ.get("LORADA_DEBUG"):
            raise
        _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if os.environ.get("LORADA_DEBUG") or not _out_of_memory(error):
            raise
        _fail(
            "out of memory: take a smaller training.per_device_train_batch_size, max_length or "
            f"rank, or training.gradient_checkpointing=true ({' '.join(str(error).split())[:80]})"
        )
    except Exception as error:  # click's own errors carry their message and code
        if hasattr(error, "format_message"):
            if not error.format_message():  # a command without any word has shown its help
                sys.exit(2)
            _fail(error.format_message())
        raise


def _out_of_memory(error: Exception) -> bool:
    signs = ("out of memory", "can't allocate", "not enough memory")
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _next(command: str) -> None:
    console.print(f"next: [bold]{command}[/bold]", highlight=False, soft_wrap=True)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


@app.command(no_args_is_help=True)
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="a YAML file or the name of a built-in recipe")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    method: Annotated[str | None, typer.Option(help="see `lorada methods`")] = None,
    model: Annotated[str | None, typer.Option(help="hub id, folder, or a packaged name")] = None,
    task: Annotated[str | None, typer.Option(help="see `lorada tasks`")] = None,
    data: Annotated[str | None, typer.Option(help="training rows, .jsonl or .csv")] = None,
    output: Annotated[str | None, typer.Option(help="folder of the run")] = None,
    from_adapter: Annotated[
        str | None, typer.Option("--from", help="a saved PEFT adapter to start from")
    ] = None,
    resume: Annotated[bool, typer.Option(help="continue the run in --output")] = False,
    overwrite: Annotated[bool, typer.Option(help="delete the run in --output first")] = False,
    as_json: Json = False,
) -> None:
    """Train a method on a model and your rows."""
    pairs = list(overrides or [])
    if recipe is not None and "=" in recipe:  # `lorada train --method lora rank=4`
        pairs, recipe = [recipe, *pairs], None
    options = {
        "method": method, "model": model, "task": task, "data": data, "output": output,
        "from_adapter": from_adapter,
    }  # fmt: skip
    from lorada.run.recipe import RECIPE_FILE, load_recipe

    given = [pair.removeprefix("output=") for pair in pairs if pair.startswith("output=")]
    saved = Path((given or [output or ""])[-1]) / RECIPE_FILE
    if resume and recipe is None and saved.is_file():
        recipe = str(saved)
    elif resume and recipe is None and model is None:
        raise ValueError(f"{saved.parent} holds no run to resume: give the --output of one")
    loaded = load_recipe(recipe, pairs, options)
    from lorada.run.train import train as run_training

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        trained = run_training(loaded, resume=resume, overwrite=overwrite, quiet=as_json)
    if trained.interrupted:
        errors.print(f"stopped and saved at step {trained.result['steps']}")
        errors.print(f"next: lorada train --resume --output {trained.run}")
        raise typer.Exit(130)
    from lorada.report.training import draw_loss, training_summary

    drawn = draw_loss(trained.run, trained.result)
    if as_json:
        _print_json(trained.result)
        return
    console.print(training_summary(trained.result), highlight=False)
    console.print(drawn, highlight=False, soft_wrap=True)
    _next(f"lorada evaluate {trained.run}")


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="held-out rows; else the recipe's")] = None,
    base: Annotated[bool, typer.Option(help="score the base, adapter switched off")] = False,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Score a finished run on held-out rows."""
    from lorada.run.evaluate import evaluate as run_evaluation
    from lorada.run.evaluate import load_run

    metrics = run_evaluation(load_run(run, trust_remote_code=remote), data, base=base)
    if as_json:
        _print_json(metrics)
        return
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    console.print(table)
    _next(f"lorada generate {run} --prompt …")


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[list[str], typer.Option(help="a text to continue; repeat for more")],
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="tokens to generate")] = None,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Continue prompts with a finished run."""
    from lorada.run.evaluate import continue_prompts, load_run

    outputs = continue_prompts(load_run(run, trust_remote_code=remote), prompt, max_new_tokens)
    if as_json:
        _print_json([{"prompt": p, "output": o} for p, o in zip(prompt, outputs, strict=True)])
        return
    for text in outputs:
        console.print(text, highlight=False, markup=False)
    _next(f"lorada evaluate {run}")


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods, with what they are."""
    from lorada.methods import METHODS
    from lorada.plan import part_names

    rows = {
        name: {
            "summary": method.summary,
            "parts": part_names(name),
            "families": sorted(method.parts) or ["any"],
            "source": method.source,
        }
        for name, method in METHODS.items()
    }
    if as_json:
        _print_json(rows)
        return
    table = Table("method", "what", "parts", "models", "settings from")
    for name, row in rows.items():
        parts = ", ".join(row["parts"]) or "—"
        families = ", ".join(row["families"])
        table.add_row(name, str(row["summary"]), parts, families, str(row["source"]))
    console.print(table)
    console.print("Any method with parts but no map also as NAME+lmam.")
    _next("lorada params --method lorada_la --model smollm2-135m")


@app.command()
def tasks(as_json: Json = False) -> None:
    """List the tasks."""
    from lorada.tasks import TASKS

    rows = {name: task.summary for name, task in TASKS.items()}
    if as_json:
        _print_json(rows)
        return
    table = Table("task", "what")
    for name, summary in rows.items():
        table.add_row(name, summary)
    console.print(table)
    _next("lorada train --model smollm2-135m --data FILE --output runs/mine")


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the built-in recipes."""
    from lorada.run.recipe import builtin_recipes

    rows = {name: str(path) for name, path in builtin_recipes().items()}
    if as_json:
        _print_json(rows)
        return
    for name, path in rows.items():
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
    _next("lorada train quickstart")


@app.command()
def params(
    method: Annotated[str, typer.Option(help="see `lorada methods`")],
    model: Annotated[str, typer.Option(help="hub id, folder, or a packaged name")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    as_json: Json = False,
) -> None:
    """Count a method's parameters on a model, without loading weights."""
    from lorada.run.params import count_parameters

    counts = count_parameters(method, model, list(overrides or []))
    if as_json:
        _print_json(counts)
        return
    table = Table("trained and saved", "base model", "100 p/N", "100 p/(N+p)")
    table.add_row(
        f"{counts['trainable']:,}",
        f"{counts['total']:,}",
        f"{counts['percent']:.4f}%",
        f"{counts['percent_of_all']:.4f}%",
    )
    console.print(table)
    _next(f"lorada train --method {method} --model {model} --data FILE --output runs/mine")


@app.command(no_args_is_help=True)
def search(
    output: Annotated[str, typer.Option(help="folder of the search and its runs")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    method: Annotated[str | None, typer.Option(help="autopeft")] = None,
    model: Annotated[str | None, typer.Option(help="hub id, folder, or a packaged name")] = None,
    data: Annotated[str | None, typer.Option(help="training rows, .jsonl or .csv")] = None,
    eval_data: Annotated[str | None, typer.Option(help="held-out rows to score on")] = None,
    trials: Annotated[int, typer.Option(help="configurations to try; 200 as published")] = 200,
    sampler: Annotated[str, typer.Option(help="random, or botorch (an extra)")] = "random",
    resume: Annotated[bool, typer.Option(help="continue the search in --output")] = False,
    overwrite: Annotated[bool, typer.Option(help="delete the search in --output first")] = False,
    as_json: Json = False,
) -> None:
    """Search AutoPEFT's configurations: a training each, and those that no other beats."""
    from lorada.report.search import pareto_table
    from lorada.run.search import search as run_search
    from lorada.run.search import search_recipe

    options = {"method": method, "model": model, "data": data, "eval_data": eval_data}
    pairs, options = list(overrides or []), {**options, "output": output}
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        recipe = search_recipe(pairs, options, resume=resume)
        report = partial(errors.print, highlight=False, soft_wrap=True)
        found = run_search(
            recipe, trials, sampler, resume=resume, overwrite=overwrite, report=report
        )
    if as_json:
        _print_json(found)
        return
    console.print(pareto_table(found))
    # The last is the most accurate; what was searched with one seed is trained with another.
    best = f"{found['pareto'][-1]['run']}/recipe.yaml"
    _next(f"lorada train {best} --output {output}/best training.seed={found['seed'] + 1}")


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="folder for the runs and pictures")] = Path(
        "runs/quickstart"
    ),
    overwrite: Annotated[bool, typer.Option(help="delete an earlier quickstart first")] = False,
    as_json: Json = False,
) -> None:
    """Train LoRaDA-LA and a LoRA of no more parameters on SmolLM2-135M, and compare them."""
    from lorada.run.quickstart import compare

    report: Callable[..., Any] = errors.print if as_json else console.print
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        comparison = compare(output, overwrite=overwrite, report=report)
    from lorada.report.quickstart import comparison_table, draw

    drawn = draw(comparison, output)
    if as_json:
        _print_json(comparison)
        return
    console.print(comparison_table(comparison))
    for line in drawn:
        console.print(line, soft_wrap=True, highlight=False)
    _next(f"lorada generate {output}/lorada_la --prompt $'{PROMPT}'")


@app.command()
def export(
    run: RunFolder,
    merge: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="new folder: all that can be merged into the base"),
    ] = None,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Write a finished run as an ordinary model, with what cannot be merged as an adapter."""
    if merge is None:
        raise ValueError(
            f"nothing to do without --merge DIR, which writes the base with every part merged that "
            f"can be, and the rest to DIR/adapter; the adapter as it was trained is in {run}"
        )
    from lorada.run.export import export as run_export

    written = run_export(run, merge, trust_remote_code=remote)
    if as_json:
        _print_json(written)
        return
    merged, left = (", ".join(written[key]) or "nothing" for key in ("merged", "adapter"))
    console.print(f"{merge}: merged {merged}; adapter of {left}", highlight=False, soft_wrap=True)
    if written["labels"]:
        _next(f"cat {merge}/README.md")
        return
    adapter = f",peft={merge}/adapter" if written["adapter"] else ""
    _next(f"lorada run lm_eval --model hf --model_args pretrained={merge}{adapter} --tasks …")


# What follows the command's name, `--help` too, is for the command.
@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run(
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="program and its arguments")],
) -> None:
    """Run another program (lm_eval, trl, accelerate …) that is to load adapters of lorada."""
    from lorada.run.launch import run_command

    run_command(command)


if __name__ == "__main__":
    main()
