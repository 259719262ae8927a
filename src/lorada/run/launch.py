"""``lorada run CMD…``: another program, in whose processes PEFT knows our adapter types."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

SITE = Path(__file__).parent / "site"  # holds the sitecustomize.py that Python imports at its start


def run_command(command: list[str]) -> NoReturn:
    """Become a command. Its exit code, its signals and its children are its own.

    Args:
        command: the program, looked for on PATH and then beside this Python, and its arguments.

    Raises:
        ValueError: if there is no such program.
        OSError: if it cannot be executed.
    """
    program = shutil.which(command[0]) or shutil.which(
        command[0], path=str(Path(sys.executable).parent)
    )
    if program is None:
        script = Path(command[0]).is_file()
        remedy = f"write lorada run python {command[0]}" if script else "is it installed?"
        raise ValueError(f"no command {command[0]!r} on PATH: {remedy}")
    before = os.environ.get("PYTHONPATH")
    path = f"{SITE}{os.pathsep}{before}" if before else str(SITE)
    for name in ("SIGPIPE", "SIGXFSZ"):  # which Python ignores, and a command would inherit that
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(program, command, {**os.environ, "PYTHONPATH": path})
