"""How often a cheaper method is taken that costs more than the margin, by several rules.

The worlds are comparisons whose true differences are given: a method and others that are cheaper,
each by a quarter of the one before. They are copies of it with a part of their right answers taken
away at random, so that each has as many points less as the world says. Rules for "not worse by more
than the margin", each at 90 %:

- one level: each cheaper method is tested at 10 %;
- divided: at 10 % by the number of cheaper methods (Bonferroni);
- Holm: the same, step by step;
- by cost: each at 10 %, from the dearest on, until one is not shown to be not worse;
- decide: ``lorada.decide``, which divides, and takes no method that is significantly worse.

The margin is a point, or with ``fifth`` that or a fifth of the best method's errors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from made_up_worlds import BASE, World, made_up
from scipy.stats import t

from lorada.decision.decide import decide
from lorada.decision.expected_loss import expected_losses
from lorada.decision.statistics import Common, difference, holm

STEADY = replace(BASE, run=0.03, rows=5000, taste=0.1)
MANY_ROWS = replace(STEADY, run=0.02, rows=10_000, seeds=5)
NEAR = replace(BASE, run=0.03, rows=3000, right=6.6, taste=0.1)
LEVEL = 0.1  # that a method is taken though it costs more than the margin
CHEAPER = 0.75  # of the size of the method before
Rule = Callable[[list[float]], list[int]]  # p-values → the places that are not worse


@dataclass(frozen=True)
class Design:
    """A world, and how many points less each of the cheaper methods truly has."""

    world: World
    less: tuple[float, ...]
    margins: tuple[str, ...] = ("a point",)


DESIGNS = {
    "29 cheaper, 1.5 points worse": Design(STEADY, (1.5,) * 29),
    "5 cheaper, 1.5 points worse": Design(STEADY, (1.5,) * 5),
    "1 cheaper, 1.5 points worse": Design(STEADY, (1.5,)),
    "5 cheaper, equal": Design(MANY_ROWS, (0.0,) * 5),
    "29 cheaper, equal": Design(MANY_ROWS, (0.0,) * 29),
    "1 cheaper, 0.5 points worse": Design(MANY_ROWS, (0.5,)),
    "5 cheaper, the cheaper the worse": Design(MANY_ROWS, (0.0, 0.5, 1.0, 2.0, 4.0)),
    "5 cheaper, in no order": Design(MANY_ROWS, (4.0, 0.0, 2.0, 0.0, 1.0)),
    "99.3 %, 1 cheaper, 0.7 points worse": Design(NEAR, (0.7,), ("a point", "fifth")),
}  # fmt: skip


def one_level(ps: list[float]) -> list[int]:
    """Each at 10 %."""
    return [place for place, p in enumerate(ps) if p < LEVEL]


def divided(ps: list[float]) -> list[int]:
    """Each at 10 % by their number."""
    return [place for place, p in enumerate(ps) if p < LEVEL / len(ps)]


def by_holm(ps: list[float]) -> list[int]:
    """At 10 %, corrected by Holm's method."""
    return [place for place, p in enumerate(holm(ps)) if p < LEVEL]


def by_cost(ps: list[float]) -> list[int]:
    """At 10 %, from the dearest on, until one is not shown to be not worse."""
    shown: list[int] = []
    for place, p in enumerate(ps):
        if p >= LEVEL:
            break
        shown.append(place)
    return shown


RULES: dict[str, Rule] = {
    "one level": one_level, "divided": divided, "Holm": by_holm, "by cost": by_cost,
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """A made-up comparison: seeds × rows of each method, the dearest first, and the truth."""

    tables: list[np.ndarray]
    lost: np.ndarray  # points that each is truly below the best


def drawn(design: Design, random: np.random.Generator) -> Draw:
    """Draw a comparison of a design."""
    count = len(design.less) + 1
    made = made_up(replace(design.world, methods=count), random, copies=True)
    lost = np.array([0.0, *design.less])
    tables = []
    for table, truth, less in zip(made.scores, made.truth, lost, strict=True):
        tables.append(np.where(random.random(table.shape) < less / truth, 0.0, table))
    return Draw(tables, lost)


def picks_of(draw: Draw, margin: float) -> dict[str, tuple[int, float, float]]:
    """What each rule takes, the expected loss of that, and the larger of it and its bound."""
    tables = draw.tables
    leader = max(range(len(tables)), key=lambda place: tables[place].mean())
    cheaper = [*range(leader + 1, len(tables))]
    losses = expected_losses(tables)
    common = Common.of(tables)
    lost = [difference(tables[leader], tables[place], common) for place in cheaper]
    ps = [float(t.cdf((one.value - margin) / one.error, one.freedom)) for one in lost]
    found = {}
    for name, rule in RULES.items():
        shown = rule(ps) if ps else []
        pick = cheaper[shown[-1]] if shown else leader
        level = LEVEL / len(ps) if name == "divided" and shown else LEVEL
        bound = lost[shown[-1]].interval(1 - 2 * level)[1] if shown else 0.0
        found[name] = (pick, float(losses[pick]), max(float(losses[pick]), bound))
    return found


def pick_of_decide(draw: Draw, margin: float | None) -> tuple[int, float, float]:
    """The same of ``lorada.decide``, with its default margin or a point."""
    names = [f"m{place}" for place in range(len(draw.tables))]
    costs = {name: {"parameters": CHEAPER**place} for place, name in enumerate(names)}
    decision = decide(dict(zip(names, draw.tables, strict=True)), costs, margin)
    pick = decision.pick or names[0]
    return int(pick[1:]), decision.expected_loss[pick], decision.claimed_loss or 0.0


def print_margins(repeats: int = 300) -> None:
    """Print the table of rules for cheaper methods."""
    rules = (*RULES, "decide")
    heads = ["world", "margin", *rules, "one level: lost, claimed", "decide: lost, claimed"]
    print(f"| {' | '.join(heads)} |\n|---|---|{'--:|' * (len(heads) - 2)}", flush=True)
    for label, design in DESIGNS.items():
        for kind in design.margins:
            found = measure(design, kind, repeats)
            cells = [f"{found[rule][0]:.1f}, {found[rule][1]:.1f}" for rule in rules]
            before, after = found["one level"], found["decide"]
            cells += [f"{before[2]:.2f}, {before[3]:.2f}", f"{after[2]:.2f}, {after[4]:.2f}"]
            print(f"| {label} | {kind} | {' | '.join(cells)} |", flush=True)


def measure(design: Design, kind: str, repeats: int) -> dict[str, np.ndarray]:
    """What the table has of each rule; see ``comparison_errors.py``."""
    random = np.random.default_rng(14)
    found: dict[str, list[list[float]]] = {rule: [] for rule in (*RULES, "decide")}
    for _ in range(repeats):
        draw = drawn(design, random)
        errors = 100 - max(float(table.mean()) for table in draw.tables)
        margin = 1.0 if kind == "a point" else min(1.0, errors / 5)
        picks = picks_of(draw, margin)
        # The default margin is a fifth of the errors only where that is less than a point.
        picks["decide"] = pick_of_decide(draw, None if kind == "fifth" or errors > 5 else 1.0)
        leader = max(range(len(draw.tables)), key=lambda place: draw.tables[place].mean())
        for rule, (pick, expected, said) in picks.items():
            more = float(draw.lost[pick] - draw.lost[leader])
            numbers = [100.0 * (pick != leader), 100.0 * (more > margin)]
            found[rule].append([*numbers, float(draw.lost[pick]), expected, said])
    return {rule: np.mean(each, axis=0) for rule, each in found.items()}
