"""The typer application, and what commands share: consoles, suggestions, spinners, JSON."""

import gc
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from lorada.support.error_messages import needs_extra
from lorada.support.files import as_typed, json_text
from lorada.support.outside_packages import allowed_packages
from lorada.support.progress import plain_console

# lorada.cli.main prints errors as one line, so typer's tracebacks in frames are off.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = plain_console()
errors = plain_console(stderr=True)


def split_overrides(
    first_word: str | None, overrides: list[str] | None
) -> tuple[str | None, list[str]]:
    """Tell a command's first word from its overrides: in ``lorada train rank=4`` it is one.

    typer takes the first word for the recipe, or the folder, whatever it looks like.

    Returns:
        The first word, None if it is an override, and all overrides.
    """
    pairs = overrides or []
    # A path may have a = in it too.
    if first_word is not None and "=" in first_word and not Path(first_word).exists():
        return None, [first_word, *pairs]
    return first_word, pairs


def make_pool(workers: int | None, cluster: str | None, gpus_per_job: float) -> Any:
    """The pool that options ask for: of this machine, or of a Ray cluster.

    Raises:
        ValueError: for both options at once, and a cluster without room for a job.
        ConnectionError: if the cluster cannot be reached.
    """
    if cluster is None:
        from lorada.compare.jobs.pool import Workers as Pool

        return Pool(workers, gpus_per_job)
    if workers is not None:
        raise ValueError("--workers and --cluster exclude each other")
    with needs_extra("cluster"):  # the module imports ray
        from lorada.compare.jobs.ray_pool import RayPool

    return RayPool(cluster, gpus_per_job)


def say(text: str | Text, on: Console = console) -> None:
    """Print a line that is not to be broken, as it may have a path or a command in it."""
    on.print(text, soft_wrap=True)


def note(text: str) -> None:
    """Print such a line on the error stream."""
    say(text, errors)


def suggest(*words: object, on: Console = console) -> None:
    """Print the lorada command to try next; words in capitals are for the user to fill in."""
    packages: list[str] = []  # whose code the next command needs too
    for package in allowed_packages():
        packages += ["--package", package]
    suggest_line(as_typed("lorada", *packages, *words), on)


def suggest_line(command: str, on: Console = console) -> None:
    """Print the command to try next, as it is typed."""
    say(Text.assemble("next: ", (command, "bold")), on)


def spinner(text: str, *, quiet: bool = False) -> AbstractContextManager[Any]:
    """Show a spinner with a text on the error stream, if that is a terminal."""
    if quiet or not errors.is_terminal:
        return nullcontext()
    return errors.status(Text(text))  # a Text, since a str may have rich's markup in it


def suggest_scoring(run: Path, recipe: Any, on: Console = console) -> None:
    """Suggest to score a run, with --data FILE if its recipe names no rows."""
    rows_options = [] if recipe.scores_rows else ["--data", "FILE"]
    suggest("evaluate", run, *rows_options, on=on)


def say_why(metric: Any) -> None:
    """Print by what the answers of a run are scored, if its rows have decided it.

    ``metric`` is the ``ScoringMetric`` of its result, None for a benchmark.
    """
    if metric is not None and metric.reason:
        say(f"answers are scored by {metric.name}, because {metric.reason}")


@contextmanager
def importing(*, quiet: bool = False) -> Iterator[None]:
    """Show a spinner while the ``with`` block imports torch and transformers.

    It may as well call what is the first to need them. There is no spinner without a terminal.
    Python does not look for garbage meanwhile, which would take half a second and find none:
    modules stay.
    """
    gc.disable()
    try:
        with spinner("loading torch and transformers", quiet=quiet):
            yield
    finally:
        gc.enable()


@contextmanager
def loading_model(model: str, *, quiet: bool = False) -> Iterator[None]:
    """Show a spinner while the ``with`` block loads ``model``, in place of transformers' bar."""
    with spinner(f"loading {model}", quiet=quiet):
        from transformers.utils import logging

        logging.disable_progress_bar()
        yield


def load_with_spinner(run: Path, model: str, *, remote: bool, quiet: bool) -> Any:
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
    print(json_text(data))  # not by rich, which would break long lines
