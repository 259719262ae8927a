"""How often the interval of what the last doubling of the training rows brought misses the truth.

`python studies/decision/curve_worlds.py` prints the table as Markdown in some two minutes.

Scores come about as in ``letter_worlds.py``. Of several methods the one with the highest mean is
taken, and it has two runs on half of the training rows and two on a quarter: they suit the held-out
rows as its runs on all rows do, but are so many points lower, with luck of their own. *in interval*
is how often (%) the true difference of all rows and half of them is in its interval, *off* by how
much the measured one is too high on average, in points, *wide* the half width of the interval;
*false* is how often (%) the interval excludes 0 where half of the rows are as good.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from letter_worlds import BASE, EASE, ONLY_HERE, LetterWorld, level_of, luck_of, moved
from scipy.special import expit

from lorada.decision.more_rows import gain_from_rows

REPEATS = 500
SEEDS_ON_FEWER = 2
HEADS = "in interval", "off", "wide", "false"


@dataclass(frozen=True)
class CurveWorld:
    """Methods, and what half of the training rows costs.

    Attributes:
        of_methods: how the scores of methods come about.
        gain: of all training rows over half of them, in points.
    """

    of_methods: LetterWorld = BASE
    gain: float = 3.0


WORLDS = {
    "1 method": CurveWorld(LetterWorld(methods=1)),
    "1 method, two seeds, 100 rows": CurveWorld(LetterWorld(methods=1, seeds=(2,), rows=100)),
    "2 methods, two seeds": CurveWorld(LetterWorld(methods=2, seeds=(2,))),
    "3 methods": CurveWorld(LetterWorld(methods=3)),
    "3 methods, 100 rows": CurveWorld(LetterWorld(methods=3, rows=100)),
    "3 methods, steady (0.5 points)": CurveWorld(LetterWorld(methods=3, run=0.5), 1.0),
    "6 methods": CurveWorld(),
    "6 methods, groups of ten rows": CurveWorld(LetterWorld(group=10)),
    "6 methods, skewed": CurveWorld(LetterWorld(luck="skewed")),
}


def scores(
    world: LetterWorld, odds: np.ndarray, quality: float, seeds: int, random: np.random.Generator
) -> np.ndarray:
    """Runs × rows of one method whose true mean is ``quality`` points above the level."""
    points = quality + luck_of(world, seeds, world.run, random)
    own_odds = odds + random.normal(0, ONLY_HERE, (seeds, world.rows))
    right = moved(expit(own_odds), points[:, None], level_of(world))
    return 100.0 * (random.random(right.shape) < right)


def tastes(world: LetterWorld, random: np.random.Generator) -> np.ndarray:
    """How well a method suits each row, in log-odds; half of it is that of the row's passage."""
    own = random.normal(0, world.taste, world.rows)
    if world.group == 1:
        return own
    passage = np.arange(world.rows) // world.group
    of_passage = random.normal(0, world.taste, passage[-1] + 1)[passage]
    return 0.5**0.5 * (own + of_passage)


def one_draw(
    world: LetterWorld, gain: float, random: np.random.Generator
) -> tuple[float, float, float]:
    """The measured gain of the last doubling and the ends of its interval."""
    ease = random.normal(*EASE, world.rows)
    methods, odds_of, quality_of = {}, {}, {}
    for place in range(world.methods):
        name = f"m{place}"
        odds_of[name] = ease + tastes(world, random)
        quality_of[name] = float(random.normal(0, world.apart))
        seeds = world.seeds[place % len(world.seeds)]
        methods[name] = scores(world, odds_of[name], quality_of[name], seeds, random)
    groups = None
    if world.group > 1:
        groups = [str(row // world.group) for row in range(world.rows)]
    pick = max(methods, key=lambda name: float(methods[name].mean()))
    fewer = []
    for halvings in (1, 2):
        quality = quality_of[pick] - halvings * gain
        fewer.append(scores(world, odds_of[pick], quality, SEEDS_ON_FEWER, random))
    half, quarter = fewer
    others = [table for name, table in methods.items() if name != pick]
    measured = gain_from_rows(methods[pick], half, [quarter, *others], groups)
    low, high = measured.interval()
    return measured.value, low, high


def measure(world: CurveWorld, repeats: int) -> list[float]:
    """The numbers of ``HEADS``."""
    random = np.random.default_rng([world.of_methods.methods, 24])
    held, off, wide, false = [], [], [], []
    for _ in range(repeats):
        value, low, high = one_draw(world.of_methods, world.gain, random)
        held.append(low <= world.gain <= high)
        off.append(value - world.gain)
        wide.append((high - low) / 2)
        _, low, high = one_draw(world.of_methods, 0.0, random)
        false.append(not low <= 0 <= high)
    return [100 * np.mean(held), np.mean(off), np.mean(wide), 100 * np.mean(false)]


def lines(repeats: int = REPEATS) -> Iterator[str]:
    """The table as Markdown."""
    yield f"| world | {' | '.join(HEADS)} |"
    yield "|---|" + "--:|" * len(HEADS)
    for name, world in WORLDS.items():
        held, off, wide, false = measure(world, repeats)
        yield f"| {name} | {held:.1f} | {off:+.1f} | {wide:.1f} | {false:.1f} |"


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)
