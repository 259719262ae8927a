"""Draws what each candidate loses over what it costs, as SVG that has the colours of its page.

Matplotlib comes with the extra ``compare``.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

from lorada.compare.report.candidate_lines import CandidateLine
from lorada.compare.report.summarize_comparison import Summary
from lorada.support.error_messages import needs_extra

with needs_extra("compare"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

# Okabe and Ito's colours without yellow, which cannot be seen on white, and grey; each method has a
# marker of its own too. The numbers of both have no common factor, so 56 methods differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", ">", "<")
STYLES = list(zip(COLOURS * len(MARKERS), MARKERS * len(COLOURS), strict=True))
FEW_DECADES = 30  # up to such a ratio an axis has a number between two decades
LOG_FROM = 8  # an axis is logarithmic if its largest value is so many times its smallest
WIDTH = 10.0  # inches
COLUMNS = 3  # of the legend
LONGEST = 36  # letters of a name; the rest is cut off
INK = "#0a0b0c"  # stands for the colour of the page's text, which light, dark and print set
SETTINGS = {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color",
         "grid.color"), INK,
    ),
    "svg.fonttype": "none", "svg.hashsalt": "costs", "text.parse_math": False, "font.size": 9,
    "font.sans-serif": ["system-ui", "DejaVu Sans"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.15,
}  # fmt: skip


def cost_picture(summary: Summary) -> str:
    """The picture as SVG, the same for the same numbers; empty if no expected loss is known."""
    with matplotlib.rc_context(SETTINGS):
        figure = over_costs(summary)
        if figure is None:
            return ""
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    document = file.getvalue()
    svg = document[document.index("<svg") :]  # without the header of an XML file
    svg = svg.replace(INK, "currentColor")
    # Groups are numbered through, and another picture on the page would have the same numbers.
    return re.sub(r' id="[\w.]+_\d+"', "", svg)


@dataclass(frozen=True)
class CostAxis:
    """A cost that the expected loss is drawn over."""

    title: str
    cost_of: Callable[[CandidateLine], float | None]


COST_AXES = (
    CostAxis("trained parameters", lambda line: line.result.trainable),
    CostAxis("peak memory (GiB)", lambda line: line.measured.peak_memory_gib),
    CostAxis("seconds per step", lambda line: line.measured.seconds_per_step),
)


def over_costs(summary: Summary) -> Figure | None:
    """The expected loss of each candidate over each cost, with the margin; None if none is known.

    A line joins the sizes of one method.
    """
    lines_by_method: dict[str, list[CandidateLine]] = {}
    for line in summary.scored:
        if line.decided.expected_loss is not None:
            lines_by_method.setdefault(line.result.method, []).append(line)
    shown = [line for lines in lines_by_method.values() for line in lines]
    cost_axes = [
        cost_axis for cost_axis in COST_AXES
        if any(cost_axis.cost_of(line) is not None for line in shown)
    ]  # fmt: skip
    if not cost_axes:
        return None
    height = 3.6 + 0.22 * math.ceil(len(lines_by_method) / COLUMNS)  # inches, with the legend
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    subplots = figure.subplots(1, len(cost_axes), sharey=True, squeeze=False)[0]
    unit = "points" if summary.scale.unit == "percent" else summary.scale.unit
    subplots[0].set_ylabel(f"expected loss ({unit})")
    legend_lines = {}
    for subplot, cost_axis in zip(subplots, cost_axes, strict=True):
        for (method, lines), style in zip(lines_by_method.items(), cycle(STYLES), strict=False):
            colour, marker = style
            costs, losses = _points(lines, cost_axis)
            (legend_lines[method],) = subplot.plot(costs, losses, color=colour, marker=marker)
        subplot.set_xlabel(cost_axis.title)
        costs_of_all, _ = _points(shown, cost_axis)
        _scale_costs(subplot, costs_of_all)
        if summary.margin is not None:
            subplot.axhline(summary.margin, color=INK, alpha=0.5, linestyle="--", linewidth=1)
    figure.legend(
        legend_lines.values(), [_shortened(method) for method in legend_lines],
        loc="outside lower center", ncols=COLUMNS, frameon=False,
    )  # fmt: skip
    return figure


def _points(
    lines: Sequence[CandidateLine], cost_axis: CostAxis
) -> tuple[list[float], list[float | None]]:
    """The costs and the expected losses of the candidates whose cost is known."""
    costs, losses = [], []
    for line in lines:
        cost = cost_axis.cost_of(line)
        if cost is not None:
            costs.append(cost)
            losses.append(line.decided.expected_loss)
    return costs, losses


def _scale_costs(subplot: Axes, costs: Sequence[float]) -> None:
    """Make the axis of costs logarithmic where they differ much, with numbers that fit below it."""
    least, most = min(costs), max(costs)
    if least <= 0 or most <= LOG_FROM * least:
        subplot.locator_params(axis="x", nbins=4)
        return
    subplot.set_xscale("log")
    # The numbers between two decades, which matplotlib writes too, would overlap.
    between = () if most > FEW_DECADES * least else (3,)
    subplot.xaxis.set_major_locator(LogLocator(subs=(1, *between)))
    subplot.xaxis.set_major_formatter("{x:,.10g}")
    subplot.xaxis.set_minor_formatter("")


def _shortened(name: str) -> str:
    """A name as a picture has room for it."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
