"""How often the gain over what needs no training is wrong, in made-up worlds.

`python studies/decision/gain_worlds.py` prints the table as Markdown in some two minutes.

Scores come about as in ``letter_worlds.py``. What needs no training are scores of one draw, as of a
linear probe or of answers that are given, and of three draws, as of examples in the prompt, whose
luck moves all rows. Each world is drawn three times:

- nothing gained: no method and no baseline is better than another; *false* is how often (%) a gain
  is called shown;
- 5 points: all methods are 5 points above the best baseline; *found* is how often (%) it is shown;
- methods that differ, 5 points above on average: *in interval* is how often (%) the true gain of
  the pick over the baseline that is named is in its interval, *off* by how much it is too high on
  average, in points.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from letter_worlds import BASE, EASE, ONLY_HERE, LetterWorld, level_of, luck_of, moved
from scipy.special import expit

from lorada.decision.decide import decide
from lorada.decision.decision_record import Decision

GAIN = 5.0  # points
REPEATS = 600
HEADS = "false", "found", "in interval", "off"


@dataclass(frozen=True)
class GainWorld:
    """Methods, and what they have to beat.

    Attributes:
        of_methods: how the scores of methods come about.
        draws: how many draws each baseline has.
        draw_luck: the standard deviation of what a draw of several scores, in points.
        worse: by how many points each baseline is below the best.
    """

    of_methods: LetterWorld = BASE
    draws: tuple[int, ...] = (1, 1)
    draw_luck: float = 3.0
    worse: tuple[float, ...] = (0.0, 8.0)


MANY = {"draws": (1, 1, 3, 3, 1), "worse": (0.0, 1.0, 0.0, 2.0, 12.0)}
WORLDS = {
    "1 method": GainWorld(LetterWorld(methods=1)),
    "1 method, two seeds": GainWorld(LetterWorld(methods=1, seeds=(2,))),
    "1 method, five seeds, 100 rows": GainWorld(LetterWorld(methods=1, seeds=(5,), rows=100)),
    "1 method, examples": GainWorld(LetterWorld(methods=1), (3, 1)),
    "3 methods": GainWorld(LetterWorld(methods=3)),
    "3 methods, examples": GainWorld(LetterWorld(methods=3), (3, 1)),
    "3 methods, examples that matter": GainWorld(LetterWorld(methods=3), (3, 1), 8.0),
    "6 methods, 100 rows": GainWorld(LetterWorld(rows=100)),
    "6 methods, five baselines": GainWorld(LetterWorld(), **MANY),
    "6 methods, 3,000 rows": GainWorld(LetterWorld(rows=3000), **MANY),
    "6 methods, groups of ten rows": GainWorld(LetterWorld(group=10), **MANY),
    "6 methods, losses": GainWorld(LetterWorld(losses=True), **MANY),
    "12 methods, skewed": GainWorld(LetterWorld(methods=12, luck="skewed"), **MANY),
    "12 methods, collapsing": GainWorld(LetterWorld(methods=12, luck="collapsing", run=1.5)),
    "12 methods, spreads differ": GainWorld(LetterWorld(methods=12, unlike=1.0), **MANY),
}  # fmt: skip


def draw(
    world: GainWorld, quality: np.ndarray, random: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The scores of methods that are so many points above the level, and of what they beat."""
    of_methods = world.of_methods
    ease = random.normal(*EASE, of_methods.rows)
    spreads = of_methods.run * np.exp(of_methods.unlike * random.standard_normal(len(quality)))
    methods = {}
    for place, points in enumerate(quality):
        count = of_methods.seeds[place % len(of_methods.seeds)]
        luck = luck_of(of_methods, count, min(spreads[place], 12.0), random)
        methods[f"m{place}"] = _scores(of_methods, ease, points + luck, random)
    baselines = {}
    for place, (draws, worse) in enumerate(zip(world.draws, world.worse, strict=True)):
        luck = world.draw_luck * random.standard_normal(draws) * (draws > 1)
        baselines[f"b{place}"] = _scores(of_methods, ease, luck - worse, random)
    return methods, baselines


def _scores(
    world: LetterWorld, ease: np.ndarray, points: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Runs × rows of one method or baseline, moved by the points of each run."""
    taste = random.normal(0, world.taste, world.rows)
    if world.group > 1:
        groups = np.arange(world.rows) // world.group
        of_group = random.normal(0, world.taste, groups[-1] + 1)[groups]
        taste = 0.5**0.5 * (taste + of_group)
    odds = ease + taste + random.normal(0, ONLY_HERE, (len(points), world.rows))
    right = moved(expit(odds), points[:, None], level_of(world))
    if world.losses:
        return 100 * (1 - right) * random.gamma(4, 0.25, right.shape)
    return 100.0 * (random.random(right.shape) < right)


def decided(world: GainWorld, quality: np.ndarray, random: np.random.Generator) -> Decision:
    """What is decided of scores that are drawn."""
    methods, baselines = draw(world, quality, random)
    first, *others = baselines
    group, rows = world.of_methods.group, world.of_methods.rows
    return decide(
        methods,
        baselines={first: baselines[first]},
        alternatives={name: baselines[name] for name in others},
        groups=[str(row // group) for row in range(rows)] if group > 1 else None,
        lower_is_better=world.of_methods.losses,
        unit="points" if world.of_methods.losses else "%",
    )


def measure(world: GainWorld, repeats: int) -> list[float]:
    """The numbers of ``HEADS``."""
    methods = world.of_methods.methods
    random = np.random.default_rng([methods, 22])
    false, found, held, off = [], [], [], []
    equal = GainWorld(world.of_methods, world.draws, world.draw_luck, (0.0,) * len(world.draws))
    for _ in range(repeats):
        nothing = decided(equal, np.zeros(methods), random)
        false.append(nothing.gain.is_shown)
        all_better = decided(world, np.full(methods, GAIN), random)
        found.append(all_better.gain.is_shown)
        quality = GAIN + random.normal(0, world.of_methods.apart, methods)
        gain = decided(world, quality, random).gain
        true = quality[int(gain.method[1:])] + world.worse[int(gain.over[1:])]
        held.append(gain.low <= true <= gain.high)
        off.append(gain.value - true)
    return [100 * np.mean(false), 100 * np.mean(found), 100 * np.mean(held), np.mean(off)]


def lines(repeats: int = REPEATS) -> Iterator[str]:
    """The table as Markdown."""
    yield f"| world | {' | '.join(HEADS)} |"
    yield "|---|" + "--:|" * len(HEADS)
    for name, world in WORLDS.items():
        false, found, held, off = measure(world, repeats)
        yield f"| {name} | {false:.1f} | {found:.0f} | {held:.1f} | {off:+.1f} |"


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)
