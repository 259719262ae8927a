"""Measures how well `lorada rows` finds wrong labels: some are flipped, and methods are compared.

    python studies/rows/flipped_labels.py FOLDER --data-dir DATA

Labels of SST-2 (`DATA/glue/sst2/train.jsonl.gz`, with the fields of the hub) and of the bundled
syllogisms are flipped at random, in the training rows as in the held-out rows, and `lorada compare`
trains on them. The table has, for each task and share of flipped labels:

- right: the mean score of the better method against the labels as they were before, in percent;
- rows: the share of truly flipped labels among the first rows of `lorada rows`, and how many of
  all flipped labels these are (recall), in percent;
- confident learning: the same of the order of Northcutt et al. (2021) on the mean probabilities of
  the same runs, as `confident_learning.py` has it;
- chance: the share of flipped labels.

A comparison that was interrupted goes on when the command is run again. SST-2 has wrong labels of
its own, which count as right here, so its figures are a little too low.
"""

import argparse
import csv
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confident_learning import confident_order, precision_at

from lorada.compare.held_out_rows import read_held_out
from lorada.compare.read_results import Results, read_comparison
from lorada.compare.row_findings import find_rows
from lorada.support.row_sources import resolve

SST2 = ("negative", "positive")
SYLLOGISMS = ("invalid", "valid")
Labelled = list[tuple[str, str]]  # texts with their labels


@dataclass(frozen=True)
class Flipped:
    """Held-out rows of which some labels were flipped.

    Attributes:
        numbers: of the rows whose label is wrong, from 1.
        labels: of each row, before.
    """

    numbers: set[int]
    labels: list[str]


@dataclass(frozen=True)
class Found:
    """How well wrong labels are found, in percent; a precision and a recall of each order."""

    right: float
    ours: tuple[float, float]
    confident: tuple[float, float]
    chance: float


def main() -> None:
    """Compare on every task and share, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", type=Path, help="without it, syllogisms alone")
    parser.add_argument("--shares", default="5,10", help="percent of labels that are flipped")
    parser.add_argument("--train", type=int, default=1000, help="rows to learn from")
    parser.add_argument("--held-out", type=int, default=1000, help="rows to score")
    parser.add_argument("--methods", default="lora,ia3,lora+lmam")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2")
    parser.add_argument("--first", type=int, default=100, help="rows of a list that are looked at")
    given = parser.parse_args()
    print(f"| task, flipped | right | rows: first {given.first}, recall | confident learning: "
          f"first {given.first}, recall | chance |")  # fmt: skip
    print("|---|--:|--:|--:|--:|")
    for task, rows in tasks(given.data_dir):
        for share in map(float, given.shares.split(",")):
            folder = given.folder / f"{task}_{share:g}"
            flipped = write_rows(folder, rows, share / 100, given.train, given.held_out)
            compare(folder, given)
            found = measure(read_comparison(folder / "comparison"), flipped, given.first)
            print(line_of(f"{task}, {share:g} %", found), flush=True)


def tasks(data_dir: Path | None) -> Iterator[tuple[str, Labelled]]:
    """The rows of each task."""
    if data_dir is not None:
        with gzip.open(data_dir / "glue" / "sst2" / "train.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        long = [row for row in rows if len(row["sentence"].split()) > 5]  # most others are phrases
        yield "sst2", [(row["sentence"].strip(), SST2[int(row["label"])]) for row in long]
    with resolve("builtin:syllogisms.csv").open(newline="") as file:
        yield "syllogisms", [(row["text"], row["label"]) for row in csv.DictReader(file)]


def write_rows(folder: Path, rows: Labelled, share: float, train: int, held_out: int) -> Flipped:
    """Write rows to learn from and rows to score, with this share of labels flipped in both."""
    chance = random.Random(65)
    drawn = chance.sample(sorted(set(rows)), train + held_out)
    names = sorted({label for _, label in rows})
    numbers = set(chance.sample(range(train + held_out), round(share * (train + held_out))))
    table = []
    for number, (text, label) in enumerate(drawn):
        other = names[1 - names.index(label)]
        table.append({"text": text, "label": other if number in numbers else label})
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", table[:train]), ("test", table[train:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    wrong = {number - train + 1 for number in numbers if number >= train}
    return Flipped(wrong, [label for _, label in drawn[train:]])


def compare(folder: Path, given: argparse.Namespace) -> None:
    """Run the comparison of a folder, or go on with it."""
    words = [
        "--model", "minilm-l6", "--data", folder / "train.jsonl",
        "--held-out", folder / "test.jsonl", "--methods", given.methods, "--seeds", given.seeds,
        "--rates", given.rates, "--output", folder / "comparison", "--resume", "pooling=mean",
        "max_length=64", f"max_steps={given.steps}", "warmup_steps=8",
        "per_device_train_batch_size=16",
    ]  # fmt: skip
    command = [sys.executable, "-m", "lorada.cli", "compare", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(results: Results, flipped: Flipped, first: int) -> Found:
    """How well the flipped labels are found."""
    rows = [number for _, number in results.rows]
    wrong = np.array([number in flipped.numbers for number in rows])
    findings = find_rows(results, read_held_out(results))
    if findings is None:
        raise ValueError(f"{results.folder}: no answer is right or wrong")
    place = {number: index for index, number in enumerate(rows)}
    ours = np.array([place[row.row] for row in findings.rows])
    probabilities, labels = mean_probabilities(results, flipped)
    confident = confident_order(probabilities, labels)
    return Found(
        right=score_before(results, wrong),
        ours=figures(ours, wrong, first),
        confident=figures(confident, wrong, first),
        chance=100 * float(wrong.mean()),
    )


def mean_probabilities(results: Results, flipped: Flipped) -> tuple[np.ndarray, np.ndarray]:
    """The mean probability of two classes over all runs, rows × 2, and the labels as they are."""
    names = sorted(set(flipped.labels))
    labels = []
    for _, number in results.rows:
        label = names.index(flipped.labels[number - 1])
        labels.append(1 - label if number in flipped.numbers else label)
    # A row's loss is minus the logarithm of the probability of its label.
    of_runs = [np.exp(-one.losses) for one in results.candidates if one.runs]
    of_label = np.concatenate(of_runs).mean(axis=0)
    of_second = np.where(labels, of_label, 1 - of_label)
    return np.stack([1 - of_second, of_second], axis=1), np.array(labels)


def score_before(results: Results, wrong: np.ndarray) -> float:
    """The best mean score of a method against the labels before any was flipped."""
    scores = [one.scores for one in results.candidates if one.runs]
    return max(float(np.where(wrong, 100 - table, table).mean()) for table in scores)


def figures(order: np.ndarray, wrong: np.ndarray, first: int) -> tuple[float, float]:
    """The precision and the recall of the first rows of an order, in percent."""
    precision = precision_at(order, wrong, first)
    caught = wrong[order[:first]].sum()
    return 100 * precision, 100 * float(caught / max(1, wrong.sum()))


def line_of(name: str, found: Found) -> str:
    """A line of the table."""
    ours, confident = (f"{one:.0f}, {two:.0f}" for one, two in (found.ours, found.confident))
    return f"| {name} | {found.right:.1f} | {ours} | {confident} | {found.chance:.1f} |"


if __name__ == "__main__":
    main()
