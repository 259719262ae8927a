"""Which scale, initialisation and learning rate let the map learn? (docs/scale.md)

    python benchmarks/scale.py                 # everything; runs that are finished are not repeated
    python benchmarks/scale.py --part minilm   # or: smollm2

LMAM alone (no other part) on two tasks: SST-2 on MiniLM (real rows, from LORADA_DATA in the layout
of a GLUE folder; the classification head trains too) and the bundled syllogisms on SmolLM2-135M.
Prints a table of held-out losses and writes benchmarks/results/scale.json.
"""

import argparse
import gzip
import json
import logging
import os
import statistics
from functools import partial
from pathlib import Path

from lorada.experiments import own_process
from lorada.runs.folder.result import RESULT_FILE, hardware, read_result
from lorada.runs.inference.evaluate import evaluate
from lorada.runs.inference.load import load_run
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train
from lorada.support.files import write_whole

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
PAPER_LLM_SCALE = 4096 * 600
FROZEN = 1e-12  # a map that starts at zero and does not learn: the base alone (MiniLM: its head)

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


def sst2(folder: Path) -> dict[str, str]:
    """SST-2 as text/label rows: 4,000 for training and the first 400 of the held-out ones."""
    source = Path(os.environ["LORADA_DATA"]) / "glue" / "sst2"
    files = {}
    for key, split, count in (("data", "train", 4000), ("eval_data", "validation", 400)):
        with gzip.open(source / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
        files[key] = str(folder / f"sst2_{split}.jsonl")
        text = "".join(
            json.dumps({"text": row["sentence"], "label": str(row["label"])}) + "\n" for row in rows
        )
        write_whole(Path(files[key]), text)
    return files


def run_name(fixed: dict, seed: int, **lmam: object) -> str:
    return "-".join([fixed["model"], f"s{seed}", *(f"{k}={v}" for k, v in lmam.items())])


def measure(out: Path, fixed: dict, training: dict, seed: int, **lmam: object) -> dict:
    """Held-out loss and effect size of one run; a finished run is read, not repeated."""
    name = run_name(fixed, seed, **lmam)
    settings = [f"lmam.{key}={value}" for key, value in lmam.items()]
    settings += [f"training.{key}={value}" for key, value in training.items()]
    recipe = load_recipe(
        None, [*settings, f"training.seed={seed}"], {**fixed, "output": str(out / name)}
    )
    if not (out / name / RESULT_FILE).is_file():
        own_process.call(partial(train, overwrite=True, quiet=True), recipe)
    result = read_result(out / name)
    file = fixed["eval_data"]
    if file not in result["metrics"]:
        evaluate(load_run(out / name))
        result = read_result(out / name)
    scores = result["metrics"][file]
    accuracy = scores.get("accuracy", scores.get("exact_match"))
    row = {"seed": seed, **lmam, "loss": scores["loss"], "accuracy": accuracy}
    row["effect_size"] = result["effect_size"]
    print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
    return row


def spread(rows: list[dict]) -> str:
    losses = [row["loss"] for row in rows]
    return f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}"


def minilm(out: Path) -> dict:
    fixed = {**MINILM, **sst2(out)}
    grid = [
        measure(out, fixed, MINILM_TRAINING, 1, inverse_scale=s, map_learning_rate=lr, init=init)
        for s in (1, 16, 255)
        for lr in (1e-3, 5e-3, 2e-2)
        for init in ("zero", "normal")
    ]
    chosen = [measure(out, fixed, MINILM_TRAINING, seed) for seed in SEEDS]
    frozen = [measure(out, fixed, MINILM_TRAINING, s, map_learning_rate=FROZEN) for s in SEEDS]
    return {"grid": grid, "default": chosen, "head alone": frozen}


def smollm2(out: Path) -> dict:
    chosen = [measure(out, SMOLLM2, SMOLLM2_TRAINING, seed) for seed in SEEDS]
    base = evaluate(load_run(out / run_name(SMOLLM2, SEEDS[0])), base=True)
    paper = [
        measure(out, SMOLLM2, SMOLLM2_TRAINING, 1, inverse_scale=PAPER_LLM_SCALE, init="normal",
                map_learning_rate=2e-4)
    ]  # fmt: skip
    untouched = [{"loss": base["loss"], "accuracy": base["exact_match"]}]
    return {"default": chosen, "untouched": untouched, "paper's LLM scale": paper}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=("minilm", "smollm2"))
    parser.add_argument("--out", type=Path, default=Path("runs/scale"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    results_file = HERE / "results" / "scale.json"
    results = json.loads(results_file.read_text()) if results_file.is_file() else {}
    for name, part in (("minilm", minilm), ("smollm2", smollm2)):
        if options.part in (None, name):
            results[name] = part(options.out)
            results["hardware"] = hardware()
            write_whole(results_file, json.dumps(results, indent=1) + "\n")
            for group, rows in results[name].items():
                if group != "grid" and len(rows) > 1:
                    print(f"{name}, {group}: held-out loss {spread(rows)} over {len(rows)} seeds")


if __name__ == "__main__":
    main()
