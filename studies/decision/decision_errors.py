"""What it costs to follow a verdict, on made-up comparisons and on rows that the atlas has kept.

Rules that are compared:

- verdict: ``lorada.decide`` with its default margin (a point, or a fifth of the best method's
  errors; losses: 2 % of the lowest);
- margin 0: the same with a margin of 0;
- highest: the highest mean score;
- cheapest n. s.: the cheapest of those that are not significantly different from the highest (Holm
  over all pairs) and, where there is one, significantly above the commonest answer;
- LoRA: always LoRA; random: any.
"""

import gzip
import json
from itertools import combinations
from pathlib import Path

import numpy as np
from made_up_worlds import WORLDS, World, made_up

from lorada.decision.decide import decide
from lorada.decision.decision_record import Decision
from lorada.decision.statistics import ALPHA, Common, by_group, holm, mean_score, paired_p

ATLAS = Path(__file__).parents[2] / "docs" / "results" / "atlas.json.gz"
NEAR = ("lora", "dora", "lmam", "lora+lmam", "adapter_ffn", "pfeiffer")  # of about one size
RULES = ("verdict", "margin 0", "highest", "cheapest n. s.", "LoRA", "random")


def pair_ps(tables: list[np.ndarray]) -> dict[tuple[int, int], float]:
    """The p-value of each pair of methods that are tested, not corrected."""
    tested = [k for k, table in enumerate(tables) if len(table) > 1]
    common = Common.of([tables[k] for k in tested])
    return {(a, b): paired_p(tables[a], tables[b], common) for a, b in combinations(tested, 2)}


def within(gains: np.ndarray) -> bool:
    """Whether the mean of runs' gains over a baseline is not significantly different from 0."""
    low, high = mean_score(gains).interval(1 - ALPHA)
    return low <= 0 <= high


def cheapest_not_different(
    tables: list[np.ndarray], ps: dict[tuple[int, int], float], sizes: np.ndarray,
    baseline: np.ndarray | None,
) -> int:  # fmt: skip
    """The rule that takes absence of proof for equality."""
    corrected = dict(zip(ps, holm(list(ps.values())), strict=True))
    tested = sorted({place for pair in ps for place in pair})
    top = max(tested, key=lambda k: tables[k].mean())
    alike = [k for k in tested
             if k == top or corrected[min(k, top), max(k, top)] >= ALPHA]  # fmt: skip
    if baseline is not None:
        learned = [k for k in alike if not within(tables[k] - baseline)]
        alike = learned or alike
    return min(alike, key=lambda k: sizes[k])


def picks(
    tables: list[np.ndarray], sizes: np.ndarray, random: np.random.Generator,
    names: tuple[str, ...], baseline: np.ndarray | None = None, **options: object,
) -> tuple[dict[str, int], Decision, dict[tuple[int, int], float]]:  # fmt: skip
    """What each rule takes; ``tables`` are as measured, also where lower is better."""
    costs = {name: {"parameters": float(one)} for name, one in zip(names, sizes, strict=True)}
    without = {} if baseline is None else {"the commonest answer": baseline}
    scores = dict(zip(names, tables, strict=True))
    found = decide(scores, costs, baselines=without, **options)
    exact = decide(scores, costs, 0.0, baselines=without, **options)
    sign = -1 if options.get("lower_is_better") else 1
    tested = [sign * table for table in tables]
    if options.get("groups") is not None:
        tested = [by_group(table, options["groups"]) for table in tested]
    ps = pair_ps(tested)
    place = {name: k for k, name in enumerate(names)}
    return {
        "verdict": place[found.pick or found.highest],
        "margin 0": place[exact.pick or exact.highest],
        "highest": max(range(len(tables)), key=lambda k: tested[k].mean()),
        "cheapest n. s.": cheapest_not_different(tested, ps, sizes, baseline),
        "LoRA": place.get("lora", 0),
        "random": int(random.integers(len(tables))),
    }, found, ps  # fmt: skip


def measure_world(world: World, repeats: int) -> list[float]:
    """What the table has of one world; see ``main``."""
    random = np.random.default_rng(11)
    sign = -1 if world.kind == "loss" else 1
    unit = "points" if world.kind == "loss" else "%"
    options = {"lower_is_better": sign < 0, "unit": unit}
    lost: dict[str, list[float]] = {rule: [] for rule in RULES}
    held, claimed, same_rates, wrong, cheaper, found_pairs = [], [], [], [], [], []
    scale = float(np.std([made_up(world, random, rows=2).truth for _ in range(50)], axis=1).mean())
    for _ in range(repeats):
        made = made_up(world, random)
        groups = made.groups if world.group > 1 else None
        names = tuple(f"m{k}" for k in range(world.methods))
        names = ("lora", "lora+lmam", *names[2:]) if world.alike else names
        taken, decision, ps = picks(
            made.scores, made.sizes, random, names, groups=groups, **options
        )
        truth = sign * made.truth
        for rule, place in taken.items():
            lost[rule].append((sign * made.best).max() - truth[place])
        claimed.append(decision.claimed_loss)
        same_rates.append(truth.max() - truth[taken["verdict"]])
        ends = np.array([decision.intervals[name] for name in names])
        held += list((ends[:, 0] <= made.truth) & (made.truth <= ends[:, 1]))
        leader, pick = (truth[names.index(one)] for one in (decision.leader, decision.pick))
        cheaper.append(decision.pick != decision.leader)
        wrong.append(cheaper[-1] and leader - pick > decision.margin)
        found_pairs += [p < ALPHA for (a, b), p in ps.items() if abs(truth[a] - truth[b]) > scale]
    pair, six = false_differences(world, repeats)
    return [
        pair, six, 100 * float(np.mean(held)), 100 * float(np.mean(found_pairs)),
        100 * float(np.mean(cheaper)), 100 * float(np.mean(wrong)),
        *(float(np.mean(one)) for one in (*lost.values(), same_rates, claimed)),
    ]  # fmt: skip


def false_differences(world: World, repeats: int) -> tuple[float, float]:
    """How often (%) one pair, and any pair after Holm's correction, of equal methods differ."""
    random = np.random.default_rng(12)
    pairs, anything = [], []
    for _ in range(repeats):
        made = made_up(world, random, copies=True)
        tables = made.scores
        tables = [by_group(one, made.groups) for one in tables] if world.group > 1 else tables
        ps = list(pair_ps(tables).values())
        pairs.append(np.mean(np.array(ps) < ALPHA))
        anything.append(min(holm(ps)) < ALPHA)
    return 100 * float(np.mean(pairs)), 100 * float(np.mean(anything))


def print_worlds(repeats: int = 400) -> None:
    """Print the table of made-up worlds."""
    print_head(
        [
            "world",
            "pair",
            "any",
            "in interval",
            "power",
            "cheaper",
            "wrong",
            *RULES,
            "at chosen rates",
            "claimed",
        ]
    )
    for name, world in WORLDS.items():
        values = measure_world(world, repeats)
        print(f"| {name} | " + " | ".join(
            f"{value:.{1 if place < 6 else 2}f}" for place, value in enumerate(values)
        ) + " |", flush=True)  # fmt: skip


def print_atlas(repeats: int = 200) -> None:
    """Print the table of the atlas's rows: chosen on some seeds and rows, judged on the others."""
    stored = json.loads(gzip.decompress(ATLAS.read_bytes()))
    print_head(["task, methods, seeds, rows", *RULES, "best"])
    for task, methods in stored.items():
        for names in (tuple(name for name in methods if name != "full"), NEAR):
            scores = np.array([methods[name]["scores"] for name in names], dtype=float)
            sizes = np.array([methods[name]["parameters"] for name in names], dtype=float)
            for rows in (200, 1000):
                kept = judged(scores, sizes, names, rows, repeats)
                label = f"{task}, {len(names)}, 3, {rows}"
                print(f"| {label} | {' | '.join(f'{one:.1f}' for one in kept)} |", flush=True)


def judged(
    scores: np.ndarray, sizes: np.ndarray, names: tuple[str, ...], rows: int, repeats: int
) -> list[float]:
    """The mean score, on other rows and of other seeds, of what each rule takes; and the best's."""
    random = np.random.default_rng([13, rows])
    found: dict[str, list[float]] = {rule: [] for rule in RULES}
    methods, seeds, every = scores.shape
    rest = []
    for _ in range(repeats):
        order = random.permutation(every)
        runs = [random.permutation(seeds) for _ in range(methods)]
        tables = [scores[k][run[:3]][:, order[:rows]] for k, run in enumerate(runs)]
        true = [scores[k][run[3:]][:, order[rows:]].mean() for k, run in enumerate(runs)]
        baseline = 100.0 * (random.random(rows) < 0.5)
        numbers = {name: tuple(run[:3]) for name, run in zip(names, runs, strict=True)}
        taken, _, _ = picks(tables, sizes, random, names, baseline, seeds=numbers)
        for rule, place in taken.items():
            found[rule].append(true[place])
        rest.append(true)
    return [*(float(np.mean(one)) for one in found.values()), float(np.mean(rest, axis=0).max())]


def print_head(names: list[str]) -> None:
    """Print the head of a table."""
    print(f"| {' | '.join(names)} |\n|---|{'--:|' * (len(names) - 1)}", flush=True)
