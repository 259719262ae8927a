"""Made-up comparisons of methods whose true mean scores are known.

The log-odds of a right answer are a sum: how easy the row is, how good the method is, how well it
suits that row, the luck of the run, and chance. Scores are right or wrong (100 or 0), like ROUGE
(between 0 and 100) or losses (in hundredths of a nat, given as they are: lower is better).
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit
from scipy.stats import norm, t
from search_errors import ODDS, cost_of, made_up_rates, searched

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
PLACES = (np.arange(400) + 0.5) / 400  # of quantiles of what runs are drawn from
NOISE = 0.5  # standard deviation of single scores, in log-odds
STEEP = 0.5  # how fast the logarithm of a loss falls with the log-odds


@dataclass(frozen=True)
class World:
    """How scores come about.

    Attributes:
        methods: their number.
        seeds: runs of each, or of each method its own number.
        rows: held-out rows.
        spread: standard deviation of the methods' quality, in log-odds; 0.2 is about 3 points.
        run: standard deviation between runs, in log-odds; 0.13 is about 2 points.
        unlike: standard deviation of the logarithm of ``run`` over methods.
        tail: degrees of freedom of the runs' distribution, if it is Student's.
        collapse: probability that a run answers one of two classes for all rows, for every second
            method.
        alike: correlation of the luck of the first two methods' runs with one seed.
        group: rows that share a passage.
        search: of each method's learning rate, as ``search_errors.py`` names it; empty where all
            train at their best rate.
        kind: ``right`` or wrong, ``rouge`` or ``loss``.
        right: log-odds of a right answer on a middling row.
        ease: standard deviation of the rows' ease.
        taste: standard deviation of how well a method suits a row.
    """

    methods: int = 6
    seeds: int | tuple[int, ...] = 3
    rows: int = 1000
    spread: float = 0.2
    run: float = 0.13
    unlike: float = 0.0
    tail: float = 0.0
    collapse: float = 0.0
    alike: float = 0.0
    group: int = 1
    search: str = ""
    kind: str = "right"
    right: float = 1.2
    ease: float = 1.2
    taste: float = 0.3


@dataclass(frozen=True)
class Made:
    """A made-up comparison.

    Attributes:
        scores: of each method seeds × rows.
        truth: the true mean score of each, at the learning rate that its search has found.
        best: the same at its best rate.
        groups: of each row.
        sizes: a made-up number of parameters of each; the first method is "LoRA".
    """

    scores: list[np.ndarray]
    truth: np.ndarray
    best: np.ndarray
    groups: np.ndarray
    sizes: np.ndarray


BASE = World()
WORLDS = {
    "runs alike": BASE,
    "few rows, two runs": replace(BASE, seeds=2, rows=100),
    "erratic runs": replace(BASE, run=0.35),
    "erratic runs, five": replace(BASE, run=0.35, seeds=5),
    "close methods, ten": replace(BASE, methods=10, spread=0.07),
    "three methods": replace(BASE, methods=3),
    "spreads differ": replace(BASE, unlike=1.0),
    "heavy tails": replace(BASE, run=0.25, tail=2.5),
    "collapsed runs": replace(BASE, collapse=0.2),
    "rows in tens": replace(BASE, run=0.05, group=10),
    "near 100": replace(BASE, right=4.5),
    "ROUGE": replace(BASE, kind="rouge", right=-0.3),
    "losses": replace(BASE, kind="loss"),
    "two to five runs": replace(BASE, seeds=(2, 5, 3, 5, 2, 5)),
    "a method and its sum": replace(BASE, run=0.25, seeds=5, alike=0.95),
    "best rates differ": replace(BASE, search="4 trials"),
    "... on a coarse grid": replace(BASE, search="old grid"),
    "... not searched": replace(BASE, search="default"),
    "steady runs, many rows": replace(BASE, run=0.03, rows=5000, spread=0.07, taste=0.1),
}  # fmt: skip


def made_up(
    world: World, random: np.random.Generator, *, copies: bool = False, rows: int = 0
) -> Made:
    """Draw a comparison; with ``copies`` all methods are as good as each other at their best rate.

    ``rows`` is their number, if it is another than the world's.
    """
    count, rows = world.methods, rows or world.rows
    quality = np.zeros(count) if copies else random.normal(0, world.spread, count)
    runs = world.run * np.exp(random.normal(0, world.unlike, count)) if world.unlike else (
        np.full(count, world.run)
    )  # fmt: skip
    seeds = (world.seeds,) * count if isinstance(world.seeds, int) else world.seeds
    ease = random.normal(world.right, world.ease, rows)
    groups = np.arange(rows) // world.group
    first = random.random(rows) < 0.5
    failing = np.where(np.arange(count) % 2, world.collapse, 0.0)[random.permutation(count)]
    failing = np.full(count, world.collapse) if copies else failing
    lost = np.array([_lost(world, random) for _ in range(count)])
    found: list[np.ndarray] = []
    before = np.zeros(1)  # luck of the runs of the method before
    for method in range(count):
        shape = (seeds[method], 1)
        luck = random.standard_t(world.tail, shape) if world.tail else random.normal(0, 1, shape)
        if method == 1 and world.alike:
            luck = world.alike * before + np.sqrt(1 - world.alike**2) * luck
        before = luck
        odds = ease + quality[method] - lost[method] + _suits(world, random, groups)
        odds = odds + runs[method] * np.clip(luck, -9, 9)
        if world.group > 1:
            odds = odds + random.normal(0, 0.4, (shape[0], groups[-1] + 1))[:, groups]
        scores = _scored(world, random, odds)
        one = np.where(random.random(shape) < 0.5, first, ~first)
        fails = random.random(shape) < failing[method]
        found.append(np.where(fails, 100.0 * one, scores))
    best, truth = (
        (1 - failing) * np.array([_true(world, *one) for one in zip(each, runs, strict=True)])
        + failing * 50
        for each in (quality, quality - lost)
    )
    sizes = np.round(36_864 * np.exp(random.uniform(-1.5, 0.7, count)))
    sizes[0] = 36_864
    return Made(found, truth, best, groups, sizes)


def _lost(world: World, random: np.random.Generator) -> float:
    """The log-odds that a method loses because its search has not found its best rate."""
    if not world.search:
        return 0.0
    best, curvature, default = made_up_rates(random)
    rate, _ = searched(random, world.search, default, best, curvature)
    return min(ODDS * cost_of(rate, best, curvature), ODDS)  # no worse than a guess


def _suits(world: World, random: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    """How well a method suits each row."""
    if world.group == 1:
        return random.normal(0, world.taste, len(groups))
    shared = random.normal(0, 3 * world.taste, groups[-1] + 1)
    return random.normal(0, world.taste, len(groups)) + shared[groups]


def _scored(world: World, random: np.random.Generator, odds: np.ndarray) -> np.ndarray:
    odds = odds + random.normal(0, NOISE, odds.shape)
    if world.kind == "loss":
        return 100 * np.exp(-STEEP * odds)
    if world.kind == "rouge":
        mean = expit(odds)
        return 100 * random.beta(6 * mean + 0.01, 6 * (1 - mean) + 0.01)
    return 100.0 * (random.random(odds.shape) < expit(odds))


def _true(world: World, quality: float, run: float) -> float:
    """The expected score of a method over all rows and runs."""
    luck = t(world.tail).ppf(PLACES) if world.tail else norm.ppf(PLACES)
    shared = (9 * world.taste**2 + 0.4**2) if world.group > 1 else 0.0
    rest = np.sqrt(world.ease**2 + world.taste**2 + NOISE**2 + shared)
    odds = world.right + quality + run * np.clip(luck, -9, 9)[:, None] + rest * NODES
    if world.kind == "loss":
        value = 100 * np.exp(-STEEP * odds)
    elif world.kind == "rouge":
        mean = expit(odds)
        value = 100 * (6 * mean + 0.01) / 6.02
    else:
        value = 100 * expit(odds)
    return float((value @ WEIGHTS).mean() / WEIGHTS.sum())
