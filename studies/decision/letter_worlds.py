"""How often letters, the pick's score and its expected loss are wrong, in worlds of many kinds.

A row is right with a probability that adds up, in log-odds, how easy it is, how well the method
suits it, and what one run makes of it alone; then the quality of the method and the luck of the run
move all rows of a run by so many points. So the true mean score of a method is known exactly,
however its runs are distributed: it is what rows score without luck, and its quality.

Each world is drawn three times:

- all methods equal: *false* is how often (%) any two have no letter in common;
- half of them 15 points better: *power* is how many (%) of the pairs that differ have none;
- methods that differ, with a standard deviation of ``apart`` points: *in interval* is how often (%)
  a method's true score is in its confidence interval, *pick in interval* how often that of the pick
  is in the interval that the sentence gives for it, *off* by how much its score is too high on
  average, *lost* what it truly loses, and *claimed* what it is expected to.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from lorada.decision.decide import decide
from lorada.decision.decision_record import Decision

EASE = (0.9, 1.2)  # mean and standard deviation of rows' ease, in log-odds
ONLY_HERE = 0.5  # standard deviation of what one run makes of a row, in log-odds
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
OF_FAMILY, ITS_OWN = 0.9, 0.4  # parts of a method's taste, where there are families
OF_GROUP = 0.5**0.5  # part of a method's taste that a passage has, and part that its rows have
BETTER = 15.0  # points; the difference that *power* is of
HEADS = (
    "false", "power", "in interval", "pick in interval", "off", "lost", "claimed",
)  # fmt: skip


@dataclass(frozen=True)
class LetterWorld:
    """How scores come about.

    Attributes:
        methods: their number.
        seeds: runs of each; several numbers take turns.
        rows: held-out rows.
        luck: the distribution of runs: ``normal``, ``heavy`` (Student's, 2.5 degrees of freedom),
            ``skewed`` (exponential), ``two modes``, ``one in three`` (30 % of runs are 20 points
            lower) or ``collapsing`` (15 % are 18 points lower).
        run: the standard deviation of that in points, where it has one.
        unlike: standard deviation of the logarithm of ``run`` over methods.
        erratic: how many times as much the runs of the first method vary.
        taste: standard deviation of how well a method suits a row, in log-odds.
        family: methods of one family, which have most of their taste in common.
        group: rows that share a passage, and half of a method's taste.
        losses: whether scores are losses, in hundredths.
        apart: standard deviation of the methods' quality, in points.
    """

    methods: int = 6
    seeds: tuple[int, ...] = (3,)
    rows: int = 1000
    luck: str = "normal"
    run: float = 3.0
    unlike: float = 0.0
    erratic: float = 1.0
    taste: float = 0.5
    family: int = 1
    group: int = 1
    losses: bool = False
    apart: float = 3.0


BASE = LetterWorld()
TWELVE = replace(BASE, methods=12)
MIXED = (2, 3, 5, 10)
WORLDS = {
    "2 methods": replace(BASE, methods=2),
    "2 methods, two seeds": replace(BASE, methods=2, seeds=(2,)),
    "2 methods, two seeds, 100 rows": replace(BASE, methods=2, seeds=(2,), rows=100),
    "2 methods, spreads differ": replace(BASE, methods=2, unlike=1.0),
    "3, one erratic (6×)": replace(BASE, methods=3, erratic=6.0, run=1.0),
    "6": BASE,
    "6, two seeds": replace(BASE, seeds=(2,)),
    "6, 100 rows": replace(BASE, rows=100),
    "6, 3,000 rows": replace(BASE, rows=3000),
    "6, seeds 2 and 3": replace(BASE, seeds=(2, 3)),
    "6, steady (0.5 points)": replace(BASE, run=0.5),
    "6, groups of ten rows": replace(BASE, group=10),
    "6, losses": replace(BASE, losses=True),
    "6, ten seeds": replace(BASE, seeds=(10,)),
    "6, spreads differ": replace(BASE, unlike=1.0),
    "6, one erratic (5×)": replace(BASE, erratic=5.0, run=2.0),
    "6, two modes": replace(BASE, luck="two modes"),
    "12": TWELVE,
    "12, five seeds": replace(TWELVE, seeds=(5,)),
    "12, seeds 2, 3, 5, 10": replace(TWELVE, seeds=MIXED),
    "12, families of four": replace(TWELVE, family=4, taste=1.0),
    "12, heavy tails": replace(TWELVE, luck="heavy"),
    "12, skewed": replace(TWELVE, luck="skewed"),
    "12, two modes": replace(TWELVE, luck="two modes"),
    "12, one run in three low": replace(TWELVE, luck="one in three"),
    "12, collapsing": replace(TWELVE, luck="collapsing", run=1.5),
    "12, spreads differ": replace(TWELVE, unlike=1.0),
    "12, spreads differ, seeds mixed": replace(TWELVE, unlike=1.0, seeds=MIXED),
    "30": replace(BASE, methods=30),
    "30, five seeds": replace(BASE, methods=30, seeds=(5,)),
    "30, spreads differ": replace(BASE, methods=30, unlike=1.0),
}  # fmt: skip


def luck_of(world: LetterWorld, count: int, run: float, random: np.random.Generator) -> np.ndarray:
    """By how many points each run of a method is above its mean; the expected value is 0."""
    normal = random.standard_normal(count)
    if world.luck == "heavy":
        drawn = 0.6 * run * random.standard_t(2.5, count)
    elif world.luck == "skewed":
        drawn = run * (1 - random.exponential(1, count))
    elif world.luck == "two modes":
        drawn = run * (2.0 * (random.random(count) < 0.5) - 1 + 0.2 * normal)
    elif world.luck == "one in three":
        drawn = normal - 20 * ((random.random(count) < 0.3) - 0.3)
    elif world.luck == "collapsing":
        drawn = run * normal - 18 * ((random.random(count) < 0.15) - 0.15)
    else:
        drawn = run * normal
    return np.clip(drawn, -45, 30)


def level_of(world: LetterWorld) -> float:
    """The mean score of rows without quality or luck, in percent."""
    taste = world.taste**2
    if world.family > 1:
        taste *= OF_FAMILY**2 + ITS_OWN**2
    odds = EASE[0] + np.sqrt(EASE[1] ** 2 + taste + ONLY_HERE**2) * NODES
    return float(100 * WEIGHTS @ expit(odds) / WEIGHTS.sum())


def moved(right: np.ndarray, points: np.ndarray, level: float) -> np.ndarray:
    """Probabilities whose mean is moved by so many points, and that stay between 0 and 1."""
    share, level = points / 100, level / 100
    return np.where(
        share < 0, right * (1 + share / level), right + (1 - right) * share / (1 - level)
    )


def draw(world: LetterWorld, quality: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """The scores of methods that are so many points above the level: seeds × rows."""
    ease, groups = random.normal(*EASE, world.rows), np.arange(world.rows) // world.group
    spreads = world.run * np.exp(world.unlike * random.standard_normal(world.methods))
    spreads = np.minimum(spreads, 12.0)
    spreads[0] *= world.erratic
    level, scores, of_family = level_of(world), [], np.zeros(world.rows)
    for method in range(world.methods):
        if method % world.family == 0:
            of_family = random.normal(0, world.taste, world.rows)
        taste = random.normal(0, world.taste, world.rows)
        if world.family > 1:
            taste = OF_FAMILY * of_family + ITS_OWN * taste
        if world.group > 1:
            of_group = random.normal(0, world.taste, groups[-1] + 1)[groups]
            taste = OF_GROUP * (taste + of_group)
        count = world.seeds[method % len(world.seeds)]
        odds = ease + taste + random.normal(0, ONLY_HERE, (count, world.rows))
        points = quality[method] + luck_of(world, count, spreads[method], random)
        right = moved(expit(odds), points[:, None], level)
        if world.losses:
            scores.append(100 * (1 - right) * random.gamma(4, 0.25, right.shape))
        else:
            scores.append(100.0 * (random.random(right.shape) < right))
    return scores


def decided(world: LetterWorld, scores: list[np.ndarray]) -> Decision:
    """What is decided of such scores."""
    groups = [str(row // world.group) for row in range(world.rows)] if world.group > 1 else None
    return decide(
        {f"m{place}": table for place, table in enumerate(scores)}, groups=groups,
        lower_is_better=world.losses, unit="points" if world.losses else "%",
    )  # fmt: skip


def apart(found: Decision, one: int, other: int) -> bool:
    """Whether two methods are called different."""
    letters = found.letters.get(f"m{one}", ""), found.letters.get(f"m{other}", "")
    return all(letters) and not set(letters[0]) & set(letters[1])


def measure(world: LetterWorld, repeats: int) -> list[float]:
    """The numbers of ``HEADS``."""
    random, places = np.random.default_rng([world.methods, 14]), range(world.methods)
    false, power, held, picks = [], [], [], []
    better = BETTER * (np.arange(world.methods) % 2)
    for _ in range(repeats):
        equal = decided(world, draw(world, np.zeros(world.methods), random))
        false.append(any(apart(equal, one, other) for one in places for other in range(one)))
        halves = decided(world, draw(world, better, random))
        power += [apart(halves, one, other) for one in places[::2] for other in places[1::2]]
        quality = random.normal(0, world.apart, world.methods)
        found = decided(world, draw(world, quality, random))
        true = level_of(world) + quality
        true = 100 - true if world.losses else true
        ends = [found.intervals[f"m{place}"] for place in places]
        held += [low <= each <= high for each, (low, high) in zip(true, ends, strict=True)]
        picks.append(of_pick(found, true, world.losses))
    pick = np.mean(picks, axis=0)
    shares = (100 * float(np.mean(each)) for each in (false, power, held))
    return [*shares, 100 * float(pick[0]), *map(float, pick[1:])]


def of_pick(found: Decision, true: np.ndarray, losses: bool) -> tuple[float, ...]:
    """Whether the pick's true score is in its interval, how much less it is, lost, claimed."""
    place = int(str(found.pick)[1:])
    # Before there was an expected score, the measured one stood in the sentence.
    score = getattr(found, "expected_score", found.scores[f"m{place}"])
    low, high = getattr(found, "expected_interval", found.intervals[f"m{place}"])
    sign = -1 if losses else 1
    lost = (sign * true).max() - sign * true[place]
    held = float(low <= true[place] <= high)
    return held, sign * (score - true[place]), lost, found.expected_loss[f"m{place}"]


def lines(repeats: int) -> Iterator[str]:
    """The table, line by line."""
    yield f"| methods | {' | '.join(HEADS)} |"
    yield f"|---|{'--:|' * len(HEADS)}"
    for name, world in WORLDS.items():
        values = measure(world, repeats // 2 if world.methods > 12 else repeats)
        shown = [f"{value:.{1 if place < 4 else 2}f}" for place, value in enumerate(values)]
        yield f"| {name} | {' | '.join(shown)} |"


def print_letters(repeats: int = 300) -> None:
    """Print the table; worlds of more than twelve methods have half as many draws."""
    for line in lines(repeats):
        print(line, flush=True)
