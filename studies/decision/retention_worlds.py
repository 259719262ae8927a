"""Measures how often what a report says of losses elsewhere is wrong, on made-up losses.

`python studies/decision/retention_worlds.py` prints a table as Markdown in about five minutes.

The growth of the loss of one row in one run, in nats a token, is a sum: what the method loses on
average, what this row makes of it (mostly little, of a few rows much: an exponential distribution),
what it makes of this method, the luck of the run, and what this run alone makes of the row.

In percent of the worlds, with four methods:

- in interval: how often the true mean growth of a method is in its 95 % interval; 95 is right;
- false alarm: how often any method is said to lose more than another where all lose alike; at most
  5 is right;
- found: how often the method that loses 0.1 nats more than the others is said to lose more than all
  three.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lorada.compare.retention import KeptTables, intervals_of, loses_more_than

METHODS = ("lora", "dora", "ia3", "lmam")
MEAN, MORE = 0.3, 0.1  # nats a token: what methods lose, and what one of them loses more
WORLDS = 1000


@dataclass(frozen=True)
class KeptWorld:
    """How losses on the rows to keep grow.

    Attributes:
        rows: to keep.
        seeds: runs of each method.
        run: standard deviation of the luck of a run, in nats.
        runs_differ: times by which the runs of the last method vary more than those of the first.
        row: standard deviation of what a row makes of a training, whatever the method.
        taste: standard deviation of what a row makes of one method.
        own: standard deviation of what one run alone makes of a row.
        group: rows that share most of what they make of a training.
        skewed: whether few rows lose much; else what they lose is normally distributed.
    """

    rows: int = 507
    seeds: int = 3
    run: float = 0.04
    runs_differ: float = 1.0
    row: float = 0.6
    taste: float = 0.2
    own: float = 0.2
    group: int = 1
    skewed: bool = True


BASE = KeptWorld()
WORLDS_BY_NAME = {
    "507 rows, three seeds": BASE,
    "100 rows": replace(BASE, rows=100),
    "2,000 rows": replace(BASE, rows=2000),
    "two seeds": replace(BASE, seeds=2),
    "five seeds": replace(BASE, seeds=5),
    "one seed, of this very run": replace(BASE, seeds=1, run=0.0),
    "runs are alike": replace(BASE, run=0.0),
    "erratic runs": replace(BASE, run=0.15),
    "one method is three times as erratic": replace(BASE, runs_differ=3.0),
    "rows that lose alike": replace(BASE, row=0.1, taste=0.05, own=0.05),
    "normally distributed": replace(BASE, skewed=False),
    "groups of ten rows": replace(BASE, rows=1000, group=10),
}


def effects(world: KeptWorld, count: int, scale: float, random: np.random.Generator) -> np.ndarray:
    """What rows, or groups of them, make of a training: their mean is 0."""
    if world.skewed:
        return scale * (random.exponential(1.0, count) - 1)
    return random.normal(0, scale, count)


def row_effects(world: KeptWorld, scale: float, random: np.random.Generator) -> np.ndarray:
    """Of each row; those of a group share four fifths of the variance."""
    own = effects(world, world.rows, scale, random)
    if world.group == 1:
        return own
    of_groups = effects(world, world.rows // world.group, scale, random)
    return np.sqrt(0.8) * np.repeat(of_groups, world.group) + np.sqrt(0.2) * own


def draw(world: KeptWorld, random: np.random.Generator, more: float = 0.0) -> KeptTables:
    """The growth of the losses of all methods, of which the first loses so much ``more``."""
    shared = row_effects(world, world.row, random)
    spread = np.linspace(1.0, world.runs_differ, len(METHODS))
    growth = {}
    for place, method in enumerate(METHODS):
        mean = MEAN + (more if place == 0 else 0.0)
        luck = random.normal(0, world.run * spread[place], (world.seeds, 1))
        own = random.normal(0, world.own, (world.seeds, world.rows))
        growth[method] = mean + shared + row_effects(world, world.taste, random) + luck + own
    groups = None
    if world.group > 1:
        groups = [str(row // world.group) for row in range(world.rows)]
    seeds = dict.fromkeys(METHODS, tuple(range(world.seeds)))
    return KeptTables(growth, seeds, world.rows, groups)


def held(tables: KeptTables) -> list[bool]:
    """Of each method, whether what it truly loses is in its interval."""
    intervals = intervals_of(tables.growth, tables.groups).values()
    return [interval.low <= MEAN <= interval.high for interval in intervals]


def lines(worlds: int = WORLDS) -> Iterator[str]:
    """The table, line by line."""
    yield "| losses | in interval | false alarm | found |"
    yield "|---|--:|--:|--:|"
    for name, world in WORLDS_BY_NAME.items():
        random = np.random.default_rng([world.rows, world.seeds, 67])
        in_interval, alarms, found = [], [], []
        for _ in range(worlds):
            tables = draw(world, random)
            in_interval += held(tables)
            alarms.append(bool(loses_more_than(tables)))
            worse = loses_more_than(draw(world, random, MORE))
            found.append(len(worse.get(METHODS[0], [])) == len(METHODS) - 1)
        yield (
            f"| {name} | {100 * np.mean(in_interval):.1f} | {100 * np.mean(alarms):.1f} "
            f"| {100 * np.mean(found):.0f} |"
        )


def main() -> None:
    """Print the table."""
    for line in lines():
        print(line, flush=True)


if __name__ == "__main__":
    main()
