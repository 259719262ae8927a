"""Time and memory of preparing 170,000 commonsense rows: read, converted, turned into token ids.

The rows are the real ones of a local data folder, repeated until there are as many as the eight
commonsense training sets have. Every protocol runs in a process of its own, with an empty cache of
token ids:

    LORADA_DATA=DIR python benchmarks/prepare.py
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import memory

from lorada.runs.data.dataset import encode_rows
from lorada.runs.data.rows import training_rows
from lorada.runs.folder.result import hardware
from lorada.runs.models.loading import load_tokenizer
from lorada.runs.recipe import load_recipe
from lorada.tasks.commonsense import MIX
from lorada.tasks.sources import data_folder, read_source

RESULTS = Path(__file__).parent / "results" / "prepare.json"
ROWS = 170_000
PROTOCOLS = ("generate", "likelihood")
SECONDS, GIGABYTES = 120, 2.0  # what it may take


def repeated(folder: Path) -> None:
    """Write a data folder whose commonsense mix has ``ROWS`` rows."""
    rows = read_source(MIX, data_folder(None))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path = folder / MIX.folder / f"{MIX.split}.jsonl.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        file.writelines(lines[number % len(lines)] for number in range(ROWS))


def gigabytes() -> float:
    return memory("VmHWM") / 1024  # getrusage may say what the process that started this one held


def measure(folder: str, protocol: str) -> dict[str, float | int | str]:
    fixed = {"model": "smollm2-135m", "task": "piqa", "data_dir": folder, "output": "unused"}
    settings = ["train_on=commonsense_170k", f"protocol={protocol}", "max_length=256"]
    recipe = load_recipe(None, settings, fixed)
    tokenizer = load_tokenizer(recipe.model)
    tokenizer("warm")
    before, start, used = gigabytes(), time.perf_counter(), time.process_time()
    rows, _ = training_rows(recipe, "decoder")
    read = time.perf_counter()
    rows.fingerprint  # noqa: B018 (which every run computes)
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
        "gb_above_baseline": round(gigabytes() - before, 2),
    }


def cold(folder: str, protocol: str) -> dict[str, float | int | str]:
    """``measure`` in a process of its own, which finds no tokens of earlier runs."""
    environment = {**os.environ, "HF_DATASETS_CACHE": f"{folder}/cache"}
    command = [sys.executable, __file__, folder, protocol]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    found: dict[str, float | int | str] = json.loads(run.stdout)
    return found


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
        return
    if data_folder(None) is None:
        sys.exit("no benchmark data: set LORADA_DATA")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        repeated(Path(folder))
        for protocol in PROTOCOLS:
            found.append(cold(folder, protocol))
            print(found[-1])
    result = {"tokenizer": "smollm2-135m", "hardware": hardware(), "prepared": found}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    slow = [f["protocol"] for f in found if f["seconds"] > SECONDS]
    large = [f["protocol"] for f in found if f["gb_above_baseline"] > GIGABYTES]
    if slow or large:
        sys.exit(f"over {SECONDS} s: {slow}; over {GIGABYTES} GB: {large}")


if __name__ == "__main__":
    main()
