"""Measurements in fresh processes: how fast the package starts, and how much memory is used."""

import inspect
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from library.timing import Action, time_in_turns

COMMANDS = {
    "help": "import sys, lorada.cli; sys.argv = ['lorada', '--help']; lorada.cli.main()",
    "methods": "import sys, lorada.cli; sys.argv = ['lorada', 'methods']; lorada.cli.main()",
}
IMPORT = """import time, peft
started = time.perf_counter()
import lorada
print(time.perf_counter() - started)
"""


CALL = """import json, sys
sys.path.insert(0, sys.argv[1])
module = __import__(sys.argv[2])
print(json.dumps(getattr(module, sys.argv[3])(*json.loads(sys.argv[4]))))
"""


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function in a fresh process.

    Args:
        function: of a script in this folder.
        arguments: of the function; they and what it returns go through JSON.
        options: of ``subprocess.run``.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    script = Path(inspect.getfile(function))
    where = str(script.parent), script.stem, function.__name__
    return json.loads(last_line("-c", CALL, *where, json.dumps(arguments), **options))


def last_line(*arguments: str, **options: Any) -> str:
    """Run Python with these arguments and return the last line that it prints.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    done = subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.PIPE, check=True, text=True, **options
    )
    return done.stdout.strip().rpartition("\n")[2]


def start_times(repetitions: int) -> dict[str, Any]:
    """Seconds to list commands and methods, and of ``import lorada`` after ``import peft``."""
    imports: list[float] = []

    def run(source: str) -> Action:
        return lambda turn: last_line("-c", source)

    def run_import(turn: int) -> None:
        imports.append(float(last_line("-c", IMPORT)))

    actions = {name: run(source) for name, source in COMMANDS.items()}
    seconds, _ = time_in_turns({**actions, "import": run_import}, repetitions)
    seconds["import"] = imports[1:]  # of the import alone, and without the warm-up
    return {f"{name}_s": round(statistics.median(column), 4) for name, column in seconds.items()}


def memory_mb(field: str) -> float:
    """Megabytes of this process: ``VmRSS`` is what it holds, ``VmHWM`` the most it ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    """Let VmHWM start again from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
