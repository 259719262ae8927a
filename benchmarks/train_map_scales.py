"""Find scale, initialisation and learning rate with which the map learns (docs/studies/scale.md).

    python benchmarks/train_map_scales.py                 # everything; finished runs are kept
    python benchmarks/train_map_scales.py --part minilm   # or: smollm2, starts

Trains LMAM without any other part on two tasks: SST-2 on MiniLM, whose classification head trains
too (real rows, from LORADA_DATA in the layout of a GLUE folder), and the bundled syllogisms on
SmolLM2-135M. Prints losses on held-out rows and writes benchmarks/results/scale.json.
"""

import argparse
import json
import logging
import os
import statistics
from pathlib import Path
from typing import Any

from library.training_runs import SST2, finished_run, write_first_rows

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.runs.machine import hardware
from lorada.runs.result import read_result
from lorada.support.files import write_atomic
from lorada.training.load_recipe import load_recipe

RESULTS = Path(__file__).parent / "results" / "scale.json"
SEEDS = (1, 2, 3)
PAPER_LLM_SCALE = 4096 * 600
# A learning rate at which the map stays zero, so that the base is alone (on MiniLM with its head).
NO_LEARNING = 1e-12
Settings = dict[str, Any]

MINILM = {"model": "minilm-l6", "method": "lmam", "max_length": 64}
MINILM_TRAINING = {
    "max_steps": 150, "per_device_train_batch_size": 16, "learning_rate": 5e-3, "report_to": [],
    "save_strategy": "no", "logging_steps": 20,
}  # fmt: skip
SMOLLM2 = {
    "model": "smollm2-135m", "method": "lmam", "max_length": 96,
    "data": "builtin:syllogisms_train.jsonl", "eval_data": "builtin:syllogisms_test.jsonl",
    "max_new_tokens": 4, "eval_batch_size": 50,
}  # fmt: skip
SMOLLM2_TRAINING = {**MINILM_TRAINING, "max_steps": 45, "logging_steps": 15, "warmup_steps": 3}


def run_name(fixed: Settings, seed: int, **lmam: object) -> str:
    """Folder of a run."""
    return "-".join([fixed["model"], f"s{seed}", *(f"{k}={v}" for k, v in lmam.items())])


def measure(
    out: Path, fixed: Settings, training: Settings, seed: int, **lmam: object
) -> dict[str, Any]:
    """Train with a seed and settings of the map; return its row."""
    settings = [f"lmam.{key}={value}" for key, value in lmam.items()]
    settings += [f"training.{key}={value}" for key, value in training.items()]
    output = str(out / run_name(fixed, seed, **lmam))
    recipe = load_recipe(None, [*settings, f"training.seed={seed}"], {**fixed, "output": output})
    result = finished_run(recipe)
    scores = result.metrics[fixed["eval_data"]].scores
    accuracy = scores.get("accuracy", scores.get("exact_match"))
    row = {"seed": seed, **lmam, "loss": scores["loss"], "accuracy": accuracy}
    row["relative_norm"] = result.relative_norm
    print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
    return row


def minilm(out: Path) -> dict[str, Any]:
    """Train on SST-2: a grid of settings, the chosen ones, and the head alone."""
    data = Path(os.environ["LORADA_DATA"])
    fixed = {**MINILM, **write_first_rows(data, SST2, out / "sst2_{}.jsonl", 4000, 400)}
    grid = [
        measure(out, fixed, MINILM_TRAINING, 1, inverse_scale=s, map_learning_rate=lr, init=init)
        for s in (1, 16, 255)
        for lr in (1e-3, 5e-3, 2e-2)
        for init in ("zero", "normal")
    ]
    chosen = [measure(out, fixed, MINILM_TRAINING, seed) for seed in SEEDS]
    head = [measure(out, fixed, MINILM_TRAINING, s, map_learning_rate=NO_LEARNING) for s in SEEDS]
    return {"grid": grid, "default": chosen, "head alone": head}


def smollm2(out: Path) -> dict[str, Any]:
    """Train on the syllogisms: the chosen settings, and the paper's scale for LLMs."""
    chosen = [measure(out, SMOLLM2, SMOLLM2_TRAINING, seed) for seed in SEEDS]
    base = evaluate(load_run(out / run_name(SMOLLM2, SEEDS[0])), base=True)
    paper = [
        measure(out, SMOLLM2, SMOLLM2_TRAINING, 1, inverse_scale=PAPER_LLM_SCALE, init="normal",
                map_learning_rate=2e-4)
    ]  # fmt: skip
    untouched = [{"loss": base["loss"], "accuracy": base["exact_match"]}]
    return {"default": chosen, "untouched": untouched, "paper's LLM scale": paper}


def starts(out: Path) -> dict[str, Any]:
    """Both zero starts on MiniLM with mean pooling: each at three scales and three rates.

    A row has the norm of all gradients at the first step too, the head's among them, and the effect
    size after 50 steps.
    """
    data, out = Path(os.environ["LORADA_DATA"]), out / "starts"
    fixed = {**MINILM, **write_first_rows(data, SST2, out / "sst2_{}.jsonl", 4000, 400)}
    fixed["pooling"] = "mean"
    training = {**MINILM_TRAINING, "logging_steps": 10, "logging_first_step": True}
    grid = []
    for scale in (1, 4, 16):
        for rate in (1e-3, 5e-3, 2e-2):
            for init in ("zero", "zero_left"):
                given = {"inverse_scale": scale, "map_learning_rate": rate, "init": init}
                row = measure(out, fixed, training, 1, **given)
                history = read_result(out / run_name(fixed, 1, **given)).history
                logged = {line["step"]: line for line in history if "grad_norm" in line}
                row["first_gradient"] = logged[1]["grad_norm"]
                row["relative_norm_50"] = logged[50]["relative_norm"]
                grid.append(row)
    head = [measure(out, fixed, training, seed, map_learning_rate=NO_LEARNING) for seed in SEEDS]
    return {"grid": grid, "head alone": head}


PARTS = {"minilm": minilm, "smollm2": smollm2, "starts": starts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("runs/scale"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name, part in PARTS.items():
        if options.part in (None, name):
            found = part(options.out)
            results[name] = {**found, "hardware": hardware()}
            write_atomic(RESULTS, json.dumps(results, indent=1) + "\n")
            for group, rows in found.items():
                if group != "grid" and len(rows) > 1:
                    losses = [row["loss"] for row in rows]
                    spread = f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}"
                    print(f"{name}, {group}: held-out loss {spread} over {len(rows)} seeds")


if __name__ == "__main__":
    main()
