"""Part 6: commands that start processes: comparisons, a table, and trainings in two processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu.machine import CannotRunError, Machine, find_tests

TITLE = "Comparisons, a table, two processes"
ABOUT = (
    "Whole commands on tiny models with random weights, with the start of every process and the "
    "loading of every model: that they end, and in how long. Two processes train on two cards, "
    "with `dtype=mixed`."
)
HEADER = ("what", "seconds", "what it left")
SECONDS = 400
ALONE = True
PROCESSES = 2
TRAIN = ["--method", "lora+lmam"]
STEPS = ["max_steps=4", "report_to=[]", "max_length=32", "per_device_train_batch_size=4"]
TABLE = ["5", "--scale", "local", "--rows", "lora", "--tasks", "rte", "--seeds", "1"]


def cases(machine: Machine) -> list[str]:
    """All commands."""
    return machine.pick([*CASES], [*CASES][1:2])


def measure(machine: Machine, case: str) -> dict[str, Any]:
    """Seconds of a command, and what it left."""
    place = _inputs(machine)
    words, left = CASES[case](machine, place)
    started = time.monotonic()
    # The command's own page of results must not be written into the checkout.
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=place, capture_output=True, text=True,
        env={**os.environ, "LORADA_DATA": str(place / "data"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    print(done.stdout, done.stderr, file=sys.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise ValueError(f"ended with {done.returncode}: {last}")
    return {"seconds": time.monotonic() - started, "left": left()}


def _inputs(machine: Machine) -> Path:
    """A folder with a tiny decoder, rows to add, and the rows of a benchmark."""
    find_tests()
    from folders import ROWS, llama_folder, rows_file, split_file

    place = machine.folder / "commands"
    if not place.is_dir():
        llama_folder(place / "llama")
        rows_file(place / "train.jsonl", ROWS[:27])
        rows_file(place / "test.jsonl", ROWS[27:])
        pairs = [{"sentence1": "ab" * (i % 4 + 1), "sentence2": "ab", "label": i % 2}
                 for i in range(24)]  # fmt: skip
        for split in ("train", "validation"):
            split_file(place / "data" / "glue" / "rte", split, pairs)
    return place


Command = tuple[list[str], Callable[[], str]]  # words, and what says what it left


def _comparison(machine: Machine, place: Path, *more: str) -> Command:
    output = place / "comparison"
    words = [
        "lorada.cli", "compare", "--methods", "lora,lora+lmam", "--model", "llama", "--data",
        "train.jsonl", "--held-out", "test.jsonl", "--seeds", "1", "--trials", "0", "--output",
        str(output), "--overwrite", *STEPS, *more, *_device(machine),
    ]  # fmt: skip

    def left() -> str:
        runs = [*output.glob("runs/*/*/seed*/predictions.jsonl")]
        return f"{len(runs)} runs trained and scored"

    return words, left


def _dry_run(machine: Machine, place: Path) -> Command:
    words, _ = _comparison(machine, place, "--dry-run")
    return words, lambda: "three steps of 2 methods measured"


def _table(machine: Machine, place: Path) -> Command:
    words = ["lorada.cli", "table", *TABLE, "--overwrite"]

    def left() -> str:
        results = [*place.rglob("lora/rte/seed1.json")]
        return f"{len(results)} result"

    return words, left


def _two(machine: Machine, place: Path, *more: str) -> Command:
    if machine.device != "cpu" and torch.accelerator.device_count() < PROCESSES:
        raise CannotRunError("needs two accelerators")
    output = place / "two"
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES), "-m"]
    words = [
        *launch, "lorada.cli", "train", *TRAIN, "--model", "llama", "--data", "train.jsonl",
        "--output", str(output), "--overwrite", "dtype=mixed", *STEPS, *more, *_device(machine),
    ]  # fmt: skip

    def left() -> str:
        result = json.loads((output / "result.json").read_text(encoding="utf-8"))
        norms = [entry.get("relative_norm") for entry in result["history"]]
        return f"loss {result['train_loss']:.4f}, relative norm of the map {norms[-1]:.2e}"

    return words, left


def _fsdp(machine: Machine, place: Path) -> Command:
    return _two(machine, place, "training.fsdp=true")


def _device(machine: Machine) -> list[str]:
    return ["use_cpu=true"] if machine.device == "cpu" else []


CASES: dict[str, Callable[[Machine, Path], Command]] = {
    "lorada compare --dry-run": _dry_run,
    "lorada compare, two methods": _comparison,
    "lorada table, one row": _table,
    "lorada train, DDP": _two,
    "lorada train, FSDP2": _fsdp,
}


def lines(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each command."""
    return [(name, f"{row['seconds']:.0f}", row["left"]) for name, row in rows.items()]
