"""Draws the pictures of a comparison's page, as SVG that has the colours of the page.

A method has the same colour and marker in all pictures, so that none needs colours to be read.
Matplotlib comes with the extra ``compare``.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lorada.compare.report.read import CandidateResult
from lorada.compare.report.summary import Baseline, Summary
from lorada.support.errors import needs_extra
from lorada.support.metric_names import as_score, lower_is_better

with needs_extra("compare"):
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator

# Okabe and Ito's colours without yellow, which cannot be seen on white, and grey. The numbers of
# colours and markers have no common factor, so 56 methods differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", ">", "<")
# What the score is drawn over: field of a line → title of the axis.
COSTS = {
    "trainable": "trained parameters",
    "peak_memory_gib": "peak memory (GiB)",
    "seconds_per_step": "seconds per step",
}
FEW_DECADES = 30  # up to such a ratio an axis has a number between two decades
LOG_FROM = 8  # an axis is logarithmic if its largest value is so many times its smallest
WIDTH = 10.0  # inches
LETTERS = 125  # in a line of the legend, with the room of markers
LONGEST = 60  # letters of a name; the rest is cut off
INK = "#0a0b0c"  # stands for the colour of the page's text, which light, dark and print set
SETTINGS = {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color",
         "grid.color"), INK,
    ),
    "svg.fonttype": "none", "font.size": 9, "font.sans-serif": ["system-ui", "DejaVu Sans"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.15,
}  # fmt: skip


def pictures(summary: Summary) -> dict[str, str]:
    """Each picture that the summary has numbers for: name → SVG. The same numbers give the same."""
    kinds: dict[str, Callable[[Summary], Figure | None]]
    kinds = {"costs": over_costs, "intervals": intervals}
    found = {}
    for name, draw in kinds.items():
        # The names of parts inside a picture begin from its salt: one page has several pictures.
        with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
            # The browser has the letters that the font for measuring lacks.
            warnings.filterwarnings("ignore", "Glyph .* missing")
            if figure := draw(summary):
                out = io.StringIO()
                figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
                svg = out.getvalue().replace(INK, "currentColor")
                found[name] = re.sub(r' id="[\w.]+_\d+"', "", svg[svg.index("<svg") :])
    return found


def over_costs(summary: Summary) -> Figure | None:
    """The expected loss of each candidate over each cost, with the margin; None without a score.

    Where no expected loss is known, it is the score. A marker is filled if no candidate that costs
    as little is better; a grey line joins these.
    """
    unit, value, lower = summary.scale.unit, "expected_loss", True
    title = f"expected loss ({'points' if unit == 'percent' else unit})"
    if all(one.expected_loss is None for one in summary.scored):
        title, value = f"{summary.scale.title} ({unit})", "score"
        lower = lower_is_better(summary.metric)
    every = [one for one in summary.scored if getattr(one, value) is not None]
    fields = [name for name in COSTS if any(getattr(one, name) is not None for one in every)]
    if not fields:
        return None
    figure = _figure(summary, 3.6, every)
    axes = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    axes[0].set_ylabel(title)
    for axis, field in zip(axes, fields, strict=True):
        shown = [one for one in every if getattr(one, field) is not None]
        costs = [float(getattr(one, field)) for one in shown]
        values = [float(getattr(one, value)) for one in shown]
        front = pareto_front(costs, [-one if lower else one for one in values])
        ahead = sorted(front, key=costs.__getitem__)
        steps = [costs[i] for i in ahead], [values[i] for i in ahead]
        axis.step(*steps, where="post", color=INK, alpha=0.5, linewidth=1)
        for i, one in enumerate(shown):
            style = _style(summary, one.method, filled=i in front)
            axis.errorbar(
                costs[i], values[i], yerr=_reach(one) if value == "score" else None, **style
            )
        for method in dict.fromkeys(one.method for one in shown):  # one line for all its sizes
            mine = [i for i, one in enumerate(shown) if one.method == method]
            sizes = [costs[i] for i in mine], [values[i] for i in mine]
            axis.plot(*sizes, color=_style(summary, method)["color"], linewidth=1)
        if min(costs) > 0 and max(costs) > LOG_FROM * min(costs):
            axis.set_xscale("log")
            # The numbers between two decades, which matplotlib writes too, would overlap.
            between = () if max(costs) > FEW_DECADES * min(costs) else (3,)
            axis.xaxis.set_major_locator(LogLocator(subs=(1, *between)))
            axis.xaxis.set_major_formatter("{x:,.10g}")
            axis.xaxis.set_minor_formatter("")
        else:
            axis.locator_params(axis="x", nbins=4)
        axis.set_xlabel(COSTS[field])
        if value == "expected_loss" and summary.margin is not None:
            _draw_margin(axis, summary.margin)
    return figure


def _draw_margin(axis: Any, margin: float) -> None:
    axis.axhline(margin, color=INK, alpha=0.5, linestyle="--", linewidth=1)
    axis.annotate(
        "margin", (1, margin), xycoords=("axes fraction", "data"), ha="right", va="bottom",
        fontsize="small", color=INK,
    )  # fmt: skip


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> set[int]:
    """Positions of the points that score higher than all points that cost no more."""
    front, best = set(), -math.inf
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if scores[index] > best:
            front.add(index)
            best = scores[index]
    return front


def intervals(summary: Summary) -> Figure | None:
    """Each score with its interval, the best first; None if nothing is scored."""
    if not summary.scored:
        return None
    every: list[CandidateResult | Baseline] = [*summary.scored]
    every += [one for one in summary.baselines if one.score is not None]
    every.sort(key=lambda one: -as_score(one.score or 0.0, summary.metric))
    figure = _figure(summary, 0.7 + 0.28 * len(every))
    axis: Any = figure.subplots()
    names = []
    for place, one in enumerate(every):
        trained = isinstance(one, CandidateResult)
        names.append(_name(one.label if isinstance(one, CandidateResult) else one.name))
        style = {"color": COLOURS[0], "marker": "o"} if trained else {"color": INK, "marker": "D"}
        axis.errorbar(one.score, place, xerr=_reach(one), **style)
        where = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        end = one.score if one.high is None else one.high
        axis.annotate(getattr(one, "letter", ""), (end, place), **where)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel(f"{summary.scale.title} ({summary.scale.unit}) and its 95 % interval")
    return figure


def _figure(summary: Summary, height: float, lines: Sequence[CandidateResult] = ()) -> Figure:
    """A figure, with a legend of these lines' methods below it."""
    styles = {line.method: _style(summary, line.method) for line in lines}
    names = [_name(method) for method in styles]
    columns = max(1, LETTERS // (max(map(len, names), default=0) + 8))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH, height + 0.22 * rows), layout="constrained")
    if names:
        handles = [Line2D([], [], **style) for style in styles.values()]
        where = {"loc": "outside lower center", "ncols": columns, "frameon": False}
        figure.legend(handles, names, **where)
    return figure


def _name(text: str) -> str:
    """A name as a picture has room for it, without half characters, which cannot be drawn."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return literal(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")


def _style(summary: Summary, method: str, *, filled: bool = True) -> dict[str, Any]:
    """Colour and marker of a method, by its place among all methods."""
    place = list(dict.fromkeys(line.method for line in summary.lines)).index(method)
    colour = COLOURS[place % len(COLOURS)]
    inside = colour if filled else "none"
    marker = MARKERS[place % len(MARKERS)]
    return {"color": colour, "marker": marker, "markerfacecolor": inside, "linewidth": 1.5}


def _reach(one: Any) -> list[list[float]] | None:
    """How far the interval of a score reaches below and above it; None without one."""
    if one.low is None or one.high is None:
        return None
    return [[max(0.0, one.score - one.low)], [max(0.0, one.high - one.score)]]


def literal(text: str) -> str:
    """Escape dollars, which would begin a formula."""
    return text.replace("$", r"\$")
