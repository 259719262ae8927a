"""Measures whole processes in turns: seconds, memory, and the stamps that they leave."""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.timing import ratio

PEERS = Path(__file__).parents[1] / "peers"
REPOSITORY = PEERS.parents[1]


@dataclass(frozen=True)
class Finished:
    """A process that has ended well.

    Attributes:
        seconds: from its start to its end.
        processor: seconds of all its threads together.
        memory_mb: the most that it held at once.
        started: when it was started, on the clock of its stamps.
        stamps: what it left.
    """

    seconds: float
    processor: float
    memory_mb: float
    started: float
    stamps: dict[str, Any]

    @property
    def work(self) -> float:
        """Seconds from the first step to the last, or from the first question to the last."""
        return float(self.stamps["end"] - self.stamps["begin"])


Side = Callable[[int], Finished]  # gets the number of the turn, from 0
FIGURES: dict[str, Callable[[Finished], float]] = {
    "time": lambda done: done.seconds,
    "work": lambda done: done.work,
    "processor": lambda done: done.processor,
    "memory": lambda done: done.memory_mb,
}


def peers_python() -> Path:
    """The Python that has lorada and its peers: ``PEERS_PYTHON``, or that of ``make bench-peers``.

    Raises:
        FileNotFoundError: if it is not there.
    """
    path = Path(os.environ.get("PEERS_PYTHON") or REPOSITORY / ".venv-peers" / "bin" / "python")
    if not path.is_file():
        raise FileNotFoundError(
            f"no Python with the peers at {path}: make bench-peers installs it, or set PEERS_PYTHON"
        )
    return path


def run_script(python: Path | str, script: str, arguments: Sequence[Any], threads: int) -> Finished:
    """Run a script of ``benchmarks/peers`` in a process with caches of its own, which are empty.

    Raises:
        ValueError: if it fails, with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as scratch:
        stamps, log = Path(scratch, "stamps.json"), Path(scratch, "log")
        environment = {
            **os.environ, "BENCHMARK_STAMPS": str(stamps), "HF_HOME": scratch,
            "LORADA_CACHE": scratch, "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        }  # fmt: skip
        command = [str(python), str(PEERS / script), *map(str, arguments)]
        with log.open("w") as output:
            started = time.monotonic()
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            # Unlike Popen.wait, this also tells what the process has used.
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen waits no more
        if process.returncode != 0:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise ValueError(f"{script} ended with {process.returncode}: {last}")
        left = json.loads(stamps.read_text(encoding="utf-8"))
        processor = used.ru_utime + used.ru_stime
        return Finished(seconds, processor, left["memory_mb"], started, left)


def run_in_turns(sides: dict[str, Side], turns: int) -> dict[str, list[Finished]]:
    """Run each side once a turn; every turn begins with another side."""
    names = list(sides)
    done: dict[str, list[Finished]] = {name: [] for name in names}
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            done[name].append(sides[name](turn))
    return done


def compare(done: dict[str, list[Finished]], first: str, again: str, second: str) -> dict[str, Any]:
    """A row: all figures of one side beside those of another.

    Args:
        done: the processes of each side, by turn.
        first: the side that is measured.
        again: a side that does the same, which shows noise.
        second: the side that it is measured beside.
    """
    figures = {}
    for figure, read in FIGURES.items():
        by_side = {name: [read(one) for one in processes] for name, processes in done.items()}
        figures[figure] = {
            **ratio(by_side, first, second),
            "noise": ratio(by_side, again, first),
            **{name: round(statistics.median(column), 2) for name, column in by_side.items()},
        }
    return {"figures": figures, "turns": len(done[first])}


def start_row(done: list[Finished], again: list[Finished]) -> dict[str, Any]:
    """A row: seconds until the first step of trainings, and the parts of these seconds."""
    seconds = {
        name: [one.stamps["begin"] - one.started for one in processes]
        for name, processes in (("lorada", done), ("again", again))
    }
    ordered = sorted(seconds["lorada"])
    parts: dict[str, list[float]] = {}
    for one in done:
        imports = one.stamps["imports"]
        at = [one.started, imports["began"], imports["torch"], imports["transformers"]]
        names = (
            "Python, command line", "import torch", "import transformers, peft",
            "lorada and the model",
        )  # fmt: skip
        for name, begin, end in zip(names, at, [*at[1:], one.stamps["begin"]], strict=True):
            parts.setdefault(name, []).append(end - begin)
    figure = {
        "ratio": round(statistics.median(ordered), 3),
        "lowest": round(ordered[0], 3),
        "highest": round(ordered[-1], 3),
        "noise": ratio(seconds, "again", "lorada"),
    }
    return {
        "figures": {"start": figure},
        "parts": {name: round(statistics.median(column), 3) for name, column in parts.items()},
        "turns": len(done),
    }
