"""Repeat the quickstart's comparison with three seeds (README, "Quickstart").

    python benchmarks/train_quickstart_seeds.py [--out runs/seeds]

Trains LMAM alone, LoRA and LoRaDA-LA on the bundled task; finished runs are not repeated. Prints
mean ± standard deviation of the exact match and the loss on held-out rows, and writes
benchmarks/results/quickstart_seeds.json.
"""

import argparse
import json
import logging
import statistics
from pathlib import Path
from typing import Any

from library.training_runs import finished_run

from lorada.compare.quickstart import RECIPE, largest_lora
from lorada.runs.result import hardware
from lorada.support.files import write_atomic
from lorada.training.load_recipe import load_recipe
from lorada.training.parameter_counts import count_parameters

SEEDS = (1, 2, 3)
RESULTS = Path(__file__).parent / "results" / "quickstart_seeds.json"


def measure(out: Path, method: str, settings: list[str], seed: int) -> dict[str, Any]:
    """Train a method with a seed and return its row."""
    folder = out / f"{method}-{seed}"
    changes = [f"output={folder}", f"method={method}", f"training.seed={seed}", *settings]
    result = finished_run(load_recipe(RECIPE, changes, {}))
    (scores,) = result["metrics"].values()
    row = {
        "method": method, "seed": seed, "parameters": result["parameters"]["trainable"],
        "exact_match": scores["exact_match"], "loss": scores["loss"], "n": scores["n"],
        "effect_size": result["effect_size"], "seconds": result["wall_time_s"],
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    out = parser.parse_args().out
    logging.basicConfig(level=logging.ERROR)
    recipe = load_recipe(RECIPE, [], {})
    budget = count_parameters(recipe.method, recipe.model, [])["trainable"]
    settings = {"lmam": [], "lora": largest_lora(recipe.model, budget), "lorada_la": []}
    rows = [measure(out, m, settings[m], seed) for seed in SEEDS for m in settings]
    for method in settings:
        own = [row for row in rows if row["method"] == method]
        text = [f"{method}: {own[0]['parameters']:,} parameters"]
        for name in ("exact_match", "loss"):
            values = [row[name] for row in own]
            text.append(f"{name} {statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
        print(", ".join(text))
    write_atomic(RESULTS, json.dumps({"hardware": hardware(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
