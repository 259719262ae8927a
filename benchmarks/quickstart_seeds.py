"""The quickstart's comparison over three seeds (README, "Quickstart").

    python benchmarks/quickstart_seeds.py [--out runs/seeds]

Runs that are finished are not repeated. Prints mean ± standard deviation of the held-out exact
match and loss of LMAM alone, LoRA and LoRaDA-LA on the bundled task, and writes
benchmarks/results/quickstart_seeds.json.
"""

import argparse
import json
import logging
import statistics
from functools import partial
from pathlib import Path

from lorada.experiments import own_process
from lorada.experiments.quickstart import RECIPE, largest_lora
from lorada.runs.folder.result import RESULT_FILE, hardware, read_result
from lorada.runs.inference.evaluate import evaluate
from lorada.runs.inference.load import load_run
from lorada.runs.models.count import count_parameters
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train
from lorada.support.files import write_whole

SEEDS = (1, 2, 3)


def measure(out: Path, method: str, settings: list[str], seed: int) -> dict:
    folder = out / f"{method}-{seed}"
    changes = [f"output={folder}", f"method={method}", f"training.seed={seed}", *settings]
    recipe = load_recipe(RECIPE, changes, {})
    if not (folder / RESULT_FILE).is_file():
        own_process.call(partial(train, overwrite=True, quiet=True), recipe)
    if not read_result(folder)["metrics"]:
        evaluate(load_run(folder))
    result = read_result(folder)
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
    ours = load_recipe(RECIPE, [], {})
    budget = count_parameters(ours.method, ours.model, [])["trainable"]
    settings = {"lmam": [], "lora": largest_lora(ours.model, budget), "lorada_la": []}
    rows = [measure(out, m, settings[m], seed) for seed in SEEDS for m in settings]
    for method in settings:
        own = [row for row in rows if row["method"] == method]
        text = [f"{method}: {own[0]['parameters']:,} parameters"]
        for name in ("exact_match", "loss"):
            values = [row[name] for row in own]
            text.append(f"{name} {statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
        print(", ".join(text))
    results = Path(__file__).parent / "results" / "quickstart_seeds.json"
    write_whole(results, json.dumps({"hardware": hardware(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
