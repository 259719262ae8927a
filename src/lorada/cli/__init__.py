"""The command line: ``lorada train``, ``evaluate``, ``generate``, ``methods``, ``params`` …

Every command ends with the next one to try. A user's mistake is one line and exit code 2.
"""

import logging
import os
import re
import sys
import warnings
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from rich.logging import RichHandler

from lorada.cli import (  # noqa: F401
    chat_command,
    compare_commands,
    explore_command,
    export_command,
    list_commands,
    paper_commands,
    predict_command,
    quickstart_command,
    run_commands,
    serve_command,
)
from lorada.cli.app import app, errors
from lorada.support.errors import out_of_memory
from lorada.support.processes import (
    OtherProcessError,
    is_first,
    leave_processes,
    process_count,
    raise_once,
    refuse_several,
)
from lorada.support.version import __version__

# The commands that several processes may run; `run` only starts another program.
FOR_MANY = ("train", "run")

# The groups of `lorada --help`, and the order of the commands in each.
GROUPS = {
    "Train and use": (
        "train", "evaluate", "predict", "generate", "chat", "serve", "explore", "export", "run",
    ),
    "Compare": ("compare", "report", "decide", "quickstart", "methods", "params"),
    "The paper": ("table", "plot", "tasks", "recipes"),
}  # fmt: skip

# Loggers that warn of missing kernels, of types, and of each retry of a download.
QUIET = (
    "torchao",
    "bitsandbytes.backends.cpu.ops",
    "torch.utils._pytree",
    "huggingface_hub.utils._http",
)

_COMMANDS = {getattr(one.callback, "__name__", ""): one for one in app.registered_commands}
app.registered_commands = [_COMMANDS[name] for names in GROUPS.values() for name in names]
for _group, _names in GROUPS.items():
    for _name in _names:
        _COMMANDS[_name].rich_help_panel = _group


def _print_version(asked: bool) -> None:
    if asked:
        print(f"lorada {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="print the version", callback=_print_version, is_eager=True),
]


@app.callback()
def _options(version: Version = False) -> None:
    """Fine-tune a model by any method of PEFT or of the LoRaDA paper, and compare methods."""


def main() -> None:
    """Entry point: run a command, and turn a user's mistake into one line and exit code 2."""
    _silence_others()
    handler = RichHandler(console=errors, show_time=False, show_path=False)
    # Of several processes only the first warns.
    level = logging.WARNING if is_first() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
    if level == logging.WARNING:
        logging.getLogger("lorada").setLevel(logging.INFO)  # what rows were read, for one
    try:
        # typer returns the code of an Exit or of Ctrl-C instead of raising it, else what a command
        # gives to the command that calls it.
        if isinstance(code := _run(), int) and code:
            sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        said = _said(error)
        if said is None or os.environ.get("LORADA_DEBUG"):
            raise
        if said:
            print(f"error: {said}", file=sys.stderr)
        sys.exit(2)


def _silence_others() -> None:
    """Keep back what other libraries say and users of the command line do not need."""
    os.environ.setdefault("TQDM_DELAY", "1")  # seconds before a bar is shown; read by tqdm's import
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    # A table of the weights of a checkpoint, of which ``load_model`` says what matters.
    transformers = logging.getLogger("transformers.modeling_utils")
    transformers.addFilter(lambda record: "LOAD REPORT" not in record.getMessage())
    warnings.simplefilter("ignore", FutureWarning)  # what a later version of a library will change


def _run() -> int | None:
    with raise_once():
        if sys.argv[1:] and sys.argv[1] not in FOR_MANY:
            refuse_several(f"lorada {sys.argv[1]}")
        code: int | None = app(standalone_mode=False)
    if process_count() > 1:
        leave_processes()
    return code


def _said(error: Exception) -> str | None:
    """The line that answers a mistake, empty if it has been said; None if it is a fault of ours."""
    if isinstance(error, OtherProcessError):
        return ""
    if hasattr(error, "format_message"):  # click's own; empty where help has been printed
        return _usage_error(error)
    line = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | ImportError | re.error):
        return line
    if isinstance(error, MemoryError | RuntimeError) and out_of_memory(error):
        return (
            "out of memory: take a smaller training.per_device_train_batch_size, max_length or "
            f"rank, or activation_checkpointing=full ({line[:80]})"
        )
    return None


def _usage_error(error: Any) -> str:
    """What a wrong command line is answered with; for ``--max_steps 3``, that it is a setting."""
    message, option = str(error.format_message()), getattr(error, "option_name", "")
    takes = {param.name for param in error.ctx.command.params} if error.ctx else set()
    misspelt = get_close_matches(option, getattr(error, "possibilities", None) or (), cutoff=0.8)
    if "overrides" not in takes or not option.startswith("--") or misspelt:
        return message
    setting = option.removeprefix("--").replace("-", "_")
    return f"{error.message}; a setting has no dashes: {setting}=VALUE"
