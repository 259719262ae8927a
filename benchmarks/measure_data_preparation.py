"""Measure how long 170,000 commonsense rows take to be read, converted and turned into token ids.

    LORADA_DATA=DIR python benchmarks/measure_data_preparation.py

The rows are those of a local data folder, repeated until there are as many as the eight commonsense
training sets have. Each protocol runs in a process of its own. Writes time and memory to
benchmarks/results/prepare.json.
"""

import gzip
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from library import fresh_process

from lorada.data.benchmarks.commonsense import MIX
from lorada.data.files.benchmark_files import data_folder, read_source
from lorada.data.rows.training_rows import training_rows
from lorada.data.tokenize import encode_rows
from lorada.runs.machine import hardware
from lorada.training.load_recipe import load_recipe
from lorada.training.models.loading import load_tokenizer

RESULTS = Path(__file__).parent / "results" / "prepare.json"
ROWS = 170_000
PROTOCOLS = ("generate", "likelihood")
MOST_SECONDS, MOST_GIGABYTES = 120, 2.0


def write_repeated_rows(folder: Path) -> None:
    """Write a data folder whose commonsense mix has ``ROWS`` rows."""
    rows = read_source(MIX, data_folder(None))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path = folder / MIX.folder / f"{MIX.split}.jsonl.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        file.writelines(lines[number % len(lines)] for number in range(ROWS))


def peak_gigabytes() -> float:
    """The most memory that this process ever held."""
    # Not from getrusage, which may tell what the process that started this one held.
    return fresh_process.memory_mb("VmHWM") / 1024


def prepare(folder: str, protocol: str) -> dict[str, Any]:
    """Prepare the rows of a data folder and return times and memory."""
    fixed = {"model": "smollm2-135m", "task": "piqa", "data_dir": folder, "output": "unused"}
    settings = ["train_on=commonsense_170k", f"protocol={protocol}", "max_length=256"]
    recipe = load_recipe(None, settings, fixed)
    tokenizer = load_tokenizer(recipe.model)
    tokenizer("a text that warms it up")
    before, start, used = peak_gigabytes(), time.perf_counter(), time.process_time()
    rows, _ = training_rows(recipe, "decoder")
    read = time.perf_counter()
    rows.fingerprint  # noqa: B018  # which every run computes
    hashed = time.perf_counter()
    dataset = encode_rows(rows, recipe, tokenizer, "decoder")
    done = time.perf_counter()
    return {
        "protocol": protocol,
        "rows": len(dataset),
        "read_s": round(read - start, 1),
        "fingerprint_s": round(hashed - read, 1),
        "encode_s": round(done - hashed, 1),
        "seconds": round(done - start, 1),
        "cpu_s": round(time.process_time() - used, 1),
        "baseline_gb": round(before, 2),
        "gb_above_baseline": round(peak_gigabytes() - before, 2),
    }


def prepare_in_process(folder: str, protocol: str) -> dict[str, Any]:
    """``prepare`` in a fresh process."""
    found: dict[str, Any] = fresh_process.call(prepare, folder, protocol)
    return found


def main() -> None:
    if data_folder(None) is None:
        sys.exit("no benchmark data: set LORADA_DATA")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_repeated_rows(Path(folder))
        for protocol in PROTOCOLS:
            found.append(prepare_in_process(folder, protocol))
            print(found[-1])
    result = {"tokenizer": "smollm2-135m", "hardware": hardware(), "prepared": found}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    slow = [f["protocol"] for f in found if f["seconds"] > MOST_SECONDS]
    large = [f["protocol"] for f in found if f["gb_above_baseline"] > MOST_GIGABYTES]
    if slow or large:
        sys.exit(f"over {MOST_SECONDS} s: {slow}; over {MOST_GIGABYTES} GB: {large}")


if __name__ == "__main__":
    main()
