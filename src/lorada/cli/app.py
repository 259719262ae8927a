"""The typer application, and what commands share: options, consoles, suggestions, JSON."""

import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from lorada.support.files import as_typed, json_text
from lorada.support.progress import plain_console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = plain_console()
errors = plain_console(stderr=True)


def completes(module: str, table: str) -> Callable[[str], list[str]]:
    """Let a shell complete an option's value by the names in a table, which needs no torch.

    Of ``a,b`` or ``a+b`` it completes the last.
    """

    def complete(incomplete: str) -> list[str]:
        last = re.split("[,+]", incomplete)[-1]
        before = incomplete.removesuffix(last)
        names = getattr(import_module(module), table)
        return [before + name for name in names if name.startswith(last)]

    return complete


COMPLETE_METHOD = completes("lorada.methods.table", "METHODS")
COMPLETE_TASK = completes("lorada.data.tasks", "TASKS")
METHOD = typer.Option(help="see `lorada methods`", autocompletion=COMPLETE_METHOD)
MODEL = typer.Option(
    help="hub id, folder, or a packaged name",
    autocompletion=completes("lorada.support.models", "MODELS"),
)
METRIC = typer.Option(
    help="what rows of your own are scored by: loss, exact_match, contains, rougeL, chrf or "
    "FILE.py:function; accuracy, balanced_accuracy or macro_f1"
)
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON, for programs")]
Remote = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that a model repository ships")
]
DataDir = Annotated[
    str | None,
    typer.Option(help="local folder of the benchmarks' rows (LORADA_DATA); else the hub"),
]
Columns = Annotated[
    str | None,
    typer.Option(help="your names of fields, such as text=review,label=sentiment"),
]
RunFolder = Annotated[Path, typer.Argument(help="folder of a finished run")]


def without_override(
    first: str | None, overrides: list[str] | None
) -> tuple[str | None, list[str]]:
    """The first word, None if it is an override too, as in ``lorada train rank=4``; and those."""
    pairs = overrides or []
    if first is not None and "=" in first and not Path(first).exists():
        return None, [first, *pairs]
    return first, pairs


def columns_of(text: str | None, data: str | None = "") -> dict[str, str] | None:
    """Read ``text=review,label=sentiment``; None if it is not given."""
    if text is not None and data is None:
        raise ValueError(f"--columns {text} is for the rows of a file: add --data FILE")
    pairs = [pair.partition("=") for pair in text.split(",")] if text is not None else []
    for ours, _, theirs in pairs:
        if not (ours.strip() and theirs.strip()):
            raise ValueError(f"--columns {text} must be such as text=review,label=sentiment")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs} or None


def say(text: str | Text) -> None:
    """Print a line that is not to be broken, as it may have a path or a command in it."""
    console.print(text, soft_wrap=True)


def note(text: str) -> None:
    """Print such a line on the error stream."""
    errors.print(text, soft_wrap=True)


def suggest(*words: object, on: Console = console) -> None:
    """Print the lorada command to try next; words in capitals are for the user to fill in."""
    next_is(as_typed("lorada", *words), on)


def next_is(command: str, on: Console = console) -> None:
    """Print the command to try next, as it is typed."""
    on.print(Text.assemble("next: ", (command, "bold")), soft_wrap=True)


def waiting(what: str, *, quiet: bool = False) -> AbstractContextManager[Any]:
    """Show a spinner with the text ``what`` on the error stream, if that is a terminal."""
    return nullcontext() if quiet or not errors.is_terminal else errors.status(Text(what))


@contextmanager
def importing(*, quiet: bool = False) -> Iterator[None]:
    """Show a spinner while the ``with`` block imports torch and transformers.

    Python does not look for garbage meanwhile, and later not among what was there by then: both
    would take about a second, and modules are none.
    """
    first = "torch" not in sys.modules and gc.isenabled()
    if first:
        gc.disable()
    try:
        with waiting("loading torch and transformers", quiet=quiet):
            yield
    finally:
        if first:
            gc.freeze()
            gc.enable()


@contextmanager
def loading_model(model: str, *, quiet: bool = False) -> Iterator[None]:
    """Import torch, and show a spinner while the ``with`` block loads ``model``."""
    with importing(quiet=quiet):
        from transformers.utils import logging

        import lorada.inference.load  # noqa: F401

    logging.disable_progress_bar()  # the spinner replaces it
    try:
        with waiting(f"loading {model}", quiet=quiet):
            yield
    finally:
        logging.enable_progress_bar()


def loaded_run(run: Path, model: str, *, remote: bool, quiet: bool) -> Any:
    """Load a finished run on the base ``model``, with a spinner unless ``quiet``.

    ``remote`` allows code of the model's repository to run.
    """
    with loading_model(model, quiet=quiet):
        from lorada.inference.load import load_run

        return load_run(run, trust_remote_code=remote)


def prints_to_stderr(as_json: bool) -> AbstractContextManager[Any]:
    """With --json, redirect prints to the error stream, so that stdout holds JSON alone."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def print_json(data: Any) -> None:
    """Print a result for programs."""
    print(json_text(data))
