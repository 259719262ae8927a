"""The picture of the second study: the difference of each test, in points and in loss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from kept import Measured, corrected
from scipy.optimize import brentq

from lorada.decision.statistics import ALPHA, Scores, paired_p


class Difference(NamedTuple):
    """A method less another one on the same rows.

    Attributes:
        name: what is shown beside it.
        method: the one.
        other: the other.
    """

    name: str
    method: Measured
    other: Measured


def half_width(a: Scores, b: Scores) -> float:
    """How far the 95 % interval of a difference in means reaches to each side.

    A difference of so much would have p = 0.05 in ``paired_p``.

    Args:
        a: seeds × rows.
        b: seeds × rows.
    """
    equal = a - a.mean() + b.mean()
    highest = 10 * float(np.ptp(a) + np.ptp(b))
    return float(brentq(lambda shift: paired_p(equal + shift, b) - ALPHA, 1e-9, highest))


def draw(sections: Sequence[tuple[str, list[Difference]]], path: Path) -> None:
    """Draw each section's differences below each other: points on the left, losses on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = sum(len(differences) + 1 for _, differences in sections)
    figure, axes = pyplot.subplots(
        1, 2, figsize=(11, 0.9 + 0.27 * lines), layout="constrained", sharey=True
    )
    names: list[str] = []  # of the lines, from the top
    for heading, differences in sections:
        names.append(heading)
        ps = zip(*corrected([(each.method, each.other) for each in differences]), strict=True)
        for each, (p, p_loss) in zip(differences, ps, strict=True):
            one, other, place = each.method, each.other, len(names)
            _draw_line(axes[0], place, one.scores, other.scores, 1 if p < ALPHA else 0)
            _draw_line(axes[1], place, one.losses, other.losses, -1 if p_loss < ALPHA else 0)
            names.append(each.name)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    axes[0].set_xlabel("difference in accuracy, points; right is better", fontsize=8)
    axes[1].set_xlabel("difference in loss, nats; left is better", fontsize=8)
    for axis in axes:
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_line(axis: Any, place: int, a: Scores, b: Scores, better: int) -> None:
    """One difference with its interval; ``better``: which sign is, 0 if it may be chance."""
    mean = float(a.mean() - b.mean())
    color = {0: "#777777", 1: "#0072b2", -1: "#d55e00"}[int(np.sign(better * mean))]
    axis.errorbar(mean, place, xerr=half_width(a, b), marker="o", markersize=4, color=color)
