"""Compare the computed memory of a training step with the measured memory of real trainings.

    python benchmarks/check_memory_estimates.py

Each setting trains three steps on rows of exactly ``max_length`` tokens, in a process of its own.
Measured is how much the process grew over what it held before the first step; computed are
gradients, optimizer and activations. Writes benchmarks/results/memory_estimates.json and prints a
table.
"""

import gc
import json
import tempfile
from pathlib import Path
from typing import Any

from library import fresh_process

from lorada.runs.folder.result import hardware
from lorada.runs.prepare import prepare_training
from lorada.runs.recipe import Recipe, load_recipe
from lorada.runs.training.setup import set_up
from lorada.runs.training.training_memory import training_memory
from lorada.support.files import json_text, write_atomic

RESULTS = Path(__file__).parent / "results" / "memory_estimates.json"
# method, rows a step, tokens a row
SETTINGS = [
    ("lora", 4, 128), ("lora", 8, 128), ("lorada_la", 4, 128), ("lorada_la", 8, 128),
    ("lmam", 8, 128), ("dora", 4, 128), ("prefix", 4, 128), ("full", 4, 128),
]  # fmt: skip


def recipe_of(method: str, rows: int, tokens: int, folder: str) -> Recipe:
    """A recipe on rows that are longer than ``tokens``, so that each is cut to that length."""
    data = Path(folder) / "rows.jsonl"
    row = {"prompt": "Count.", "response": " one two three" * tokens}
    data.write_text((json.dumps(row) + "\n") * rows)
    pairs = [f"per_device_train_batch_size={rows}", "max_steps=3", "report_to=[]"]
    options = {"method": method, "model": "smollm2-135m", "data": str(data), "output": folder}
    return load_recipe(None, [*pairs, f"max_length={tokens}"], options)


def measured(method: str, rows: int, tokens: int) -> float:
    """Megabytes by which this process grows in three steps of training."""
    with tempfile.TemporaryDirectory() as folder:
        setup = set_up(prepare_training(recipe_of(method, rows, tokens, folder)), [], quiet=True)
        for weight in setup.model.parameters():
            weight.detach().sum()  # weights are read from disk when they are first used
        gc.collect()
        fresh_process.reset_peak()
        before = fresh_process.memory_mb("VmRSS")
        setup.trainer.train()
        return fresh_process.memory_mb("VmHWM") - before


def computed(method: str, rows: int, tokens: int) -> float:
    """Megabytes of gradients, optimizer and activations, as ``lorada table --dry-run`` says."""
    with tempfile.TemporaryDirectory() as folder:
        memory = training_memory(recipe_of(method, rows, tokens, folder))
    return (memory.total - memory.weights) / 2**20


def compare(setting: tuple[str, int, int]) -> dict[str, Any]:
    """One setting, measured and computed."""
    real = fresh_process.call(measured, *setting)
    guess = computed(*setting)
    names = dict(zip(("method", "rows", "tokens"), setting, strict=True))
    error = 100 * (guess / real - 1)
    return {**names, "measured_mb": real, "computed_mb": guess, "error_percent": error}


def main() -> None:
    found = []
    print("| method | rows × tokens | measured | computed | error |\n|---|---|---|---|---|")
    for setting in SETTINGS:
        line = compare(setting)
        found.append(line)
        print(f"| {line['method']} | {line['rows']} × {line['tokens']} | "
              f"{line['measured_mb']:,.0f} MB | {line['computed_mb']:,.0f} MB | "
              f"{line['error_percent']:+.1f} % |", flush=True)  # fmt: skip
    write_atomic(RESULTS, json_text({"hardware": hardware(), "lines": found}) + "\n")


if __name__ == "__main__":
    main()
