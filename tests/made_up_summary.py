"""A made-up summary of a comparison, for tests of the page: no folder, no statistics."""

import math
import random

from lorada.report.comparison.summary import (
    Baseline,
    CandidateLine,
    Disagreement,
    Search,
    Summary,
    TriedRate,
)

METHODS = ("lora", "dora", "ia3", "vera", "lmam", "lorada_la", "lora+lmam")
CANNOT_RUN = "boft does not fit: 576 is no multiple of 5"


def made_up_summary(
    methods=METHODS, budgets=("0.2%",), seeds=(1, 2, 3), steps=40, rows=200, text=None
):
    """A summary; the last candidate cannot be run.

    Args:
        methods: their names.
        budgets: each gives one candidate a method.
        seeds: of the runs.
        steps: logged losses of a run.
        rows: number of held-out rows.
        text: of every row where candidates disagree.
    """
    random_of = random.Random(3)
    lines, histories = [], {}
    for number, method in enumerate(methods):
        for size, budget in enumerate(budgets):
            label = method if len(budgets) == 1 else f"{method} ({budget})"
            lines.append(made_up_line(label, method, budget, number, size, seeds, random_of))
            histories[label] = loss_curve(number, steps, random_of)
    lines.sort(key=lambda line: -line.score)
    labels = [line.label for line in lines]
    lines.append(CandidateLine("boft", "boft", budgets[0], reason=CANNOT_RUN))
    return Summary(
        verdict=f"Take {labels[0]}: no other candidate scores higher (p = 0.004).",
        sentences=(f"With {rows} rows a difference under 4.2 points cannot be told from chance.",),
        model="smollm2-135m",
        task="test.jsonl",
        rows=rows,
        seeds=tuple(seeds),
        metric="exact_match",
        best=labels[0],
        lines=tuple(lines),
        baselines=(
            Baseline("the model as it is", 31.2, 25.0, 37.5),
            Baseline("the commonest answer", 50.4, 43.0, 57.3, answer="Yes"),
        ),
        histories=histories,
        disagreements=tuple(disagreement(row, labels, text, random_of) for row in range(1, 51)),
        commands={
            "train": f"lorada train --method {labels[0]} --data 'train.jsonl' --output best",
            "serve": "lorada serve best",
            "export": "lorada export best",
        },
        search=Search(seconds=1626, trials=28, pruned=7, diverged=1),
        tried={label: tried(number) for number, label in enumerate(labels)},
        hardware=("AMD EPYC, 2 cores",),
        versions={"lorada": "0.1.0", "torch": "2.13.0"},
        notes=("runs/dora/9/seed3: the loss became NaN at step 40",),
    )


def made_up_line(label, method, budget, number, size, seeds, random_of):
    """One candidate with every number that the table shows."""
    score = random_of.gauss(72, 6) + 2 * size
    trainable = int(random_of.uniform(40e3, 130e3)) * (1 + size)
    return CandidateLine(
        label, method, budget, sizes=f"{method}.r={number + 1}", above=number == 2,
        trainable=trainable, percent=trainable / 1.345e6, seeds=tuple(seeds), score=score,
        low=score - 4, high=score + 4, letter="ab"[number % 2], against="lora",
        p_against=None if method == "lora" else random_of.random() / 100,
        p_best=random_of.random(), metric="exact_match", value=score,
        adapter_mb=4 * trainable / 1e6, peak_memory_gib=random_of.uniform(1.4, 2.0),
        seconds_per_step=random_of.uniform(0.2, 0.5), mergeable=number % 3 != 0,
        forgetting=random_of.gauss(0.05, 0.04), rates=(2e-4 * (number + 1),),
    )  # fmt: skip


def tried(number):
    """A search of five rates; the best may be at an end, others may be stopped or diverge."""
    best = number % 5
    return [
        TriedRate(
            10.0 ** (-4 + place / 2),
            None if (place, best) == (4, 1) else 0.5 + (place - best) ** 2,
            stopped=abs(place - best) > 2, chosen=place == best,
            at_edge=place == best and best in (0, 4), search=0,
        )
        for place in range(5)
    ]  # fmt: skip


def loss_curve(number, steps, random_of):
    """A falling loss: (step, nats per token)."""
    return [
        (step, 0.4 + 1.6 * math.exp(-step / (20 + number)) + random_of.gauss(0, 0.02))
        for step in range(1, steps + 1)
    ]


def disagreement(row, labels, text, random_of):
    """A row that about half of the candidates get right."""
    right = tuple(label for label in labels if random_of.random() < 0.5)
    wrong = tuple(label for label in labels if label not in right)
    return Disagreement("test.jsonl", row, right, wrong, text, "Yes" if text else None)
