"""Write the atlas of methods: docs/atlas.md over all tasks, docs/studies/atlas.md by task.

    python studies/trained/atlas.py study    # reads the comparisons, keeps what the page needs
    python studies/trained/atlas.py          # the page and its pictures again, from what is kept

``study`` is the folder of ``run.py``. Kept are the score and the loss of every held-out row with
every seed, in docs/results/atlas.json.gz; ``study`` may hold a part of the comparisons. A method
without all of its runs is left out on that task; methods that are missing on some task have no mean
rank.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bootstrap import interval
from foretold import detectable
from kept import DOCS, Found, Measured, keep, kept, read, write_part
from run import ATLAS, ATLAS_TASKS, MAPS

from lorada.decision.decide import decide
from lorada.decision.decision_record import Decision
from lorada.decision.run_variances import Common
from lorada.decision.statistics import ALPHA, holm, letters, paired_p

KEPT = DOCS / "results" / "atlas.json.gz"
SCRIPT = "studies/trained/atlas.py"
MOVED = "syllogism8"  # one task twice: that without moved words is the other
CEILING = "full"  # full fine-tuning: shown beside the methods, but not one of them
MOST_ROWS = 1_000_000  # where so many rows would not settle a pair, only more seeds can
TITLES = {
    "sst2_even": "SST-2", "syllogism": "Syllogisms", "syllogism8": "Moved syllogisms",
    "knights": "Knights and knaves",
}  # fmt: skip


class Pair(NamedTuple):
    """Two methods on one task: the difference of the first to the second, and its test.

    Attributes:
        points: the difference in mean scores.
        p: corrected by Holm's method over all pairs of the task.
        rows: how many held-out rows would settle it, with as many seeds; None where no number does.
    """

    points: float
    p: float
    rows: int | None


Tested = dict[tuple[str, str], Pair]  # the better method and the other → their test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?")
    given = parser.parse_args()
    if given.study:
        ends = ("", "_full", "_maps")
        wanted = {f"atlas_{task}{end}": task for task in ATLAS_TASKS for end in ends}
        measured = read(given.study, wanted).items()
        keep({task: {plain(name): one[name] for name in one} for task, one in measured}, KEPT)
    found = kept(KEPT)
    tested = {task: pairs(methods) for task, methods in found.items()}
    write_part(DOCS / "atlas.md", SCRIPT, "\n".join(["", *summary(found), ""]))
    by_task = "\n".join(["", *details(found, tested), ""])
    write_part(DOCS / "studies" / "atlas.md", SCRIPT, by_task)
    if found:
        draw(found, tested)


def plain(method: str) -> str:
    """The name of a method without the settings that run.py gives it."""
    return method.partition(":")[0]


def ranked(methods: dict[str, Measured]) -> dict[str, Measured]:
    """The methods that are compared, the best first; full fine-tuning is none of them."""
    compared = [(name, one) for name, one in methods.items() if name != CEILING]
    return dict(sorted(compared, key=lambda pair: -pair[1].scores.mean()))


def pairs(methods: dict[str, Measured]) -> Tested:
    """The test of each pair of methods, the better one first."""
    compared = ranked(methods)
    found = list(combinations(compared.items(), 2))
    common = Common.of([one.scores for one in compared.values()])
    ps = holm([paired_p(a.scores, b.scores, common) for (_, a), (_, b) in found])
    return {
        (one, other): Pair(
            float(a.scores.mean() - b.scores.mean()), p, rows_to_settle(a, b, len(found), common)
        )
        for ((one, a), (other, b)), p in zip(found, ps, strict=True)
    }


def rows_to_settle(a: Measured, b: Measured, tests: int, common: Common | None) -> int | None:
    """The rows with which a test finds the measured difference in four cases of five.

    Args:
        a: one method.
        b: the other.
        tests: of how many tests it is one.
        common: how the runs of all methods of the task vary.

    Returns:
        Two digits of the smallest such number, by the variances that were measured and with as
        many seeds; None if no number of rows is enough.
    """
    points = abs(float(a.scores.mean() - b.scores.mean()))
    both = [a.scores, b.scores]
    if detectable(both, tests, rows=MOST_ROWS, common=common) > points:
        return None
    low, high = 10, MOST_ROWS
    while high > 1.01 * low + 1:
        rows = round((low * high) ** 0.5)
        least = detectable(both, tests, rows=rows, common=common)
        low, high = (low, rows) if least <= points else (rows, high)
    return int(float(f"{high:.2g}"))


class MeanRanks(NamedTuple):
    """Mean ranks over the tasks that all methods have, by Friedman's and Nemenyi's tests.

    Attributes:
        ranks: of each method, 1 the best.
        tasks: how many there are.
        p: of Friedman's test that all methods are alike, by its chi² distribution.
        p_f: the same by Iman and Davenport's F, which is closer for few tasks (Demšar, 2006).
        critical: two methods whose mean ranks differ by more are not alike (Demšar, 2006).
    """

    ranks: dict[str, float]
    tasks: int
    p: float
    p_f: float
    critical: float


def mean_ranks(found: Found) -> MeanRanks | None:
    """The mean ranks; None with fewer than two tasks or three methods."""
    from scipy.stats import f, friedmanchisquare, rankdata, studentized_range

    names = map(plain, ATLAS)
    methods = [name for name in names if found and all(name in task for task in found.values())]
    if len(found) < 2 or len(methods) < 3:
        return None
    means = np.array([[task[name].scores.mean() for name in methods] for task in found.values()])
    ranks = rankdata(-means, axis=1).mean(axis=0)
    tasks, count = means.shape
    least = studentized_range.ppf(1 - ALPHA, count, np.inf) / 2**0.5
    critical = float(least * (count * (count + 1) / (6 * tasks)) ** 0.5)
    chi_square, p = friedmanchisquare(*means.T)
    statistic = (tasks - 1) * chi_square / (tasks * (count - 1) - chi_square)
    p_f = float(f.sf(statistic, count - 1, (count - 1) * (tasks - 1)))
    by_method = dict(zip(methods, ranks.tolist(), strict=True))
    return MeanRanks(by_method, tasks, float(p), p_f, critical)


def summary(found: Found) -> Iterator[str]:
    """The generated part of the first page: what is true over all tasks."""
    if not found:
        yield "No comparison of the atlas has all of its runs yet."
        return
    yield "![Score and interval of each method on each task](atlas.png)"
    yield ""
    unlike = {task: methods for task, methods in found.items() if task != MOVED}
    yield from over_tasks(found, mean_ranks(found), mean_ranks(unlike))


def details(found: Found, tested: dict[str, Tested]) -> Iterator[str]:
    """The generated part of the page by task: pairs of methods, and a table for each task."""
    yield "## Pairs"
    yield ""
    yield "![Each pair of methods on each task](atlas-pairs.png)"
    yield ""
    yield (
        "By how many points the method of the row is better than that of the column. Blue: the "
        "difference is significant. Grey: it is not, with the number of held-out rows at which it "
        "would be, or `seeds` where only more seeds can show it."
    )
    yield ""
    for task, methods in found.items():
        yield from of_task(task, methods, tested[task])


def over_tasks(found: Found, means: MeanRanks | None, unlike: MeanRanks | None) -> Iterator[str]:
    """The mean ranks, what they settle, and what taking a method always is expected to lose.

    Args:
        found: all tasks.
        means: ranks over them.
        unlike: ranks over those of which none is another moved.
    """
    yield "## Over all tasks"
    yield ""
    if means is None:
        yield "Mean ranks need two tasks on which all methods have run."
        yield ""
        return
    yield (
        "*Expected to lose* is the mean over the tasks of a method's expected loss, and the "
        "largest: what always taking it costs, in points."
    )
    yield ""
    yield "| method | mean rank | expected to lose | at most |"
    yield "|---|--:|--:|--:|"
    lost = [decided(ranked(methods)).expected_loss for methods in found.values()]
    for name, rank in sorted(means.ranks.items(), key=lambda pair: pair[1]):
        losses = [each[name] for each in lost]
        yield f"| `{name}` | {rank:.1f} | {np.mean(losses):.1f} | {max(losses):.1f} |"
    yield ""
    alike = "not shown to differ" if means.p >= ALPHA else "not all alike"
    far = max(means.ranks.values()) - min(means.ranks.values())
    without = "" if unlike is None else (
        f" Without the moved task, which is another one again, p is {unlike.p:.2g} and "
        f"{unlike.p_f:.2g}."
    )  # fmt: skip
    yield (
        f"Over {means.tasks} tasks the methods are {alike} (Friedman's test, p = {means.p:.2g} by "
        f"chi², {means.p_f:.2g} by Iman and Davenport's F).{without} Nemenyi's critical "
        f"difference is {means.critical:.1f} ranks; the best and the worst are {far:.1f} apart."
    )
    yield ""


def decided(compared: dict[str, Measured]) -> Decision:
    """What is decided about the methods of a task."""
    return decide(
        {name: one.scores for name, one in compared.items()},
        {name: {"parameters": one.parameters} for name, one in compared.items()},
        unit="%",
    )


def of_task(task: str, methods: dict[str, Measured], tested: Tested) -> Iterator[str]:
    """One task: every method with its cost, and which pairs are settled."""
    first = next(iter(methods.values()))
    seeds, rows = first.scores.shape
    settled = {frozenset(names) for names, pair in tested.items() if pair.p < ALPHA}
    compared = ranked(methods)
    shared = letters(list(compared), settled)
    decision = decided(compared)
    yield f"## {TITLES[task]}: {rows:,} held-out rows, {seeds} seeds"
    yield ""
    yield f"> {decision.sentence}"
    yield ""
    yield (
        "| method | parameters | score (95 %) | expected loss | | loss | learning rate "
        "| s a step | GiB |"
    )
    yield "|---|--:|--:|--:|---|--:|---|--:|--:|"
    timed = all(one.seconds is not None for one in compared.values())
    ceiling = {CEILING: methods[CEILING]} if CEILING in methods else {}
    for name, one in (ceiling | compared).items():
        low, high = decision.intervals.get(name) or interval(one.scores)
        lost = f"{decision.expected_loss[name]:.1f}" if name in compared else "–"
        rates = found_rates(one.rates)
        if one.map_rates and name in MAPS:
            rates += f" (map {found_rates(one.map_rates)})"
        seconds = f"{one.seconds:.3f}" if timed and one.seconds is not None else "–"
        memory = "–" if one.memory is None else f"{one.memory / 2**30:.2f}"
        yield (
            f"| `{name}` | {one.parameters:,} | {one.scores.mean():.1f} ({low:.1f} to {high:.1f}) "
            f"| {lost} | {shared.get(name, '')} | {one.losses.mean():.3f} | {rates} | {seconds} "
            f"| {memory} |"
        )
    yield ""
    left = [f"`{plain(name)}`" for name in ATLAS if plain(name) not in methods]
    if left:
        yield f"Without all of their runs yet, and left out: {', '.join(left)}."
        yield ""
    if tested:
        of_all = f"{len(settled)} of {len(tested)} pairs differ significantly"
        yield (
            f"{of_all} (Holm's correction): they have no letter in common. {open_pairs(tested)}"
            if settled
            else f"No pair of {len(tested)} differs significantly. {open_pairs(tested)}"
        )
        yield ""


def found_rates(rates: Sequence[float]) -> str:
    """The rates that searches have found, from the lowest on; one, or that of each seed."""
    return ", ".join(dict.fromkeys(f"{rate:.2g}" for rate in sorted(rates)))


def open_pairs(tested: Tested) -> str:
    """What would settle the pairs that are not."""
    needed = [pair.rows for pair in tested.values() if pair.p >= ALPHA]
    by_rows = [rows for rows in needed if rows is not None]
    parts = []
    if by_rows:
        parts.append(f"{len(by_rows)} would with {min(by_rows):,} to {max(by_rows):,} rows")
    if len(by_rows) < len(needed):
        parts.append(f"{len(needed) - len(by_rows)} only with more seeds")
    said = " and ".join(parts)
    return f"Of the others, if the measured differences are the true ones, {said}." if parts else ""


def draw(found: Found, tested: dict[str, Tested]) -> None:
    """Both pictures: scores and mean ranks; and all pairs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def panels(count: int, wide: int, width: float, height: float) -> tuple[Any, list[Any]]:
        """A figure of so many panels, at most ``wide`` of them beside each other."""
        columns, rows = min(count, wide), -(-count // wide)
        size = width * columns, height * rows
        figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained")
        every = [*np.ravel(axes)]
        for axis in every[count:]:
            axis.remove()
        return figure, every[:count]

    means = mean_ranks(found)
    figure, axes = panels(len(found) + (means is not None), 3, 3.6, 3.6)
    for axis, (task, methods) in zip(axes, found.items(), strict=False):
        _draw_scores(axis, methods)
        axis.set_title(TITLES[task], fontsize=10)
    if means is not None:
        _draw_ranks(axes[-1], means)
    figure.savefig(DOCS / "atlas.png", dpi=110)
    figure, axes = panels(len(found), 2, 5.2, 4.8)
    for axis, (task, methods) in zip(axes, found.items(), strict=True):
        _draw_pairs(axis, list(ranked(methods)), tested[task])
        axis.set_title(TITLES[task], fontsize=10)
    figure.savefig(DOCS / "studies" / "atlas-pairs.png", dpi=110)


def _draw_scores(axis: Any, methods: dict[str, Measured]) -> None:
    """The methods of a task below each other, the best on top, each with its interval."""
    names = list(ranked(methods))
    for place, name in enumerate(names):
        low, high = interval(methods[name].scores)
        mean = methods[name].scores.mean()
        axis.errorbar(
            mean, place, xerr=[[mean - low], [high - mean]], marker="o", color=_color(name),
            markersize=4,
        )  # fmt: skip
    if CEILING in methods:
        axis.axvline(methods[CEILING].scores.mean(), color="grey", linestyle=":")
    _name_rows(axis, [f"{place}  {name}" for place, name in enumerate(names, start=1)])
    dotted = "; dotted: full fine-tuning" if CEILING in methods else ""
    axis.set_xlabel(f"score, 95 % interval{dotted}", fontsize=8)


def _draw_ranks(axis: Any, means: MeanRanks) -> None:
    """Mean ranks, and a bar as long as the critical difference."""
    names = sorted(means.ranks, key=lambda name: means.ranks[name])
    for place, name in enumerate(names):
        axis.plot(means.ranks[name], place, marker="o", color=_color(name), markersize=4)
    best = means.ranks[names[0]]
    axis.plot([best, best + means.critical], [-0.7, -0.7], color="grey", linewidth=3)
    _name_rows(axis, names)
    axis.set_title("mean rank; bar: critical difference", fontsize=10)


def _draw_pairs(axis: Any, names: list[str], tested: Tested) -> None:
    """Every pair: row better than column; filled where settled, else the rows that would do."""
    for (one, other), pair in tested.items():
        x, y = names.index(other), names.index(one)
        settled = pair.p < ALPHA
        rows = "seeds" if pair.rows is None else f"{pair.rows:,}"
        axis.add_patch(_square(x, y, "#0072b2" if settled else "#eeeeee"))
        axis.text(
            x, y, f"{pair.points:+.1f}" if settled else f"{pair.points:+.1f}\n{rows}",
            ha="center", va="center", fontsize=6, color="white" if settled else "black",
        )  # fmt: skip
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    _name_rows(axis, names)


def _square(x: int, y: int, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=color)


def _name_rows(axis: Any, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(names) - 0.5, -1)
    axis.spines[["top", "right"]].set_visible(False)


def _color(name: str) -> str:
    """Methods with a map stand out."""
    return "#d55e00" if "lmam" in name or "lorada" in name else "#000000"


if __name__ == "__main__":
    main()
