"""Measure lorada on the first accelerator, in at most an hour, and write docs/gpu.md.

    make gpu                                         # everything that is not measured yet
    python benchmarks/gpu/run.py --parts map,vllm    # these parts alone
    python benchmarks/gpu/run.py --tiny --device cpu --output DIR    # tries the script itself

Nine parts, each a file beside this one, of cases. A case runs in a process of its own, or with the
other cases of its part until one fails, so that an error of the device spoils no other. What is
measured is saved after each case, in benchmarks/results/gpu.json or in DIR; a run that was cut off
goes on with what is missing, and tries again what failed. A case that does not fit in the hour is
left for the next run. Logs, and a model of 16 GB, go to runs/gpu or into DIR.
"""

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from gpu import (
    answers,
    commands,
    gpu_tests,
    map_costs,
    methods,
    scoring,
    trainings,
    vllm_engines,
    waits,
)
from gpu.machine import CannotRunError, Machine
from gpu.page import PAGE, write_page
from library.measuring import load_results, now

from lorada.support.files import write_atomic

HERE = Path(__file__)
RESULTS = HERE.parents[1] / "results" / "gpu.json"
WORK = HERE.parents[2] / "runs" / "gpu"
PARTS: dict[str, ModuleType] = {
    "methods": methods, "tests": gpu_tests, "waits": waits, "map": map_costs,
    "trainings": trainings, "commands": commands, "scoring": scoring, "answers": answers,
    "vllm": vllm_engines,
}  # fmt: skip
PATIENCE = 20.0  # seconds that a process may take to end by itself
MARK = "@@measured@@ "  # before a line of a case's process that is a row
Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]


def read_arguments() -> argparse.Namespace:
    """Read the command line; a wrong one ends it with one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, in this order")
    parser.add_argument("--device", help="a device of torch; the first accelerator if left out")
    parser.add_argument("--tiny", action="store_true", help="as small as can be")
    parser.add_argument("--output", type=Path, help="folder for the results and the page")
    parser.add_argument("--overwrite", action="store_true", help="start again")
    parser.add_argument("--minutes", type=float, default=60, help="when to stop")
    parser.add_argument("--cases", help=argparse.SUPPRESS)  # of a case's own process
    given = parser.parse_args()
    given.parts = given.parts.split(",")
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"--parts {unknown[0]}: no such part; there are {', '.join(PARTS)}")
    if given.device is None:
        if not torch.accelerator.is_available():
            parser.error(
                f"torch finds no accelerator ({cuda()}): --tiny --device cpu tries the script"
            )
        given.device = str(torch.accelerator.current_accelerator())
    if given.device == "cpu" and not given.tiny:
        parser.error("--device cpu is for --tiny")
    return given


def cuda() -> str:
    """The CUDA that torch was built for, and the cards and the driver that the system knows."""
    built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda or 'not at all'}"
    if shutil.which("nvidia-smi") is None:
        return f"{built}; there is no nvidia-smi, so no driver"
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True)
    cards = "; ".join((said.stdout or said.stderr).strip().splitlines())
    return f"{built}; cards and driver by nvidia-smi: {cards}"


def measured(machine: Machine, part: ModuleType, names: Iterable[str]) -> Rows:
    """Measure cases here; one that cannot be measured gives its reason, and others go on."""
    for name in names:
        started = time.monotonic()
        try:
            row = part.measure(machine, name)
        except CannotRunError as error:
            row = {"reason": str(error)}
        except Exception as error:  # of any class: the other cases are to be measured
            lines = str(error).strip().splitlines() or ["without a message"]
            row = {"reason": f"{type(error).__name__}: {lines[0][:200]}"}
            print(f"{name}: {row['reason']}", file=sys.stderr)
        yield name, {**row, "took": round(time.monotonic() - started, 1)}


def in_processes(
    given: argparse.Namespace, machine: Machine, part: str, names: list[str], until: float
) -> Rows:
    """Measure cases in processes; after one that died or took too long, a new one goes on."""
    left = list(names)
    while left and time.monotonic() < until:
        some = left[:1] if PARTS[part].ALONE else left
        command = [
            sys.executable, str(HERE), "--parts", part, "--device", machine.device,
            "--output", str(machine.folder), "--cases", json.dumps(some),
        ] + ["--tiny"] * machine.tiny  # fmt: skip
        done = 0
        with (machine.folder / "log.txt").open("a") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
            for name, row in _rows_of(process, PARTS[part].SECONDS, until):
                done += 1
                left.remove(name)
                yield name, row
            code = _end(process)
        if done < len(some) and time.monotonic() < until:
            reason = f"took more than {PARTS[part].SECONDS} s" if code is None else (
                f"its process ended with {code}: {_last_line(machine.folder / 'log.txt')}"
            )  # fmt: skip
            yield left.pop(0), {"reason": reason}


def _rows_of(process: subprocess.Popen[str], seconds: float, until: float) -> Rows:
    """The rows that a process prints, each within so many seconds and before ``until``."""
    printed: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            printed.put(line)
        printed.put(None)

    threading.Thread(target=read, daemon=True).start()
    limit = min(time.monotonic() + seconds, until)
    while True:
        try:
            line = printed.get(timeout=max(0.0, limit - time.monotonic()))
        except queue.Empty:
            return
        if line is None:
            return
        if line.startswith(MARK):
            name, row = json.loads(line.removeprefix(MARK))
            limit = min(time.monotonic() + seconds, until)
            yield name, row


def _end(process: subprocess.Popen[str]) -> int | None:
    """The exit code of a process; None for one that still ran, which is ended with its children."""
    try:
        return process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or ["nothing in the log"]
    return lines[-1][:200]


def run(
    given: argparse.Namespace,
    machine: Machine,
    file: Path,
    page: Path,
    measure: Callable[[str, list[str], float], Rows],
) -> dict[str, Any]:
    """Measure what is missing, and save every row and the page as it comes.

    Args:
        given: the command line.
        machine: what to measure on.
        file: of the results.
        page: that shows them.
        measure: gets the name of a part, its cases and when to stop.
    """
    until = time.monotonic() + 60 * given.minutes
    about = SimpleNamespace(
        device=machine.device, tiny=machine.tiny, accelerator_gib=_accelerator_gib(machine.device)
    )
    results = load_results(about, file, overwrite=given.overwrite)
    results.pop("rows", None)
    every = results.setdefault("parts", {})
    if given.overwrite:
        for name in given.parts:
            every.pop(name, None)
    for name in given.parts:
        rows = every.setdefault(name, {})
        names = PARTS[name].cases(machine)
        missing = [case for case in names if "reason" in rows.get(case, {"reason": ""})]
        for case, row in measure(name, missing, until):
            rows[case] = {**row, "measured": now()}
            every[name] = {each: rows[each] for each in names if each in rows}
            write_atomic(file, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
            write_page(results, PARTS, page)
            said = row.get("reason") or f"{row['took']:.0f} s"
            print(f"{name}: {case}: {said}", file=sys.stderr, flush=True)
        if left := [case for case in names if case not in every[name]]:
            print(f"{name}: {len(left)} cases are left for the next run", file=sys.stderr)
    return results


def _accelerator_gib(device: str) -> float | None:
    if device != "cuda":
        return None
    return round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)


def main() -> None:
    given = read_arguments()
    folder = given.output or WORK
    folder.mkdir(parents=True, exist_ok=True)
    machine = Machine(given.device, given.tiny, folder.resolve())
    if given.cases is not None:
        for case in measured(machine, PARTS[given.parts[0]], json.loads(given.cases)):
            print(MARK + json.dumps(case), flush=True)
        return
    elsewhere = given.output is not None
    file = folder / RESULTS.name if elsewhere else RESULTS
    page = folder / PAGE.name if elsewhere else PAGE

    def measure(part: str, names: list[str], until: float) -> Rows:
        return in_processes(given, machine, part, names, until)

    try:
        run(given, machine, file, page, measure)
    except ValueError as error:  # results of another machine
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
