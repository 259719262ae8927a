"""How often the decision is wrong in worlds that its rules were not chosen on.

`python studies/decision/holdout_worlds.py decisions 200` prints the table of these worlds, and
`python studies/decision/holdout_worlds.py intervals 200` the interval of the pick as it is given
and by the posterior alone, in these worlds and in those of `letter_worlds.py`.

In `letter_worlds.py` what makes a row easy adds up in log-odds. Here it does not: how often a
method is right on a row has a beta distribution over rows, methods share rows through a Gaussian
copula, the mean scores of runs have a beta distribution, too, and the luck of a run may persist
from row to row as an autoregressive process. The true mean score is known exactly, because each of
these steps keeps it.

No rule or constant of `lorada.decision` was chosen on these worlds: look at the result, and leave
them out when something is tuned.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from letter_worlds import WORLDS as LETTER_WORLDS
from letter_worlds import apart, decided, level_of, of_pick
from letter_worlds import draw as draw_letters
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import beta, norm

from lorada.decision.decide import decide
from lorada.decision.decision_record import Decision
from lorada.decision.expected_loss import posterior
from lorada.decision.statistics import LEVEL

Scores = NDArray[np.float64]
MIDDLE = 0.7  # the share of right answers that methods have on average
CONCENTRATION = 1.5  # of right answers over rows; less makes rows more often always right or wrong
# Normal quantiles, at which those of a beta distribution are computed; others are interpolated.
GRID = np.linspace(-5.0, 5.0, 301)
BETTER = 0.15  # the difference that the power is of
OF_FAMILY = 0.9  # share of the variance of quality that a family has in common


@dataclass(frozen=True)
class HoldoutWorld:
    """How scores come about.

    Attributes:
        methods: their number.
        seeds: runs of each; several numbers take turns.
        rows: held-out rows.
        families: groups of methods that are alike in quality and in the rows that suit them.
        run: standard deviation of the mean score of runs, as a share.
        unlike: by which factors that deviation is multiplied at least and at most.
        persistence: correlation of the luck of a run on a row with that on the row before.
        quality: standard deviation of the true mean scores, as a share.
    """

    methods: int = 6
    seeds: tuple[int, ...] = (3,)
    rows: int = 1000
    families: int = 1
    run: float = 0.03
    unlike: tuple[float, float] = (1.0, 1.0)
    persistence: float = 0.0
    quality: float = 0.03


BASE = HoldoutWorld()
FAMILIES = replace(BASE, methods=20, families=3)
HOLDOUT_WORLDS = {
    "2 methods": replace(BASE, methods=2),
    "4, two seeds, 300 rows": replace(BASE, methods=4, seeds=(2,), rows=300),
    "6": BASE,
    "6, luck persists (0.9)": replace(BASE, persistence=0.9),
    "6, luck persists, steady": replace(BASE, persistence=0.9, run=0.005),
    "9, spreads differ, seeds 2, 3, 7": replace(
        BASE, methods=9, seeds=(2, 3, 7), unlike=(0.25, 2.5)
    ),
    "20 of three families": FAMILIES,
    "20 of three families, seeds 2 to 6": replace(FAMILIES, seeds=(2, 3, 4, 5, 6)),
}


def draw_scores(
    world: HoldoutWorld, true: Scores, random: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Right (100) and wrong (0) answers of methods with these true shares: seeds × rows of each."""
    common = random.standard_normal(world.rows)
    of_families = random.standard_normal((world.families, world.rows))
    scores = []
    for method in range(world.methods):
        of_family = of_families[method % world.families]
        its_own = random.standard_normal(world.rows)
        # Half of what makes a row easy is common to all methods, a quarter is the family's.
        ease = np.sqrt(0.5) * common + 0.5 * of_family + 0.5 * its_own
        deviation = world.run * random.uniform(*world.unlike)
        count = world.seeds[method % len(world.seeds)]
        shares = draw_run_shares(true[method], deviation, count, random)
        answers = [draw_answers(world, share, ease, random) for share in shares]
        scores.append(np.stack(answers))
    return scores


def draw_run_shares(
    mean: float, deviation: float, count: int, random: np.random.Generator
) -> Scores:
    """The expected shares of right answers of runs, from a beta distribution."""
    concentration = mean * (1 - mean) / deviation**2 - 1
    return random.beta(concentration * mean, concentration * (1 - mean), count)


def draw_answers(
    world: HoldoutWorld, share: float, ease: Scores, random: np.random.Generator
) -> Scores:
    """The answers of one run: 100 where its luck on a row is below how probable it is right."""
    of_grid = beta.ppf(norm.cdf(GRID), CONCENTRATION * share, CONCENTRATION * (1 - share))
    probability = np.interp(ease, GRID, of_grid)
    steps = np.sqrt(1 - world.persistence**2) * random.standard_normal(world.rows)
    steps[0] = random.standard_normal()  # so that all rows have a variance of 1
    luck = lfilter([1.0], [1.0, -world.persistence], steps)
    return 100.0 * (norm.cdf(luck) < probability)


def draw_true_shares(world: HoldoutWorld, random: np.random.Generator) -> Scores:
    """True shares of right answers of methods that differ, mostly between families."""
    own = random.standard_normal(world.methods)
    if world.families > 1:
        of_families = random.standard_normal(world.families)[
            np.arange(world.methods) % world.families
        ]
        own = np.sqrt(OF_FAMILY) * of_families + np.sqrt(1 - OF_FAMILY) * own
    return np.clip(MIDDLE + world.quality * own, 0.3, 0.95)


def decide_on(scores: Sequence[Scores]) -> Decision:
    """What is decided of such scores."""
    return decide({f"m{place}": table for place, table in enumerate(scores)}, unit="%")


def measure_decisions(world: HoldoutWorld, draws: int) -> list[float]:
    """False letters, power, methods and picks in their interval, off, lost, claimed."""
    random = np.random.default_rng([world.methods, 63])
    places = range(world.methods)
    false, power, held, picks = [], [], [], []
    better = MIDDLE - BETTER / 2 + BETTER * (np.arange(world.methods) % 2)
    for _ in range(draws):
        equal = decide_on(draw_scores(world, np.full(world.methods, MIDDLE), random))
        false.append(any(apart(equal, one, other) for one in places for other in range(one)))
        halves = decide_on(draw_scores(world, better, random))
        power += [apart(halves, one, other) for one in places[::2] for other in places[1::2]]
        true = draw_true_shares(world, random)
        decision = decide_on(draw_scores(world, true, random))
        for place in places:
            low, high = decision.intervals[f"m{place}"]
            held.append(low <= 100 * true[place] <= high)
        picks.append(of_pick(decision, 100 * true, losses=False))
    pick_held, *of_picks = np.mean(picks, axis=0)
    shares = [100 * float(np.mean(each)) for each in (false, power, held)]
    return [*shares, 100 * float(pick_held), *map(float, of_picks)]


def print_decisions(draws: int) -> None:
    """Print the table of the decision, world by world."""
    heads = ("false", "power", "in interval", "pick in interval", "off", "lost", "claimed")
    print(f"| methods | {' | '.join(heads)} |\n|---|{'--:|' * len(heads)}")
    for name, world in HOLDOUT_WORLDS.items():
        values = measure_decisions(world, draws)
        shown = [f"{value:.1f}" for value in values[:4]] + [f"{value:.2f}" for value in values[4:]]
        print(f"| {name} | {' | '.join(shown)} |", flush=True)


def compare_intervals(
    decision: Decision, scores: Sequence[Scores], true: Scores
) -> tuple[float, ...]:
    """Whether the pick's interval holds the truth, as given and by the posterior; their widths."""
    place = int(str(decision.pick)[1:])
    low, high = decision.expected_interval
    unwidened = replace(posterior(scores), widening=np.ones(len(scores)))
    alone_low, alone_high = unwidened.interval(place, LEVEL)
    return (
        float(low <= true[place] <= high),
        float(alone_low <= true[place] <= alone_high),
        high - low,
        alone_high - alone_low,
    )


def print_intervals(draws: int) -> None:
    """Print how often the pick's interval holds, as it is given and by the posterior alone."""
    print("| methods | given | posterior alone | width | alone |\n|---|--:|--:|--:|--:|")
    for name, world in HOLDOUT_WORLDS.items():
        random = np.random.default_rng([world.methods, 64])
        found = []
        for _ in range(draws):
            true = draw_true_shares(world, random)
            scores = draw_scores(world, true, random)
            found.append(compare_intervals(decide_on(scores), scores, 100 * true))
        print_interval_line(f"hold-out: {name}", found)
    for name, letter_world in LETTER_WORLDS.items():
        if letter_world.losses or letter_world.group > 1 or letter_world.methods > 12:
            continue  # these are transformed before the posterior, or take long
        random = np.random.default_rng([letter_world.methods, 65])
        found = []
        for _ in range(draws):
            quality = random.normal(0, letter_world.apart, letter_world.methods)
            scores = draw_letters(letter_world, quality, random)
            true = level_of(letter_world) + quality
            found.append(compare_intervals(decided(letter_world, scores), scores, true))
        print_interval_line(name, found)


def print_interval_line(name: str, found: Sequence[tuple[float, ...]]) -> None:
    """Print one line: two coverages in percent, two median widths in points."""
    given, alone, _, _ = 100 * np.mean(found, axis=0)
    _, _, width, width_alone = np.median(found, axis=0)
    print(f"| {name} | {given:.1f} | {alone:.1f} | {width:.1f} | {width_alone:.1f} |", flush=True)


TABLES = {"decisions": print_decisions, "intervals": print_intervals}

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in TABLES:
        sys.exit(f"name a table: {', '.join(TABLES)}; then the number of draws, if you like")
    TABLES[sys.argv[1]](int(sys.argv[2]) if sys.argv[2:] else 200)
