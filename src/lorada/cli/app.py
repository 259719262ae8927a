"""The application that the commands belong to, and what they share: options, output."""

import shlex
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from lorada.support.files import json_text
from lorada.support.progress import plain_console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = plain_console()
errors = plain_console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON, for programs")]
Remote = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that a model repository ships")
]
DataDir = Annotated[
    str | None,
    typer.Option(help="local folder of the benchmarks' rows (LORADA_DATA); else the hub"),
]
RunFolder = Annotated[Path, typer.Argument(help="folder of a finished run")]


def suggest(*words: object, also: str = "", on: Console = console) -> None:
    """Name the command of lorada to try next; the arguments are those of ``next_is``."""
    next_is("lorada", *words, also=also, on=on)


def next_is(*words: object, also: str = "", on: Console = console) -> None:
    """Name the command to try next, as a shell takes it.

    A word in capitals is for the user to put something in its place.

    Args:
        words: of the command, each as the command is to get it.
        also: more of it, as a shell takes it already.
        on: where it is said.
    """
    command = " ".join(filter(None, (as_typed(*words), also)))
    on.print(Text.assemble("next: ", (command, "bold")), highlight=False, soft_wrap=True)


def as_typed(*words: object) -> str:
    """Words of a command as a shell takes them; a path that begins with a dash is no option."""
    safe = (f"./{w}" if isinstance(w, Path) and str(w).startswith("-") else str(w) for w in words)
    return shlex.join(safe)


def waiting(what: str, *, quiet: bool = False) -> AbstractContextManager[Any]:
    """Say on the error stream what a person waits for, as long as it takes; only to a terminal."""
    return nullcontext() if quiet or not errors.is_terminal else errors.status(Text(what))


HEAVY = "loading torch and transformers"


def loaded_run(run: Path, model: str, *, remote: bool, quiet: bool) -> Any:
    """A finished run, loaded while a person is told so.

    Args:
        run: its folder.
        model: the name of its base, for the person.
        remote: whether code that the model's repository ships may run.
        quiet: whether nobody is to be told.
    """
    with waiting(HEAVY, quiet=quiet):
        from transformers.utils import logging

        from lorada.runs.inference.load import load_run

    logging.disable_progress_bar()  # of its own; what is waited for is said here
    try:
        with waiting(f"loading {model}", quiet=quiet):
            return load_run(run, trust_remote_code=remote)
    finally:
        logging.enable_progress_bar()


def aside(as_json: bool) -> AbstractContextManager[Any]:
    """What is printed meanwhile goes to the error stream where a program reads the output."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def print_json(data: Any) -> None:
    """Print a result for programs."""
    print(json_text(data))
