"""What is lost, and what is spared, by running seeds only where they decide (``--until``).

Each made-up comparison has five runs of every method. They are all looked at, or only those that
``lorada compare --until`` asks for, one after another; then the method with the least expected loss
is taken.
"""

from dataclasses import replace

import numpy as np
from made_up_worlds import BASE, World, made_up

from lorada.compare.spec import LEAST_RUNS
from lorada.compare.until import next_method
from lorada.decision.expected_loss import expected_losses

SEEDS = 5
UNTIL = (1.0, 0.5)
WORLDS = {
    "six, 200 rows": replace(BASE, rows=200),
    "six, 1000 rows": BASE,
    "six, erratic runs": replace(BASE, run=0.35),
    "six, spreads differ": replace(BASE, unlike=1.0),
    "six, heavy tails": replace(BASE, run=0.25, tail=2.5),
    "ten, 1000 rows": replace(BASE, methods=10),
    "ten, close methods": replace(BASE, methods=10, rows=2000, spread=0.07),
    "three, 500 rows": replace(BASE, methods=3, rows=500),
}  # fmt: skip


def stopped(tables: list[np.ndarray], until: float) -> list[np.ndarray]:
    """The runs that are looked at before the leader's expected loss is small enough."""
    seen = {str(k): LEAST_RUNS for k in range(len(tables))}
    while True:
        scores = {name: tables[int(name)][:count] for name, count in seen.items()}
        left = [name for name, count in seen.items() if count < SEEDS]
        following = next_method(scores, until, left)
        if following is None:
            return list(scores.values())
        seen[following] += 1


def measure(world: World, repeats: int) -> list[float]:
    """Runs, the true loss of what is taken and its expected one: of all runs, then of each stop."""
    random, found = np.random.default_rng(0), []
    for _ in range(repeats):
        made, numbers = made_up(replace(world, seeds=SEEDS), random), []
        for until in (None, *UNTIL):
            tables = made.scores if until is None else stopped(made.scores, until)
            losses = expected_losses(tables)
            taken = int(np.argmin(losses))
            numbers += [sum(map(len, tables)), made.truth.max() - made.truth[taken], losses[taken]]
        found.append(numbers)
    return [float(value) for value in np.mean(found, axis=0)]


def print_until(repeats: int = 300) -> None:
    """Print the table."""
    heads = ["all runs", *(f"until {until:g}" for until in UNTIL)]
    names = ["methods", *(f"{what} ({head})" for head in heads for what in
                          ("runs", "lost", "claimed"))]  # fmt: skip
    print(f"| {' | '.join(names)} |\n|---|{'--:|' * (len(names) - 1)}", flush=True)
    for name, world in WORLDS.items():
        numbers = measure(world, repeats)
        shown = [f"{n:.1f}" if k % 3 == 0 else f"{n:.2f}" for k, n in enumerate(numbers)]
        print(f"| {name} | {' | '.join(shown)} |", flush=True)
