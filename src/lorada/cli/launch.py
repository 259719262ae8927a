"""``lorada run CMD…``: runs another program so that PEFT knows our adapter types in it."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

SITE = Path(__file__).parent / "site"  # its sitecustomize.py is imported when Python starts


def run_command(command: list[str]) -> NoReturn:
    """Replace this process by a command, so that exit code and signals are the command's.

    Args:
        command: the program and its arguments. The program is looked for in the folder of this
            Python first, where it has the same packages, then on PATH.

    Raises:
        ValueError: if there is no such program.
        OSError: if it cannot be executed.
    """
    own_folder = str(Path(sys.executable).parent)
    program = shutil.which(command[0], path=own_folder) or shutil.which(command[0])
    if program is None:
        script = Path(command[0]).is_file()
        remedy = f"write lorada run python {command[0]}" if script else "is it installed?"
        raise ValueError(f"no command {command[0]!r} on PATH: {remedy}")
    before = os.environ.get("PYTHONPATH")
    path = f"{SITE}{os.pathsep}{before}" if before else str(SITE)
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and the command would inherit that
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    # The full path, because a Python finds its environment by this name.
    os.execve(program, [program, *command[1:]], {**os.environ, "PYTHONPATH": path})
