"""The command line: ``lorada train``, ``evaluate``, ``generate``, ``methods``, ``params`` …

Every command ends with the next one to try. A user's mistake is one line and exit code 2.
"""

import logging
import os
import re
import sys
import warnings

from rich.logging import RichHandler

from lorada.cli import list_commands, plot_commands, run_commands, table_command  # noqa: F401
from lorada.cli.app import app, errors
from lorada.support.errors import out_of_memory
from lorada.support.processes import (
    OtherProcessError,
    count,
    first,
    leave,
    refuse_many,
    told_once,
)
from lorada.support.quiet import hush

# The commands that several processes may run at once: one trains, the other becomes a program.
FOR_MANY = ("train", "run")

# How other versions of those libraries, under other names, begin to speak of their kernels.
NO_CONCERN = ("Failed to load", "Warning: Detected no triton")


def main() -> None:
    """Entry point: run a command, and turn a user's mistake into one line and exit code 2."""
    hush()
    handler = RichHandler(console=errors, show_time=False, show_path=False)
    handler.addFilter(lambda record: not record.getMessage().startswith(NO_CONCERN))
    # Of several processes that train together one warns.
    level = logging.WARNING if first() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
    # Other libraries' announcements of their next version are no concern of who runs a command.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        # The code of an Exit, or of Ctrl-C, which typer returns instead of raising it.
        if code := _run():
            sys.exit(code)
    except OtherProcessError:
        if os.environ.get("LORADA_DEBUG"):
            raise
        sys.exit(2)
    except (ValueError, OSError, ImportError, re.error) as error:
        if os.environ.get("LORADA_DEBUG"):
            raise
        _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if os.environ.get("LORADA_DEBUG") or not out_of_memory(error):
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


def _run() -> int | None:
    with told_once():
        if sys.argv[1:] and sys.argv[1] not in FOR_MANY:
            refuse_many(f"lorada {sys.argv[1]}")
        code: int | None = app(standalone_mode=False)
    if count() > 1:
        leave()
    return code


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
