"""The application that the commands belong to, and what they share: options, output."""

import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lorada.files import json_text

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
errors = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="print the result as JSON, for programs")]
Remote = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that a model repository ships")
]
DataDir = Annotated[
    str | None,
    typer.Option(help="local folder of the benchmarks' rows (LORADA_DATA); else the hub"),
]
RunFolder = Annotated[Path, typer.Argument(help="folder of a finished run")]


def suggest(command: str) -> None:
    """Name the command to try next."""
    console.print(f"next: [bold]{command}[/bold]", highlight=False, soft_wrap=True)


def aside(as_json: bool) -> AbstractContextManager[Any]:
    """What is printed meanwhile goes to the error stream where a program reads the output."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def print_json(data: Any) -> None:
    """Print a result for programs."""
    print(json_text(data))
