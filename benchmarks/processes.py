"""What is measured in fresh processes: how fast the package starts, and how much memory is held."""

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from turns import Turn, in_turn

COMMANDS = {
    "help": "import sys, lorada_cli; sys.argv = ['lorada', '--help']; lorada_cli.main()",
    "methods": "import sys, lorada_cli; sys.argv = ['lorada', 'methods']; lorada_cli.main()",
}
IMPORT = """import time, peft
started = time.perf_counter()
import lorada
print(time.perf_counter() - started)
"""


def printed(*arguments: str) -> str:
    """The last line that Python prints, started with these arguments.

    Raises:
        subprocess.CalledProcessError: if it fails; why is on the terminal.
    """
    done = subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.PIPE, check=True, text=True
    )
    return done.stdout.strip().rpartition("\n")[2]


def start(repetitions: int) -> dict[str, Any]:
    """Seconds to list commands and methods, and of ``import lorada`` after ``import peft``."""
    imports: list[float] = []

    def run(source: str) -> Turn:
        return lambda t: printed("-c", source)

    def run_import(t: int) -> None:
        imports.append(float(printed("-c", IMPORT)))

    turns = {name: run(source) for name, source in COMMANDS.items()}
    seconds = in_turn({**turns, "import": run_import}, repetitions)
    seconds["import"] = imports[1:]  # without what stands around it, and the warm-up
    return {f"{name}_s": round(statistics.median(column), 4) for name, column in seconds.items()}


def memory(what: str) -> float:
    """Megabytes of this process: what it holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{what}:"))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """Let VmHWM start anew from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
