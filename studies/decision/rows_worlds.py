"""Measures how often what `lorada rows` says of slices and votes is wrong, on made-up answers.

`python studies/decision/rows_worlds.py` prints two tables as Markdown in less than a minute.

The log-odds of a right answer to a row are a sum: how easy the row is, how well it suits the method
(`taste`), the luck of the run, and what this run alone makes of the row. An answer is right where
they are above 0. In worlds whose runs lean, a run also favours one of two classes by luck.

Slices are two classes, quarters by length, and a field of six values, of which three are rare; two
methods are shown, as `lorada rows` shows the pick and the next best. In percent of the worlds:

- false alarm: how often any slice is called different, where none differs; at most 5 is right;
- found: how often a quarter of the rows that is truly 20 points lower is called worse.

Of the vote, whose true score is what the same runs score on many other rows:

- one run, vote: the true mean score of a single run, and of the vote;
- vote in interval: how often the true score of the vote is in its 95 % interval; 95 is right;
- gain in interval: the same for what the vote gains over a single run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lorada.compare.seed_votes import PROBABILITY, VoteScores, vote_of
from lorada.compare.slices import Slice, score_slices
from lorada.support.majority import majority

EASE = (0.9, 1.2)  # mean and standard deviation of rows' ease, in log-odds
LOWER = 20.0  # points, of the slice that is to be found
WORLDS = 200
LUCKS, DRAWS = 100, 10  # sets of runs, and draws of rows for each
MANY = 20_000  # rows, on which a score is the true one


@dataclass(frozen=True)
class RowWorld:
    """How answers come about.

    Attributes:
        rows: held-out rows.
        seeds: runs of each method.
        run: standard deviation of the luck of a run, in log-odds.
        lean: the same of how much a run favours one class.
        own: standard deviation of what one run alone makes of a row.
        taste: standard deviation of how well a method suits a row.
        group: rows that share a passage, and most of its ease.
        ease: how easy rows are.
        classes: 2, of which the mean probability decides, or more, of which the majority does.
    """

    rows: int = 400
    seeds: int = 3
    run: float = 0.15
    lean: float = 0.0
    own: float = 0.7
    taste: float = 0.5
    group: int = 1
    ease: float = EASE[0]
    classes: int = 2


BASE = RowWorld()
SLICE_WORLDS = {
    "400 rows, three seeds": BASE,
    "100 rows": replace(BASE, rows=100),
    "2,000 rows": replace(BASE, rows=2000),
    "one seed": replace(BASE, seeds=1),
    "nearly all right": replace(BASE, ease=4.5),
    "runs lean to a class": replace(BASE, lean=0.3),
    "runs lean, two seeds": replace(BASE, lean=0.3, seeds=2),
    "groups of ten rows": replace(BASE, group=10),
}
VOTE_WORLDS = {
    "400 rows, three seeds": BASE,
    "100 rows": replace(BASE, rows=100),
    "2,000 rows, five seeds": replace(BASE, rows=2000, seeds=5),
    "two seeds": replace(BASE, seeds=2),
    "runs of one mind": replace(BASE, own=0.2),
    "erratic runs": replace(BASE, run=0.5),
    "erratic runs, 2,000 rows": replace(BASE, run=0.5, rows=2000),
    "three classes, majority": replace(BASE, classes=3),
    "groups of ten rows": replace(BASE, group=10),
}


def groups_of(world: RowWorld) -> list[str] | None:
    """The group of each row, if rows come in groups."""
    return [str(row // world.group) for row in range(world.rows)] if world.group > 1 else None


def eases(world: RowWorld, random: np.random.Generator) -> np.ndarray:
    """How easy each row is, in log-odds; rows of a group share four fifths of the variance."""
    own = random.normal(0, EASE[1], world.rows)
    if world.group == 1:
        return world.ease + own
    passages = random.normal(0, EASE[1], -(-world.rows // world.group))
    of_group = np.repeat(passages, world.group)[: world.rows]
    return world.ease + np.sqrt(0.8) * of_group + np.sqrt(0.2) * own


def luck_of(world: RowWorld, random: np.random.Generator) -> np.ndarray:
    """The luck of each run of a method: seeds × 1."""
    return random.normal(0, world.run, (world.seeds, 1))


def log_odds(
    world: RowWorld, ease: np.ndarray, luck: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Of a right answer of one method: seeds × rows."""
    own = random.normal(0, world.own, (world.seeds, world.rows))
    return ease + random.normal(0, world.taste, world.rows) + luck + own


def slices_in(world: RowWorld, random: np.random.Generator) -> list[Slice]:
    """Two classes, quarters by length, and six sources, of which three are rare."""
    is_first = random.random(world.rows) < 0.5
    quarter = random.permutation(world.rows) * 4 // world.rows
    source = random.choice(6, world.rows, p=[0.4, 0.25, 0.2, 0.07, 0.05, 0.03])
    slices = [Slice("class", name, is_first == value) for name, value in (("a", 1), ("b", 0))]
    slices += [Slice("length", str(place), quarter == place) for place in range(4)]
    slices += [Slice("source", str(place), source == place) for place in range(6)]
    return slices


def alarms(world: RowWorld, random: np.random.Generator, lower: float = 0.0) -> tuple[bool, bool]:
    """Whether any slice is called different, and whether the third quarter is called worse.

    That quarter is lower by so many log-odds.
    """
    slices = slices_in(world, random)
    ease = eases(world, random) - lower * slices[4].inside
    first_class = np.where(slices[0].inside, 1, -1)
    methods = {}
    for name in ("lora", "dora"):
        lean = random.normal(0, world.lean, (world.seeds, 1)) * first_class
        odds = log_odds(world, ease, luck_of(world, random) + lean, random)
        methods[name] = 100.0 * (odds > 0)
    found = score_slices(slices, methods, groups_of(world), share=True)
    quarter = [one for one in found if (one.by, one.value) == ("length", "2")]
    return any(one.p < 0.05 for one in found), any(one.is_worse for one in quarter)


def lower_by(world: RowWorld, random: np.random.Generator) -> float:
    """By how many log-odds rows are harder that score ``LOWER`` points less."""
    many = replace(world, rows=MANY, group=1, seeds=1)
    odds = log_odds(many, eases(many, random), luck_of(many, random), random)
    level = 100 * (odds > 0).mean()
    steps = np.linspace(0, 8, 400)
    losses = np.array([level - 100 * (odds > step).mean() for step in steps])
    return float(steps[np.searchsorted(losses, LOWER)])


def vote_draw(
    world: RowWorld, luck: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of runs with this luck, seeds × rows, and of their vote by row."""
    odds = log_odds(world, eases(world, random), luck, random)
    right = odds > 0
    scores = 100.0 * right
    if world.classes == 2:
        return scores, 100.0 * ((1 / (1 + np.exp(-odds))).mean(axis=0) > 0.5)
    # Which of the wrong classes a run gives is partly the row's, so that wrong runs may agree.
    of_row = random.integers(1, world.classes, world.rows)
    own = random.integers(1, world.classes, right.shape)
    wrong = np.where(random.random(right.shape) < 0.5, of_row, own)
    answers = np.where(right, 0, wrong).astype(str)
    return scores, scores[majority(answers.tolist()), np.arange(world.rows)]


def measure_vote(world: RowWorld, random: np.random.Generator) -> tuple[float, ...]:
    """The true scores of one run and of the vote, and how often both intervals hold the truth."""
    alone, together, held, gained = [], [], [], []
    for _ in range(LUCKS):
        luck = luck_of(world, random)
        scores, voted = vote_draw(replace(world, rows=MANY, group=1), luck, random)
        true, true_gain = voted.mean(), (voted - scores.mean(axis=0)).mean()
        alone.append(scores.mean())
        together.append(true)
        for _ in range(DRAWS):
            scores, voted = vote_draw(world, luck, random)
            vote = vote_of(
                "lora", VoteScores(PROBABILITY, voted), scores, groups_of(world), share=True
            )
            held.append(vote.low <= true <= vote.high)
            gained.append(vote.gain_low <= true_gain <= vote.gain_high)
    means = [float(np.mean(each)) for each in (alone, together, held, gained)]
    return means[0], means[1], 100 * means[2], 100 * means[3]


def lines() -> Iterator[str]:
    """Both tables, line by line."""
    yield "| slices | false alarm | found |"
    yield "|---|--:|--:|"
    for name, world in SLICE_WORLDS.items():
        random = np.random.default_rng([world.rows, 65])
        false = [alarms(world, random)[0] for _ in range(WORLDS)]
        lower = lower_by(world, random)
        power = [alarms(world, random, lower)[1] for _ in range(WORLDS)]
        yield f"| {name} | {100 * np.mean(false):.1f} | {100 * np.mean(power):.0f} |"
    yield ""
    yield "| vote | one run | vote | vote in interval | gain in interval |"
    yield "|---|--:|--:|--:|--:|"
    for name, world in VOTE_WORLDS.items():
        alone, together, held, gained = measure_vote(world, np.random.default_rng([world.rows, 66]))
        yield f"| {name} | {alone:.1f} | {together:.1f} | {held:.1f} | {gained:.1f} |"


def main() -> None:
    """Print the tables."""
    for line in lines():
        print(line, flush=True)


if __name__ == "__main__":
    main()
