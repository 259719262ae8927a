"""The command line: ``lorada train``, ``evaluate``, ``generate``, ``methods``, ``params`` …

Every command ends with the next one to try. A user's mistake is one line and exit code 2: commands
and what they call raise ``ValueError``, ``OSError`` or ``ImportError``, and ``main`` prints it.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.logging import RichHandler

# Imported for their commands, which each file registers; in this order `lorada --help` lists them.
from lorada.cli import (  # noqa: F401
    compare_commands,
    decide_command,
    export_commands,
    list_commands,
    paper_commands,
    rows_commands,
    train_commands,
    use_commands,
)
from lorada.cli.shared import app, errors
from lorada.support.error_messages import out_of_memory, out_of_memory_line
from lorada.support.outside_packages import allow_packages
from lorada.support.processes import (
    OtherProcessError,
    is_main_process,
    leave_processes,
    refuse_several,
)
from lorada.support.version import __version__

# The commands that several processes may run; `run` only starts another program.
MULTI_PROCESS = ("train", "run")

# Loggers that warn of missing kernels and of types.
QUIET_LOGGERS = ("torchao", "bitsandbytes.backends.cpu.ops", "torch.utils._pytree")
RETRIES = ("thrown while requesting", "Retrying in")  # of each download that is tried again


def _print_version(wants_version: bool) -> None:
    """Print the version and end, if ``--version`` is given."""
    if wants_version:
        print(f"lorada {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="print the version", callback=_print_version, is_eager=True),
]


Packages = Annotated[
    list[str] | None,
    typer.Option(
        "--package",
        help="a package of your own whose code may run, for the methods and tuners in it; "
        "repeated for several",
    ),
]


@app.callback()
def _options(version: Version = False, package: Packages = None) -> None:
    """Fine-tune a model by any method of PEFT or of the LoRaDA paper, and compare methods."""
    allow_packages(package or [])


def main() -> None:
    """Entry point: run a command, and turn a user's mistake into one line and exit code 2."""
    _silence_others()
    handler = RichHandler(console=errors, show_time=False, show_path=False)
    # Of several processes only the first warns.
    level = logging.WARNING if is_main_process() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
    if level == logging.WARNING:
        logging.getLogger("lorada").setLevel(logging.INFO)  # what rows were read, for one
    try:
        command = _command_in(sys.argv[1:])
        if command is not None and command not in MULTI_PROCESS:
            refuse_several(f"lorada {command}")
        # typer returns the code of an Exit or of Ctrl-C instead of raising it, else what a command
        # gives to the command that calls it.
        code = app(standalone_mode=False)
        leave_processes()
        if isinstance(code, int) and code:
            sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = _error_message(error)
        if message is None or os.environ.get("LORADA_DEBUG"):
            raise
        if message:
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def _command_in(words: Sequence[str]) -> str | None:
    """The command among the words of a command line; None if there is none."""
    for word, before in zip(words, ["", *words], strict=False):
        if before != "--package" and not word.startswith("--package"):
            return word
    return None


def _silence_others() -> None:
    """Keep back what other libraries say and users of the command line do not need."""
    os.environ.setdefault("TQDM_DELAY", "1")  # seconds before a bar is shown; read by tqdm's import
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # A table of the weights of a checkpoint, of which ``load_model`` says what matters.
    transformers = logging.getLogger("transformers.modeling_utils")
    transformers.addFilter(lambda record: "LOAD REPORT" not in record.getMessage())
    hub = logging.getLogger("huggingface_hub.utils._http")
    hub.addFilter(lambda record: not any(text in record.getMessage() for text in RETRIES))
    warnings.simplefilter("ignore", FutureWarning)  # what a later version of a library will change


def _error_message(error: Exception) -> str | None:
    """The line that answers a mistake, empty if it was printed; None if it is a fault of ours."""
    if isinstance(error, OtherProcessError):
        return ""
    if hasattr(error, "format_message"):  # click's own; empty where help has been printed
        return str(error.format_message()).replace("Value error, ", "")
    line = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | ImportError | re.error):
        return line
    if isinstance(error, MemoryError | RuntimeError) and out_of_memory(error):
        return out_of_memory_line(error)
    return None
