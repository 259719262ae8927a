"""Which 1/s and which learning rate a map should have by default: runs, rule and page.

    pip install reasoning-gym
    python studies/trained/rates.py rates --data-dir DATA    # interrupted, it goes on
    python studies/trained/rates.py rates --page             # writes docs/studies/map.md

**Question.** Is there one pair of 1/s and learning rate that suits a map alone and on top of LoRA,
text and rows of a fixed form, an encoder and a decoder? Is the rate an absolute one, or so many
times that of the parameters that train beside the map? And do the best runs of all have a relative
norm of 0.2 to 0.3, whatever 1/s is?

**Design, written down before any of its runs with a map.** Three rates at each of 1/s = 1, 4 and
16 (``CELLS``), a map of rank 2 and 96 tokens for each head, alone (with the head) and on LoRA of
rank 1. A block is a task, alone or on LoRA; its baseline is the same run without the map. The rates
of all other parameters are fixed (``TASKS``), those of MiniLM as in the study, that of SmolLM2 from
a pilot without maps. No task is one of the study's: QQP (pairs of questions, free text) and knights
or knaves (two persons in one form, four classes) for MiniLM with mean pooling, and how many sisters
a brother has (numbers to 20, two forms) for SmolLM2, which writes its answer. They were chosen in a
pilot of one seed without a map, as learned in part. QQP: LoRA of rank 1 75.0 %, the head by itself
65.8. Knights: 58.1 and 38.9, where the commonest answer has 27.8. Sisters: LoRA 95.6 after 24
steps. Left out were, with MiniLM, MRPC, MNLI and rotated cubes (hardly learned), and sisters
(100 %); with SmolLM2 knights (31.8 %). The seed is the outermost loop, and SmolLM2 follows MiniLM.

**Rule.** Twelve candidates: each cell everywhere; for each 1/s, k times the rate of the other
parameters (``K``), taken to the nearest rate of that 1/s (where nothing else trains, to that of
MiniLM alone). In each block accuracies are divided by their standard deviation over all
runs of the block that have a map. A candidate's score is the mean over blocks.

1. A candidate is out that has a significantly higher held-out loss than today's default (1/s = 1,
   5e-3) in any block: ``paired_p`` by seeds, Holm's correction over the blocks.
2. Of the others the one with the highest score leads. All within one standard error of it count as
   equal (of the difference in score, over the seeds); of equal ones the simplest is taken: today's
   default, another rate with 1/s = 1, another 1/s with a fixed rate, k times another rate; among
   those that are equally simple, the highest score.
3. The default changes when five seeds of all blocks stand; or when five seeds of MiniLM's stand, if
   the one that is taken is two standard errors above today's.

The relative norm is no candidate. It is asked what would be if each block took the cell whose
relative norm is nearest to 0.25.
"""

import argparse
import json
import logging
import multiprocessing
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rows import GLUE, Row, glue, knights, write, written
from run import COMMON, SETTINGS

from lorada.decision.statistics import ALPHA, Scores, holm, paired_p
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.runs.result import read_predictions
from lorada.support.files import write_atomic
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from library.page import markdown_table
from marked import write_part

DOCS = Path(__file__).parents[2] / "docs"
SEEDS = (1, 2, 3, 4, 5)
TRAIN, HELD_OUT, WRITTEN = 3200, 1000, 500  # rows; the last: held out for a model that writes
Cell = tuple[int, float]  # 1/s and the map's learning rate
CELLS: list[Cell] = [
    *product((1,), (1e-3, 2.2e-3, 5e-3)),
    *product((4,), (5e-3, 1e-2, 2e-2)),
    *product((16,), (2e-2, 5e-2, 1.2e-1)),
]
TODAY: Cell = (1, 5e-3)
K = {1: 0.4, 4: 1.7, 16: 8}  # so that both of MiniLM's rates lead into the grid
NONE = 9  # the order of what is no candidate
NORM = 0.25  # the relative norm that is asked about
ALONE, ON_LORA = "alone", "on LoRA r 1"
GLUE["qqp"] = (("question1", "question2"), ("different", "duplicate"))


class Task(NamedTuple):
    """A task, its model, and the learning rate of all parameters but the map's."""

    model: str
    rates: dict[str, float]


MINILM = {ALONE: 1.2e-2, ON_LORA: 3e-3}
TASKS = {
    "qqp": Task("minilm-l6", MINILM),
    "knights": Task("minilm-l6", MINILM),
    "sisters": Task("smollm2-135m", {ALONE: 1.2e-2, ON_LORA: 7e-3}),
}
BLOCKS = list(product(TASKS, (ALONE, ON_LORA)))
Block = tuple[str, str]


class Run(NamedTuple):
    """A run; without a cell it is a baseline."""

    task: str
    part: str
    seed: int
    cell: Cell | None

    @property
    def file(self) -> str:
        """The name of the file with what is kept of it."""
        cell = "none" if self.cell is None else "{}-{:g}".format(*self.cell)
        return f"runs/{self.task}-{self.part.split()[0]}-{cell}-s{self.seed}.json"


def runs() -> list[Run]:
    """All runs in their order: MiniLM before SmolLM2, then by seed."""
    models = dict.fromkeys(task.model for task in TASKS.values())
    return [
        Run(task, part, seed, cell)
        for model, seed, (task, part), cell in product(models, SEEDS, BLOCKS, [None, *CELLS])
        if TASKS[task].model == model
        # Alone without a map a decoder, which has no head here, learns nothing from any seed.
        and not (model == "smollm2-135m" and part == ALONE and cell is None and seed > 1)
    ]


def make_rows(folder: Path, data_dir: Path) -> None:
    """The rows of all tasks, unless they are there."""
    if (folder / f"{list(TASKS)[-1]}_test.jsonl").is_file():
        return
    train, held_out = glue(data_dir, "qqp")
    write(folder, "qqp", train, held_out[:HELD_OUT])
    rows = knights(TRAIN + HELD_OUT, seed=7)
    write(folder, "knights", rows[:TRAIN], rows[TRAIN:])
    rows = [written(row) for row in sisters(TRAIN + WRITTEN)]
    write(folder, "sisters", rows[:TRAIN], rows[TRAIN:])


def sisters(count: int) -> list[Row]:
    """Distinct questions of reasoning-gym about brothers and sisters."""
    import reasoning_gym

    asked = reasoning_gym.create_dataset("aiw", max_entities=20, size=8 * count, seed=7)
    every = {item["question"]: item["answer"] for item in asked}
    found = [{"text": text, "label": label} for text, label in every.items() if "sister" in text]
    return found[:count]


def carry_out(run: Run, folder: Path) -> None:
    """Train and score a run, and write what is kept of it."""
    task, on_lora, maps = TASKS[run.task], run.part == ON_LORA, run.cell is not None
    settings = [f"training.seed={run.seed}", f"learning_rate={task.rates[run.part]}"]
    if on_lora or not maps:  # LoRA whose product is multiplied by 0 leaves the head alone
        settings += ["lora.r=1", f"lora.lora_alpha={2 if on_lora else 0}"]
    if run.cell is not None:
        settings += ["lmam.rank=2", "lmam.length=96", f"lmam.inverse_scale={run.cell[0]}"]
        settings += [f"lmam.map_learning_rate={run.cell[1]}"]
    method = ("lora+lmam" if on_lora else "lmam") if maps else "lora"
    train_file, test_file = (str(folder / f"{run.task}_{part}.jsonl") for part in ("train", "test"))
    recipe = load_recipe(
        None, [*SETTINGS[task.model], *COMMON, "save_strategy=no", "report_to=[]", *settings],
        {"model": task.model, "method": method, "data": train_file, "eval_data": test_file,
         "output": str(folder / "current")},
    )  # fmt: skip
    trained = train(recipe, overwrite=True, quiet=True)
    metrics = evaluate(load_run(trained.run))
    predictions = sorted(read_predictions(trained.run), key=lambda prediction: prediction.row)
    accuracies = [prediction.metrics["accuracy"] for prediction in predictions]
    kept = {
        **run._asdict(), "loss": metrics["loss"],
        "accuracy": float(np.mean(accuracies)),
        "relative_norm": trained.result.relative_norm,
        "scores": accuracies,
        "losses": [round(prediction.loss, 4) for prediction in predictions],
    }  # fmt: skip
    write_atomic(folder / run.file, json.dumps(kept))


# By task, part and cell: what is kept of each seed's run.
Found = dict[tuple[str, str, Cell | None], dict[int, dict[str, Any]]]


def read(folder: Path) -> Found:
    """What has run."""
    found: Found = {}
    for run in runs():
        if (folder / run.file).is_file():
            one = json.loads((folder / run.file).read_text())
            found.setdefault((run.task, run.part, run.cell), {})[run.seed] = one
    return found


def seeds_of(found: Found, block: Block) -> list[int]:
    """The seeds with a run of each cell."""
    return sorted(set.intersection(*(set(found.get((*block, cell), ())) for cell in CELLS)))


def values(found: Found, block: Block, cell: Cell | None, what: str, seeds: list[int]) -> Scores:
    """What each seed has, a number or one for each row."""
    return np.array([found[*block, cell][seed][what] for seed in seeds], dtype=float)


class Candidate(NamedTuple):
    """A rule for the default: its name, how simple it is (0 is simplest), each block's cell."""

    name: str
    order: int
    cells: list[Cell]


def candidates(blocks: list[Block], norms: Scores) -> Iterator[Candidate]:
    """Today's default, then the others; last what is none: by the norms, blocks × cells."""
    for cell in [TODAY, *(cell for cell in CELLS if cell != TODAY)]:
        order = 0 if cell == TODAY else 1 if cell[0] == TODAY[0] else 2
        yield Candidate("1/s = {}, {:g}".format(*cell), order, [cell] * len(blocks))
    scales, rates = np.array(CELLS).T
    others = np.array([[TASKS[task].rates[part]] for task, part in blocks])
    for scale, k in K.items():
        ratios = np.where(scales == scale, rates / others / k, np.inf)
        yield Candidate(f"1/s = {scale}, {k:g} × the other rate", 3, nearest(ratios))
    yield Candidate(f"relative norm nearest to {NORM}", NONE, nearest(norms / NORM))


def nearest(ratios: Scores) -> list[Cell]:
    """The cell of each block whose ratio to what is wanted is nearest to 1."""
    return [CELLS[number] for number in np.abs(np.log(ratios)).argmin(axis=1)]


def decide(found: Found, blocks: list[Block]) -> tuple[list[list[str]], str]:
    """The lines of the candidates' table, and the name of the one that the rule takes."""
    seeds = sorted(set.intersection(*(set(seeds_of(found, block)) for block in blocks)))
    accuracies, norms = (  # blocks × cells × seeds
        np.array([[values(found, block, cell, what, seeds) for cell in CELLS] for block in blocks])
        for what in ("accuracy", "relative_norm")
    )
    scaled = accuracies / accuracies.std(axis=(1, 2), ddof=1, keepdims=True)
    every = list(candidates(blocks, norms.mean(axis=2)))
    scores = {
        one.name: scaled[range(len(blocks)), [*map(CELLS.index, one.cells)]].mean(axis=0)
        for one in every
    }

    def gap(one: Candidate, other: Candidate) -> tuple[float, float]:
        """The difference in score and its standard error over the seeds."""
        between = scores[one.name] - scores[other.name]
        return float(between.mean()), float(between.std(ddof=1) / len(seeds) ** 0.5)

    today = every[0]
    by_score = sorted(every, key=lambda one: -gap(one, today)[0])
    dearer = {one.name: worse(found, blocks, one.cells, today.cells, seeds) for one in every}
    left = [one for one in by_score if one.order != NONE and not dearer[one.name]]
    equal = [one for one in left if gap(left[0], one)[0] <= gap(left[0], one)[1]]
    taken = min(equal, key=lambda one: one.order)  # the first of those is the best of them
    words = {one.name: "equal to the best" for one in equal} | {taken.name: "taken"}
    lines = [
        [one.name, "{:+.2f} ± {:.2f}".format(*gap(one, today)), dearer[one.name] or "–",
         words.get(one.name, "")] for one in by_score
    ]  # fmt: skip
    return lines, taken.name


def worse(
    found: Found, blocks: list[Block], cells: list[Cell], today: list[Cell], seeds: list[int]
) -> str:
    """The blocks where the loss is significantly higher than with today's default."""
    pairs = [
        [values(found, block, cell, "losses", seeds) for cell in pair]
        for block, *pair in zip(blocks, cells, today, strict=True)
    ]
    ps = holm([paired_p(one, other, by_seed=True) for one, other in pairs])
    return ", ".join(
        " ".join(block)
        for block, p, (one, other) in zip(blocks, ps, pairs, strict=True)
        if p < ALPHA and one.mean() > other.mean()
    )


def so_far(found: Found) -> list[list[str]]:
    """The candidates' lines while cells have different numbers of seeds."""
    lines = []
    today, *others = candidates(BLOCKS, np.ones((len(BLOCKS), len(CELLS))))
    for one in [other for other in others if other.order != NONE]:
        gaps, ps, above, shared = [], [], [], []
        for block, cell, usual in zip(BLOCKS, one.cells, today.cells, strict=True):
            seeds = sorted(found[*block, cell].keys() & found[*block, usual].keys())
            every = [run["accuracy"] for known in CELLS for run in found[*block, known].values()]
            mine, theirs = (values(found, block, c, "accuracy", seeds) for c in (cell, usual))
            gaps.append(float((mine - theirs).mean() / np.std(every, ddof=1)))
            losses = [values(found, block, c, "losses", seeds) for c in (cell, usual)]
            tested = len(seeds) > 1 and cell != usual
            ps.append(paired_p(*losses, by_seed=True) if tested else 1.0)
            above.append(losses[0].mean() > losses[1].mean())
            if block[0] == list(TASKS)[-1]:
                shared.append(len(seeds))
        worse = [
            " ".join(block)
            for block, p, is_above in zip(BLOCKS, holm(ps), above, strict=True)
            if p < ALPHA and is_above
        ]
        lines.append([one.name, f"{np.mean(gaps):+.2f}", ", ".join(map(str, shared)),
                      ", ".join(worse) or "–"])  # fmt: skip
    return sorted(lines, key=lambda line: -float(line[1]))


def page(found: Found) -> Iterator[str]:
    """Each cell's means by block, then the candidates of blocks with seeds enough."""
    seeds = {block: seeds_of(found, block) for block in BLOCKS}
    counts = {block: sorted({len(found.get((*block, c), ())) for c in CELLS}) for block in BLOCKS}
    there = [block for block in BLOCKS if seeds[block]]
    yield "\nAccuracy (%), held-out loss (nats) and the map's relative norm at the last step:\n"
    said = {
        block: " to ".join(map(str, each[:1] + each[1:][-1:])) for block, each in counts.items()
    }
    header = [f"`{task}` {part}, seeds: {said[task, part]}" for task, part in there]
    lines = []
    for cell in (None, *CELLS):
        name = "no map" if cell is None else "{}, {:g}".format(*cell)
        means = [
            [values(found, block, cell, what, sorted(found[*block, cell])).mean()
             for what in ("accuracy", "loss", "relative_norm")]
            for block in there
        ]  # fmt: skip
        lines.append([name, *("{:.1f}, {:.3f}, {:.2f}".format(*each) for each in means)])
    yield markdown_table(["1/s, rate", *header], lines).replace(", nan", "") + "\n"
    for model in ("minilm-l6", "all models"):
        blocks = [block for block in BLOCKS if model in (TASKS[block[0]].model, "all models")]
        if all(len(seeds[block]) > 1 for block in blocks):
            lines, taken = decide(found, blocks)
            yield f"On {model} the rule takes {taken}:\n"
            header = ["candidate", "score above today's, ± SE", "loss significantly higher", ""]
            yield markdown_table(header, lines) + "\n"
    if len(there) == len(BLOCKS) and min(count for each in counts.values() for count in each) == 1:
        yield "On all models, with the seeds that a candidate's cells share with today's:\n"
        header = [
            "candidate",
            "score above today's",
            "seeds on `sisters`",
            "loss significantly higher",
        ]
        yield markdown_table(header, so_far(found)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--page", action="store_true", help="write the page instead")
    given = parser.parse_args()
    if given.page:
        lines = page(read(given.folder))
        write_part(DOCS / "studies" / "map.md", "studies/trained/rates.py", "\n".join(lines))
        return
    logging.basicConfig(level=logging.ERROR)
    (given.folder / "runs").mkdir(parents=True, exist_ok=True)
    make_rows(given.folder, given.data_dir)
    fork, every = multiprocessing.get_context("fork"), runs()
    for number, run in enumerate(every, start=1):
        if (given.folder / run.file).is_file():
            continue
        # A process keeps its memory, so each run has its own, a copy of this one with all imports.
        process = fork.Process(target=carry_out, args=(run, given.folder))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{run} failed")
        write_atomic(given.folder / "progress.txt", f"{number} of {len(every)}: {run}\n")


if __name__ == "__main__":
    main()
