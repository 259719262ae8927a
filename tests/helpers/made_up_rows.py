"""A made-up comparison of classifiers on disk, some of whose held-out labels are known to be wrong.

Files are those that ``lorada compare`` leaves; nothing is trained.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from made_up_comparison import MACHINE, MODEL, VERSIONS, write

from lorada.data.rows.own_rows import load_rows

LABELS = ("invalid", "valid")
SOURCES = ("book", "web", "forum")


@dataclass(frozen=True)
class MadeUpAnswers:
    """Rows with labels, some of them wrong, and what made-up runs answer.

    Attributes:
        labels: of each row, as its file has it: 0 or 1.
        flipped: of each row, whether that is wrong.
        probabilities: of class 1, methods × seeds × rows.
    """

    labels: np.ndarray
    flipped: np.ndarray
    probabilities: np.ndarray


def made_up_answers(
    random: np.random.Generator, *, rows=300, methods=2, seeds=3, flipped=0.08, clear=2.0
) -> MadeUpAnswers:
    """Draw answers; the larger ``clear``, the better models know the true classes."""
    truth = random.integers(0, 2, rows)
    wrong = random.random(rows) < flipped
    ease = random.normal(clear, 1.3, rows)
    odds = ease + random.normal(0, 0.5, (methods, 1, rows))
    odds = odds + random.normal(0, 0.6, (methods, seeds, rows))
    towards_truth = 1 / (1 + np.exp(-odds))
    probabilities = np.where(truth == 1, towards_truth, 1 - towards_truth)
    return MadeUpAnswers(np.where(wrong, 1 - truth, truth), wrong, probabilities)


def write_classifiers(
    folder: Path, answers: MadeUpAnswers, *, with_text=False, names=("lora", "ia3")
) -> Path:
    """Write the rows and a comparison of classifiers that answer so; returns the comparison."""
    count = len(answers.labels)
    table = [
        {"text": f"Sentence {place} says this" + " again" * (place % 13),
         "label": LABELS[label], "source": SOURCES[place % 3], "words": place % 13 + 4}
        for place, label in enumerate(answers.labels)
    ]  # fmt: skip
    held_out = folder / "test.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    held_out.write_text("".join(json.dumps(row) + "\n" for row in table))
    name, place = str(held_out), folder / "comparison"
    seeds = list(range(1, answers.probabilities.shape[1] + 1))
    asked = {
        "recipe": {"model": MODEL, "data": str(held_out)}, "held_out": name,
        "methods": list(names), "seeds": seeds, "trials": 0, "with_text": with_text or None,
    }  # fmt: skip
    rows = load_rows(name)
    candidates = [
        {"method": method, "budgets": {}, "parts": {}, "trainable": 9000 - 1000 * index}
        for index, method in enumerate(names)
    ]
    plan = {
        "candidates": candidates, "versions": VERSIONS, "hardware": MACHINE, "steps": 9, "batch": 8,
        "held_out": {name: {"rows": count, "sha256": rows.fingerprint}}, "dev_rows": 0,
        "train": {"file": "", "rows": 0, "sha256": ""},
        "overlap": 0, "metric": {"name": "accuracy", "reason": ""},
    }  # fmt: skip
    place.mkdir()
    (place / "comparison.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    write(place / "plan.json", plan)
    for candidate, of_method in zip(candidates, answers.probabilities, strict=True):
        for seed, of_run in zip(seeds, of_method, strict=True):
            run = place / f"runs/{candidate['method']}/{candidate['trainable']}/seed{seed}"
            write_classifier(run, candidate, seed, of_run, name, table, with_text=with_text)
    return place


def write_classifier(
    run: Path, candidate: dict, seed: int, probabilities: np.ndarray, name: str, table: list[dict],
    *, with_text: bool,
) -> None:  # fmt: skip
    """Write a finished run: ``result.json`` and ``predictions.jsonl``."""
    lines = []
    for number, (row, probability) in enumerate(zip(table, probabilities, strict=True), 1):
        answer = LABELS[int(probability > 0.5)]
        of_right = probability if row["label"] == LABELS[1] else 1 - probability
        score = 100.0 * (answer == row["label"])
        line = {
            "rows": name, "row": number, "answer": answer,
            "loss": float(-np.log(of_right)), "metrics": {"accuracy": score},
        }  # fmt: skip
        if with_text:
            line |= {"text": row["text"], "right": row["label"]}
        lines.append(line)
    score = float(np.mean([line["metrics"]["accuracy"] for line in lines]))
    result = {
        "method": candidate["method"], "model": MODEL, "task": "jsonl", "form": "label",
        "labels": list(LABELS), "seed": seed, "versions": VERSIONS, "hardware": MACHINE,
        "steps": 9, "parameters": {"trainable": candidate["trainable"], "total": 10**6,
                                   "percent": 0.9},
        "metrics": {name: {"n": len(lines), "accuracy": score}}, "recipe": {"training": {}},
        "history": [],
    }  # fmt: skip
    write(run / "result.json", result)
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
