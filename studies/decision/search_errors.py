"""What the search for a learning rate costs, on made-up losses: the table `rates`.

Two methods are equally good, each at its best learning rate, which is anywhere from 1e-4 to 1e-2;
its default is off by a factor of 5 (one standard deviation). The loss on the rows set aside is
measured with an error of 0.02 nats, and half a decade beside the best rate it rises by 0.03 nats in
the middle, between methods by a factor of 2.2 (one standard deviation), more above than below.
A search is one of:

- default: the default rate, without a trial;
- old grid: the default and three rates spread over 1e-5 to 1e-1, the same for all, then up to three
  beyond an end;
- 3, 4, 8 trials: what `--trials` does.

A second table is that of `search_worlds.py`: curves with cliffs and with defaults that are far off.

A third table is of a map beside other parts, whose two best rates are off their defaults by as
much each, independently or together: with four trials for the learning rate and those of the map.
"""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
from search_worlds import print_worlds

from lorada.compare.learning_rate import Space
from lorada.compare.rate_rule import FACTOR, next_value, taken_value
from lorada.compare.stored_plan import Point, Trial
from lorada.decision.statistics import ALPHA, paired_p

ERROR = 0.02  # standard deviation of a measured loss, in nats
POINTS = 18.0  # of accuracy that one unit of log-odds is worth, near 75 %
ODDS = 2.6  # log-odds that a nat costs
GRID = (1.5e-3, 1.5e-5, 1.5e-2)
CLIMB = (1.0, FACTOR, 1 / FACTOR)
# Name of a search → its number of trials, and the rates that it tries after the default.
SEARCHES: dict[str, tuple[int, tuple[float, ...] | None]] = {
    "default": (1, None), "old grid": (4, GRID), "3 trials": (3, None), "4 trials": (4, None),
    "8 trials": (8, None),
}  # fmt: skip


def cost_of(rate: float, best: float, curvature: float) -> float:
    """The nats that a rate loses against the best one; ``curvature`` half a decade beside it."""
    steps = 2 * np.log10(rate / best)
    most = 2.0 if steps > 0 else 1.0
    return float(min(curvature * steps**2 * (1.3 if steps > 0 else 1.0), most))


def made_up_rates(random: np.random.Generator) -> tuple[float, float, float]:
    """The best rate of a method, the nats that half a decade beside it costs, and its default."""
    best, curvature = 10 ** random.uniform(-4, -2), 0.03 * np.exp(random.normal(0, 0.8))
    return best, curvature, float(np.clip(best * 10 ** random.normal(0, 0.7), 1e-5, 1e-1))


def searched(
    random: np.random.Generator, name: str, default: float, best: float, curvature: float
) -> tuple[float, int]:
    """The rate that a search chooses, and how many trials it took."""
    trials, grid = SEARCHES[name]
    first = [default * factor for factor in CLIMB][:trials] if grid is None else [default, *grid]
    tried: list[Trial] = []
    is_free = grid is None  # it may take rates that are not in a grid
    while trials > 1:
        rate = next_value("rate", tried, first, trials, divides_wide=is_free)
        if rate is None:
            break
        loss = 0.4 + cost_of(rate, best, curvature) + random.normal(0, ERROR)
        tried.append(Trial(0, rate, number=len(tried), loss=loss))
    taken = taken_value("rate", tried, between=is_free)
    return (default if taken is None else taken.value), len(tried)


def measure_search(
    name: str, seeds: int, rows: int, repeats: int, *, each_seed: bool
) -> tuple[list[float], list[bool], list[int]]:
    """The points lost, whether two equal methods were called different, and the trials."""
    random = np.random.default_rng([seeds, rows, each_seed])
    lost, wrong, counts = [], [], []
    for _ in range(repeats):
        ease, pair = random.normal(1.3, 1.0, rows), []
        for _ in range(2):
            best, curvature, default = made_up_rates(random)
            found = [
                searched(random, name, default, best, curvature)
                for _ in range(seeds if each_seed else 1)
            ]
            costs = ODDS * np.array([cost_of(rate, best, curvature) for rate, _ in found])
            costs = np.minimum(costs, ODDS)  # no worse than a guess
            odds = ease + random.normal(0, 0.3, rows) + random.normal(0, 0.1, (seeds, 1))
            odds = odds - costs[:, None]
            pair.append(100.0 * (random.random((seeds, rows)) < 1 / (1 + np.exp(-odds))))
            lost += list(POINTS * costs)
            counts += [count for _, count in found]
        wrong.append(paired_p(*pair) < ALPHA)
    return lost, wrong, counts


def search_with_map(
    random: np.random.Generator, together: float, searched: bool
) -> tuple[float, int]:
    """The points lost by two rates, and the trials; ``together``: correlation of what is off."""
    (best, curve), (map_best, map_curve) = (made_up_rates(random)[:2] for _ in range(2))
    off = random.normal(0, 0.7, 2)
    off[1] = together * off[0] + np.sqrt(1 - together**2) * off[1]
    default, map_default = np.array([best, map_best]) * 10**off
    recipe = SimpleNamespace(parts={}, training={"learning_rate": default})
    space = Space([recipe], 4, map_rate=map_default if searched else None)

    def cost_at(point: Point) -> float:
        own = point.map_rate if searched else map_default * point.rate / default
        return cost_of(point.rate, best, curve) + cost_of(own, map_best, map_curve)

    tried: list[Trial] = []
    while (point := space.next_point(tried)) is not None:
        loss = 0.4 + cost_at(point) + random.normal(0, ERROR)
        tried.append(Trial(**asdict(point), number=len(tried), loss=loss))
    cost = cost_at(space.best_point(tried))
    return POINTS * min(ODDS * cost, ODDS), len(tried)


def print_maps(repeats: int = 3000) -> None:
    """Print the table of the two rates of a map beside other parts."""
    print("\n| defaults are off | the map's rate | trials | points lost | above 2 |")
    print("|---|---|--:|--:|--:|")
    for words, together in (("independently", 0.0), ("half together", 0.5), ("together", 0.9)):
        for name, searched in (("its ratio kept", False), ("after the other", True)):
            random = np.random.default_rng(0)
            found = [search_with_map(random, together, searched) for _ in range(repeats)]
            lost, trials = np.array(found).T
            print(f"| {words} | {name} | {trials.mean():.1f} | {lost.mean():.2f} "
                  f"| {100 * (lost > 2).mean():.0f} |", flush=True)  # fmt: skip


def print_rates(repeats: int = 700) -> None:
    """Print the tables of the search for a learning rate."""
    table = ["search", "trials", "points lost", "above 2"]
    cases = ((3, 200), (3, 1000), (5, 2000))
    table += [f"{how}, {seeds}, {rows}" for how in ("once", "each") for seeds, rows in cases]
    print(f"| {' | '.join(table)} |\n|---|{'--:|' * (len(table) - 1)}", flush=True)
    for name in SEARCHES:
        found = [
            measure_search(name, seeds, rows, repeats, each_seed=each_seed)
            for each_seed in (False, True)
            for seeds, rows in cases
        ]
        lost = np.concatenate([one for one, _, _ in found[: len(cases)]])
        trials = np.concatenate([one for _, _, one in found[: len(cases)]])
        values = [f"{trials.mean():.1f}", f"{lost.mean():.2f}", f"{100 * (lost > 2).mean():.0f}"]
        values += [f"{100 * np.mean(wrong):.1f}" for _, wrong, _ in found]
        print(f"| {name} | {' | '.join(values)} |", flush=True)
    print_worlds()
    print_maps()
