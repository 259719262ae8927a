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
        command: the program and its arguments. It is looked for beside this Python, whose
            packages it shares then, and next on PATH.

    Raises:
        ValueError: if there is no such program.
        OSError: if it cannot be executed.
    """
    beside = str(Path(sys.executable).parent)
    program = shutil.which(command[0], path=beside) or shutil.which(command[0])
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
    # By its whole path: a Python asks this name which environment is its own.
    os.execve(program, [program, *command[1:]], {**os.environ, "PYTHONPATH": path})
