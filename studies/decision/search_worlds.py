"""What rules of the search for a learning rate lose on made-up curves of the held-out loss.

A comparison of four methods has curves with a best rate each. Beside it the loss rises by 0.03 nats
in half a decade (between methods by a factor of 2.2, one standard deviation; 1.3 times that above
it), up to the loss of guessing, 0.693; at its best it is 0.3 to 0.45. In most worlds nothing is
learned above a cliff, 0.15 to 0.7 decades above the best rate (for each run elsewhere, standard
deviation 0.07). Losses differ between seeds by ``noise``, less where less is learned. The best
rates of all four are off their defaults by something in common, and each by 0.2 decades more.

The world `stored` has the chosen rates of the atlas and the third study, against today's defaults,
and for each the standard deviation of its final runs' losses. (The losses of trials were not
kept.)

What is lost is the mean of five final runs with the chosen rate, in points: 46.8 for a nat.
"""

import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lorada.compare.rate_rule import FACTOR, FURTHER, TIE, has_learned, next_value, taken_value
from lorada.compare.stored_plan import Trial
from lorada.methods.sizes_and_rates import default_rate

GUESSING = 0.693
POINTS = 46.8  # of accuracy that a nat is worth
OWN = 0.2  # decades
METHODS, RUNS = 4, 5
FIRST = (1.0, FACTOR, 1 / FACTOR)
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
Draw = Callable[[np.random.Generator], float]


@dataclass(frozen=True)
class World:
    """Where curves come from."""

    noise: float  # of a held-out loss between seeds, in nats
    cliff: bool
    off: Draw | None  # decades from the best rate to the default; None for the stored ones


def _normal(random: np.random.Generator) -> float:
    return float(random.normal(0, 0.67))


def _above(random: np.random.Generator) -> float:
    return float(random.uniform(1, 1.5))


def _below(random: np.random.Generator) -> float:
    return -_above(random)


def _far_below(random: np.random.Generator) -> float:
    return float(random.uniform(-2.2, -1.5))


WORLDS = {
    "smooth, 0.02": World(0.02, False, _normal),
    "smooth, 0.06": World(0.06, False, _normal),
    "cliff, 0.008": World(0.008, True, _normal),
    "cliff, 0.06": World(0.06, True, _normal),
    "default 1 to 1.5 too high, 0.008": World(0.008, True, _above),
    "default 1 to 1.5 too high, 0.06": World(0.06, True, _above),
    "default 1 to 1.5 too low, 0.06": World(0.06, True, _below),
    "default 1.5 to 2.2 too low, 0.06": World(0.06, True, _far_below),
    "stored": World(0.0, True, None),
}


@dataclass(frozen=True)
class Curve:
    """The held-out loss of a method over the decades from its default rate."""

    best: float
    rise: float  # nats in half a decade
    cliff: float  # decades above the best rate
    lowest: float  # nats
    noise: float

    def cost(self, decades: float, shift: float = 0.0) -> float:
        """The nats that a rate loses against the best one; ``shift`` is that of the cliff."""
        gap = GUESSING - self.lowest
        away = decades - self.best
        if away > self.cliff + shift:
            return gap
        slope = 1.3 if away > 0 else 1.0
        return min(self.rise * slope * (2 * away) ** 2, gap)

    def measured(self, decades: float, random: np.random.Generator) -> float:
        """The loss of a trial."""
        gap, cost = GUESSING - self.lowest, self.cost(decades, random.normal(0, 0.07))
        most = GUESSING + abs(random.normal(0, 0.004))
        luck = self.noise * random.normal() * math.sqrt(1 - cost / gap)
        return min(self.lowest + cost + luck, most)


def stored_searches() -> list[tuple[float, float]]:
    """The decades from each stored best rate to the default, and the spread of its runs' losses."""
    pairs = []
    for name in ("atlas", "study3"):
        tasks = json.loads(gzip.decompress((RESULTS / f"{name}.json.gz").read_bytes()))
        for methods in tasks.values():
            for method, stored in methods.items():
                losses = [np.mean(rows) for rows in stored["losses"]]
                spread = float(np.std(losses, ddof=1))
                default = default_rate(method.partition(":")[0])
                pairs += [(math.log10(default / rate), spread) for rate in stored["rates"]]
    return pairs


def made_up_curves(world: World, random: np.random.Generator) -> list[Curve]:
    """The curves of a comparison's methods."""
    common = 0.0 if world.off is None else world.off(random)
    curves = []
    for _ in range(METHODS):
        off, noise = common + random.normal(0, OWN), world.noise
        if world.off is None:
            off, noise = STORED[random.integers(len(STORED))]
        cliff = random.uniform(0.15, 0.7) if world.cliff else math.inf
        rise = 0.03 * math.exp(random.normal(0, 0.8))
        curves.append(Curve(-off, rise, cliff, random.uniform(0.3, 0.45), min(noise, 0.07)))
    return curves


STORED = stored_searches()


@dataclass(frozen=True)
class Rule:
    """A search: what follows the trials so far, and what is taken in the end."""

    following: Callable[[Sequence[Trial]], float | None]
    taken: Callable[[Sequence[Trial]], float]
    shares: bool = False  # whether it begins where methods before it were best, in the middle


def climb(tried: Sequence[Trial], trials: int = 4, *, in_turn: bool = False) -> float | None:
    """The next rate by the losses as they are: lorada's search before it smoothed them.

    If ``in_turn``, rates where nothing is learned are left as today.
    """
    if len(tried) < len(FIRST):
        return FIRST[len(tried)]
    if len(tried) >= trials + FURTHER:
        return None
    if in_turn and not has_learned(tried):
        return next_value("rate", tried, FIRST, trials)
    losses = {trial.rate: trial.loss for trial in tried}
    rates, tie = sorted(losses), min(losses.values()) * (1 + TIE)
    place = max(i for i, rate in enumerate(rates) if losses[rate] <= tie)
    if place == 0:
        return rates[0] / FACTOR
    if place == len(rates) - 1:
        return rates[-1] * FACTOR
    middle, sides = rates[place], (rates[place - 1], rates[place + 1])
    gaps = {side: round(abs(math.log10(side / middle)), 6) for side in sides}
    is_wide = in_turn and max(gaps.values()) > 0.51
    if len(tried) >= trials and not is_wide:
        return None
    return math.sqrt(middle * min(sides, key=lambda side: (-gaps[side], losses[side])))


def turns(tried: Sequence[Trial]) -> float | None:
    """What lorada tries next with four trials."""
    return next_value("rate", tried, FIRST, 4)


def five(tried: Sequence[Trial]) -> float | None:
    """The same with five trials."""
    return next_value("rate", tried, FIRST, 5)


def eight(tried: Sequence[Trial]) -> float | None:
    """The same with eight trials."""
    return next_value("rate", tried, FIRST, 8)


def lowest(tried: Sequence[Trial]) -> float:
    """The rate with the lowest loss."""
    return min(tried, key=lambda trial: (trial.loss, trial.number)).rate


def middle(tried: Sequence[Trial]) -> float:
    """The middle of the rates within 0.04 nats of the lowest loss."""
    best = min(trial.loss for trial in tried)
    rates = [trial.rate for trial in tried if trial.loss <= best + 0.04]
    return math.sqrt(min(rates) * max(rates))


def parabola(tried: Sequence[Trial]) -> float:
    """The lowest point of a parabola through the lowest loss and those beside it."""
    trials = sorted(tried, key=lambda trial: trial.rate)
    place = [trial.rate for trial in trials].index(lowest(tried))
    if place in (0, len(trials) - 1):
        return trials[place].rate
    decades = [math.log10(trial.rate) for trial in trials[place - 1 : place + 2]]
    losses = [min(trial.loss, GUESSING) for trial in trials[place - 1 : place + 2]]
    second, first, _ = np.polyfit(decades, losses, 2)
    if second <= 1e-6:
        return trials[place].rate
    return float(10 ** np.clip(-first / (2 * second), decades[0], decades[-1]))


def smoothed(tried: Sequence[Trial]) -> float:
    """The rate with the lowest smoothed loss: lorada's."""
    return taken_value("rate", tried).value


def smoothed_tried(tried: Sequence[Trial]) -> float:
    """The same of the rates that were tried."""
    return taken_value("rate", tried, between=False).value


RULES = {
    "before: climbs, takes the lowest": Rule(climb, lowest),
    "before, with 8 trials": Rule(partial(climb, trials=8), lowest),
    "turns, not smoothed, parabola": Rule(partial(climb, in_turn=True), parabola),
    "the same with 8 trials": Rule(partial(climb, trials=8, in_turn=True), parabola),
    "turns, takes the lowest": Rule(turns, lowest),
    "turns, middle of 0.04 nats": Rule(turns, middle),
    "turns, parabola": Rule(turns, parabola),
    "turns, smoothed, as tried": Rule(turns, smoothed_tried),
    "**turns, smoothed (lorada)**": Rule(turns, smoothed),
    "lorada with 5 trials": Rule(five, smoothed),
    "lorada with 8 trials": Rule(eight, smoothed),
    "lorada, begins where others were best": Rule(turns, smoothed, shares=True),
}


def search(rule: Rule, curve: Curve, start: float, random: np.random.Generator) -> tuple:
    """The decades from the default rate that a search takes, and its number of trials."""
    tried: list[Trial] = []
    while (factor := rule.following(tried)) is not None:
        loss = curve.measured(start + math.log10(factor), random)
        tried.append(Trial(0, factor, number=len(tried), loss=loss, guessing=GUESSING))
    return start + math.log10(rule.taken(tried)), len(tried)


def measure_rule(rule: Rule, world: World, draws: int) -> tuple[float, float, float]:
    """The points lost, the trials, and the percent of final runs that fell off a cliff."""
    lost, counts, falls = [], [], []
    for draw in range(draws):
        random, taken = np.random.default_rng([7, draw]), []
        for curve in made_up_curves(world, random):
            start = float(np.median(taken)) if rule.shares and taken else 0.0
            decades, count = search(rule, curve, start, random)
            taken.append(decades)
            shifts = random.normal(0, 0.07, RUNS)
            lost.append(np.mean([curve.cost(decades, shift) for shift in shifts]))
            falls.append(np.mean(decades - curve.best > curve.cliff + shifts))
            counts.append(count)
    return POINTS * float(np.mean(lost)), float(np.mean(counts)), 100 * float(np.mean(falls))


def print_worlds(draws: int = 250) -> None:
    """Print the table of all rules in all worlds: points lost, trials, falls in percent."""
    print(f"\n| search | {' | '.join(WORLDS)} |\n|---|{'--:|' * len(WORLDS)}", flush=True)
    for name, rule in RULES.items():
        cells = []
        for world in WORLDS.values():
            lost, trials, falls = measure_rule(rule, world, draws)
            cells.append(f"{lost:.2f}, {trials:.1f}, {falls:.0f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    print_worlds()
