"""Compare the computed memory of a training step with the measured memory of real trainings.

    python benchmarks/check_memory_estimates.py

Each setting trains three steps on rows of exactly ``max_length`` tokens, in a process of its own.
Measured is how much the process grew over what it held before the first step; computed are
gradients, optimizer and activations. It is measured twice: as glibc allocates by default, and with
every tensor above 64 KiB mapped by itself, so that its memory is given back as soon as it is freed.
The second is what tensors need; the first also has what the allocator keeps. Writes
benchmarks/results/memory_estimates.json and prints a table.
"""

import gc
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from library import fresh_process

from lorada.runs.recipe import Recipe
from lorada.runs.result import hardware
from lorada.support.files import json_text, write_atomic
from lorada.training.inputs import prepare_training
from lorada.training.load_recipe import load_recipe
from lorada.training.train import set_up
from lorada.training.training_memory import training_memory

RESULTS = Path(__file__).parent / "results" / "memory_estimates.json"
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc reads it when a process starts
# method, rows a step, tokens a row, dtype of the base, activation_checkpointing
Setting = tuple[str, int, int, str, str]
SETTINGS: list[Setting] = [
    *((name, rows, 128, "float32", "off") for name in ("lora", "lorada_la") for rows in (4, 8)),
    ("lora", 8, 128, "float32", "full"),
    ("lmam", 8, 128, "float32", "off"),
    *((name, 4, 128, "float32", "off") for name in ("dora", "prefix", "full")),
    ("lorada_la", 1, 2048, "bfloat16", "off"),
    ("lorada_la", 1, 2048, "bfloat16", "full"),
]


def recipe_of(setting: Setting, folder: str) -> Recipe:
    """A recipe on rows that are longer than ``tokens``, so that each is cut to that length."""
    method, rows, tokens, dtype, checkpointing = setting
    data = Path(folder) / "rows.jsonl"
    row = {"prompt": "Count.", "response": " one two three" * tokens}
    data.write_text((json.dumps(row) + "\n") * rows)
    pairs = [f"per_device_train_batch_size={rows}", "max_steps=3", "report_to=[]"]
    options = {"method": method, "model": "smollm2-135m", "data": str(data), "output": folder}
    pairs += [f"max_length={tokens}", f"dtype={dtype}", f"activation_checkpointing={checkpointing}"]
    return load_recipe(None, pairs, options)


def measured(*setting: Any) -> float:
    """Megabytes by which this process grows in three steps of training."""
    with tempfile.TemporaryDirectory() as folder:
        setup = set_up(prepare_training(recipe_of(setting, folder)), [], quiet=True)
        for weight in setup.model.parameters():
            weight.detach().sum()  # weights are read from disk when they are first used
        gc.collect()
        fresh_process.reset_peak()
        before = fresh_process.memory_mb("VmRSS")
        setup.trainer.train()
        return fresh_process.memory_mb("VmHWM") - before


def computed(setting: Setting) -> float:
    """Megabytes of gradients, optimizer and activations, as ``lorada train --dry-run`` says."""
    with tempfile.TemporaryDirectory() as folder:
        memory = training_memory(recipe_of(setting, folder))
    return (memory.total - memory.weights) / 2**20


def compare(setting: Setting) -> dict[str, Any]:
    """One setting, measured twice and computed."""
    found = {
        "measured_mb": fresh_process.call(measured, *setting),
        "needed_mb": fresh_process.call(measured, *setting, env=os.environ | GIVEN_BACK),
        "computed_mb": computed(setting),
    }
    names = dict(zip(("method", "rows", "tokens", "dtype", "checkpointing"), setting, strict=True))
    error = 100 * (found["computed_mb"] / found["needed_mb"] - 1)
    return {**names, **found, "error_percent": error}


def main() -> None:
    found = []
    print("| method | rows × tokens | measured | tensors need | computed | error |")
    print("|---|---|---|---|---|---|")
    for setting in SETTINGS:
        line = compare(setting)
        found.append(line)
        more = "" if line["checkpointing"] == "off" else f", {line['checkpointing']}"
        print(f"| `{line['method']}`, {line['dtype']}{more} | {line['rows']} × {line['tokens']} | "
              f"{line['measured_mb']:,.0f} MB | {line['needed_mb']:,.0f} MB | "
              f"{line['computed_mb']:,.0f} MB | "
              f"{line['error_percent']:+.1f} % |", flush=True)  # fmt: skip
        write_atomic(RESULTS, json_text({"hardware": hardware(), "lines": found}) + "\n")


if __name__ == "__main__":
    main()
