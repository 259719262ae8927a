"""Draws what each candidate loses over what it costs, where costs differ by more than their noise.

Matplotlib comes with the extra ``compare``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median

from lorada.compare.read_results import ScoredRun
from lorada.compare.report.candidate_lines import GIB, CandidateLine
from lorada.compare.report.summarize_comparison import Summary
from lorada.compare.report.svg_pictures import INK, WIDE, Picture, picture, shortened
from lorada.support.error_messages import needs_extra

with needs_extra("compare"):
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
COLUMNS = 3  # of the legend of a wide picture
PLOT_HEIGHT, LEGEND_LINE = 3.6, 0.22  # inches
LEAST_SHARE = 0.05  # of the lowest cost: by less than that, costs do not matter to who pays them
CAPTION = (
    "Expected loss: how far the true score is expected to be from that of the best. A line joins "
    "the sizes of one method. Dashed: the margin that a cheaper candidate may cost."
)
TEXT = "Expected loss over each cost, a marker for each candidate; the numbers are in the tables"


@dataclass(frozen=True)
class CostAxis:
    """A cost that the expected loss is drawn over.

    Attributes:
        title: with the unit.
        cost_of: the cost of a candidate; None if it was not measured.
        cost_of_run: that of one of its runs, from which the noise is known; None for a cost that is
            counted and not measured.
    """

    title: str
    cost_of: Callable[[CandidateLine], float | None]
    cost_of_run: Callable[[ScoredRun], float | None] | None = None


COST_AXES = (
    CostAxis("trained parameters", lambda line: line.result.trainable),
    CostAxis(
        "peak memory (GiB)",
        lambda line: line.measured.peak_memory_gib,
        lambda run: _gib(run.result.peak_memory_bytes),
    ),
    CostAxis(
        "seconds per step",
        lambda line: line.measured.seconds_per_step,
        lambda run: run.result.seconds_per_step,
    ),
)


def _gib(size: float | None) -> float | None:
    return None if size is None else size / GIB


def cost_picture(summary: Summary) -> Picture | None:
    """The picture; None if no expected loss is known, or no cost differs by more than its noise."""
    return picture("costs", lambda width: over_costs(summary, width), TEXT, CAPTION)


def costs_that_differ(lines: Sequence[CandidateLine]) -> list[CostAxis]:
    """The costs by which candidates can be told apart."""
    return [cost_axis for cost_axis in COST_AXES if _differ(lines, cost_axis)]


def _differ(lines: Sequence[CandidateLine], cost_axis: CostAxis) -> bool:
    """Whether candidates differ in a cost by more than runs of one candidate usually do."""
    costs = [cost for cost in map(cost_axis.cost_of, lines) if cost is not None]
    if not costs:
        return False
    difference = max(costs) - min(costs)
    return difference > max(LEAST_SHARE * min(costs), _noise(lines, cost_axis))


def _noise(lines: Sequence[CandidateLine], cost_axis: CostAxis) -> float:
    """By how much a cost differs between the runs of a candidate, the median of candidates."""
    if cost_axis.cost_of_run is None:
        return 0.0
    spreads = []
    for line in lines:
        costs = [cost_axis.cost_of_run(run) for run in line.result.runs]
        measured = [cost for cost in costs if cost is not None]
        if len(measured) > 1:
            spreads.append(max(measured) - min(measured))
    return median(spreads) if spreads else 0.0


def over_costs(summary: Summary, width: float = WIDE) -> Figure | None:
    """The expected loss of each candidate over each cost, with the margin; None of nothing.

    A line joins the sizes of one method. In a narrow picture costs stand below each other.
    """
    lines_by_method: dict[str, list[CandidateLine]] = {}
    for line in summary.scored:
        if line.decided.expected_loss is not None:
            lines_by_method.setdefault(line.result.method, []).append(line)
    shown = [line for lines in lines_by_method.values() for line in lines]
    cost_axes = costs_that_differ(shown)
    if not cost_axes:
        return None
    figure, subplots = _subplots(len(cost_axes), len(lines_by_method), width)
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
    unit = "points" if summary.scale.unit == "percent" else summary.scale.unit
    figure.supylabel(f"expected loss ({unit})", fontsize="medium")
    figure.legend(
        legend_lines.values(), [shortened(method) for method in legend_lines],
        loc="outside lower center", ncols=COLUMNS if width >= WIDE else 1, frameon=False,
    )  # fmt: skip
    return figure


def _subplots(count: int, methods: int, width: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many subplots, beside each other if it is wide, and room for its legend."""
    is_wide = width >= WIDE
    rows, columns = (1, count) if is_wide else (count, 1)
    lines_of_legend = math.ceil(methods / COLUMNS) if is_wide else methods
    height = PLOT_HEIGHT * (1.0 if is_wide else 0.75 * rows) + LEGEND_LINE * lines_of_legend
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()


def _points(lines: Sequence[CandidateLine], cost_axis: CostAxis) -> tuple[list[float], list[float]]:
    """The costs and the expected losses of the candidates of which both are known."""
    costs, losses = [], []
    for line in lines:
        cost, loss = cost_axis.cost_of(line), line.decided.expected_loss
        if cost is not None and loss is not None:
            costs.append(cost)
            losses.append(loss)
    return costs, losses


def _scale_costs(subplot: Axes, costs: Sequence[float]) -> None:
    """Make the axis of costs logarithmic where they differ much, with numbers that fit below it."""
    least, most = min(costs), max(costs)
    if least <= 0 or most <= LOG_FROM * least:
        subplot.locator_params(axis="x", nbins=4)
        subplot.xaxis.set_major_formatter("{x:,.10g}")
        return
    subplot.set_xscale("log")
    # The numbers between two decades, which matplotlib writes too, would overlap.
    between = () if most > FEW_DECADES * least else (3,)
    subplot.xaxis.set_major_locator(LogLocator(subs=(1, *between)))
    subplot.xaxis.set_major_formatter("{x:,.10g}")
    subplot.xaxis.set_minor_formatter("")
