"""A made-up comparison on disk: the folder that ``lorada compare`` leaves, without any training."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

MODEL, HELD_OUT = "smollm2-135m", "/home/me/test.jsonl"
TOTAL = 134_515_008  # parameters of the base
MACHINE = {"cpu": "AMD EPYC", "cores": 2, "threads": 1, "memory_gib": 23.5, "accelerator": None}
VERSIONS = {"python": "3.11.7", "lorada": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0"}
KEPT, KEPT_ROWS = "/home/me/other.jsonl", 40  # rows that the model should still do
BUDGETS = {"0.1%": 0.001, "0.2%": 0.002}


@dataclass(frozen=True)
class Method:
    """A made-up method.

    Attributes:
        part: its settings at the first and the second budget.
        trainable: parameters at the first and the second budget.
        right: probability of a right answer, in percent, at the first and the second budget.
        reason: why it cannot be run.
        fails: whether the run of the last seed fails.
    """

    part: tuple[dict, dict]
    trainable: tuple[int, int]
    right: tuple[float, float]
    mergeable: bool = True
    reason: str | None = None
    fails: bool = False


METHODS = {
    "lora": Method(
        ({"lora": {"r": 2, "lora_alpha": 4}}, {"lora": {"r": 4, "lora_alpha": 8}}),
        (115_200, 230_400), (71, 74),
    ),
    "dora": Method(
        ({"lora": {"r": 1, "lora_alpha": 2}}, {"lora": {"r": 3, "lora_alpha": 6}}),
        (103_680, 218_880), (72, 74),
    ),
    "lorada_la": Method(
        ({"lmam": {"length": 32}}, {"lmam": {"length": 64}}), (109_455, 218_910), (84, 88),
        mergeable=False,
    ),
    "ia3": Method(({}, {}), (61_440, 61_440), (58, 58)),
    "ia3+lora": Method(
        ({"lora": {"r": 1, "lora_alpha": 2}}, {"lora": {"r": 3, "lora_alpha": 6}}),
        (119_040, 234_240), (70, 73), fails=True,
    ),
    "boft": Method(({}, {}), (0, 0), (0, 0), reason="boft does not fit: 576 is no multiple of 5"),
    "vblora": Method(({}, {}), (345_600, 345_600), (69, 69)),
}  # fmt: skip


def renamed(line, name: str, **plan):
    """A candidate of a summary by another name, and with these fields of its plan."""
    candidate = replace(line.result.candidate, method=name, **plan)
    return replace(line, result=replace(line.result, label=name, candidate=candidate))


def candidates() -> list[dict]:
    """The candidates of ``plan.json``; two budgets that give one size share one."""
    found = []
    for name, method in METHODS.items():
        sized: dict[int, dict] = {}
        for index, (budget, share) in enumerate(BUDGETS.items()):
            count = method.trainable[index]
            one = sized.setdefault(count, {
                "method": name, "budgets": {}, "parts": method.part[index], "trainable": count,
                "percent": 100 * count / TOTAL, "total": TOTAL, "mergeable": method.mergeable,
                "default_rate": 2e-4, "settings_from": "PEFT's defaults", "reason": None,
            })  # fmt: skip
            one["budgets"][budget] = count > share * TOTAL
        if method.reason:
            empty = dict.fromkeys(("trainable", "percent", "total", "mergeable", "default_rate"))
            sized = {0: {**sized[0], **empty, "parts": {}, "reason": method.reason}}
        found += sized.values()
    return found


def write_made_up(folder: Path, *, rows: int = 200, seeds: tuple[int, ...] = (1, 2, 3)) -> Path:
    """Write a whole made-up comparison: seven methods, two budgets; one run fails, one cannot run.

    ``rows`` is the number of held-out rows.
    """
    random = np.random.default_rng(1)
    plan = {
        "candidates": candidates(), "versions": VERSIONS, "hardware": MACHINE,
        "held_out": {HELD_OUT: {"rows": rows, "sha256": "0" * 64}}, "steps": 0, "batch": 8,
        "dev_rows": 8, "train": {"file": "", "rows": 0, "sha256": ""},
        "overlap": 0, "metric": None,
        "kept": {"rows": {KEPT: {"rows": KEPT_ROWS, "sha256": "0" * 64}}},
    }  # fmt: skip
    asked = {
        "recipe": {"model": MODEL, "data": "train.jsonl"}, "held_out": HELD_OUT,
        "methods": list(METHODS), "budgets": list(BUDGETS), "seeds": list(seeds), "trials": 4,
        "with_text": None, "allow_overlap": False,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    write(folder / "plan.json", plan)
    write_kept(folder / "kept", 0.0, seed=0)
    easy = random.normal(0, 1.2, rows)  # how easy each row is, the same for all methods
    failures = {}
    for one in plan["candidates"]:
        if one["reason"]:
            continue
        method = METHODS[one["method"]]
        place = f"{one['method']}/{one['trainable']}"
        search(folder / "trials" / place)
        right = method.right[method.trainable.index(one["trainable"])]
        taste = random.normal(0, 0.8, rows)  # rows that suit this method
        for seed in seeds:
            run = f"runs/{place}/seed{seed}"
            if method.fails and seed == seeds[-1]:
                failures[run] = "the loss became NaN at step 40: lower training.learning_rate"
                continue
            logit = np.log(right / (100 - right)) + easy + taste + random.normal(0, 0.15)
            scores = 100.0 * (random.random(rows) < 1 / (1 + np.exp(-logit)))
            write_run(folder / run, one, seed, scores, random)
    scores = 100.0 * (random.random(rows) < 0.31)
    common = 100.0 * (random.random(rows) < 0.5)
    baselines = {
        "as_it_is": {
            "row_scores": {"exact_match": scores.tolist()},
            "metrics": {"n": rows, "exact_match": scores.mean()},
        },
        "commonest": {"answer": "Yes", "row_scores": {"exact_match": common.tolist()}},
    }  # fmt: skip
    write(folder / "baselines.json", baselines)
    write(folder / "failures.json", failures)
    return folder


def search(folder: Path) -> None:
    """Write the search for a learning rate: four trials."""
    trials = [
        {
            "number": number, "choice": 0, "map_factor": 1.0, "rate": float(rate),
            "loss": 0.6 + number / 9, "failed": None,
        }
        for number, rate in enumerate((2e-4, 6e-4, 2e-2, 1e-4))
    ]  # fmt: skip
    chosen = {"choice": 0, "rate": 2e-4, "map_factor": 1.0, "map_rate": None}
    found = {"default": 2e-4, **chosen, "trials": trials}
    write(folder / "search.json", found)
    untold = {"labels": [], "form": "text", "history": [], "metrics": {}}
    for trial in trials:
        write(folder / f"trial-{trial['number']}/result.json", {**untold, "wall_time_s": 60.0})


def write_run(
    run: Path, candidate: dict, seed: int, scores: np.ndarray, random: np.random.Generator
) -> None:
    """Write the folder of one finished run: ``result.json``, ``recipe.yaml``, predictions."""
    steps, trainable = 100, candidate["trainable"]
    history = [
        {"step": step, "loss": 0.4 + 1.6 * float(np.exp(-step / 30)) + 0.02 * seed}
        for step in range(10, steps + 1, 10)
    ]
    result = {
        "method": candidate["method"], "model": MODEL, "task": "jsonl", "form": "text",
        "labels": [], "seed": seed, "versions": VERSIONS, "hardware": MACHINE, "steps": steps,
        "parameters": {"trainable": trainable, "total": TOTAL, "percent": candidate["percent"]},
        "settings_from": candidate["settings_from"], "adapter_bytes": 4 * trainable + 900,
        "peak_memory_bytes": int(1.4e9 + 12 * trainable),
        "seconds_per_step": 0.7 + trainable / 1e6 + seed / 10,
        "metrics": {HELD_OUT: {"n": len(scores), "exact_match": scores.mean()}},
        "history": history, "train_loss": history[-1]["loss"],
        "wall_time_s": float(random.uniform(60, 90)),
        "resumed_from": "checkpoint-50" if seed == 2 else None,
        "recipe": {"parts": candidate["parts"], "training": {"learning_rate": 2e-4, "seed": seed}},
    }  # fmt: skip
    write(run / "result.json", result)
    write_kept(run, trainable / 3e5, seed)
    recipe = {
        "method": candidate["method"],
        "model": MODEL,
        "data": "train.jsonl",
        "output": str(run),
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [
        {
            "rows": HELD_OUT, "row": number, "answer": "Yes" if score else "No",
            "loss": float(random.exponential(0.3 if score else 1.5)),
            "metrics": {"exact_match": score},
        }
        for number, score in enumerate(scores.tolist(), 1)
    ]  # fmt: skip
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_kept(folder: Path, growth: float, seed: int) -> None:
    """Write the losses on the rows to keep, which have grown by so much."""
    of_base = np.random.default_rng(0).exponential(2.0, KEPT_ROWS)
    random = np.random.default_rng([seed, int(1e6 * growth)])
    of_rows = random.exponential(1.0, KEPT_ROWS)
    losses = of_base + growth * (of_rows + random.normal(0, 0.05))
    write(folder / "kept.json", {"losses": {KEPT: losses.tolist()}})


def write(path: Path, data: object) -> None:
    """Write data as JSON, with the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
