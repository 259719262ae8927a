"""Draws what each candidate loses over what it costs, as SVG that has the colours of its page.

Matplotlib comes with the extra ``compare``.
"""

import io
import math
import re
from itertools import cycle
from typing import Any

from lorada.compare.report.summarize_comparison import Summary
from lorada.support.error_messages import needs_extra

with needs_extra("compare"):
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

# Okabe and Ito's colours without yellow, which cannot be seen on white, and grey; each method has a
# marker of its own too. The numbers of both have no common factor, so 56 methods differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", ">", "<")
STYLES = list(zip(COLOURS * len(MARKERS), MARKERS * len(COLOURS), strict=True))
# What the expected loss is drawn over: field of a line → title of the axis.
COSTS = {
    "trainable": "trained parameters",
    "peak_memory_gib": "peak memory (GiB)",
    "seconds_per_step": "seconds per step",
}
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
        figure, out = over_costs(summary), io.StringIO()
        if figure is None:
            return ""
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue().replace(INK, "currentColor")
    return re.sub(r' id="[\w.]+_\d+"', "", svg[svg.index("<svg") :])


def over_costs(summary: Summary) -> Figure | None:
    """The expected loss of each candidate over each cost, with the margin; None if none is known.

    A line joins the sizes of one method.
    """
    every = [one for one in summary.scored if one.expected_loss is not None]
    fields = [name for name in COSTS if any(getattr(one, name) is not None for one in every)]
    if not fields:
        return None
    methods = list(dict.fromkeys(one.method for one in every))
    height = 3.6 + 0.22 * math.ceil(len(methods) / COLUMNS)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    unit, lines = summary.scale.unit, dict[str, Any]()
    axes[0].set_ylabel(f"expected loss ({'points' if unit == 'percent' else unit})")
    for axis, field in zip(axes, fields, strict=True):
        for method, (colour, marker) in zip(methods, cycle(STYLES), strict=False):
            mine = [o for o in every if o.method == method and getattr(o, field) is not None]
            sizes = [getattr(one, field) for one in mine], [one.expected_loss for one in mine]
            (lines[method],) = axis.plot(*sizes, color=colour, marker=marker)
        costs = [float(cost) for one in every if (cost := getattr(one, field)) is not None]
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
        if summary.margin is not None:
            axis.axhline(summary.margin, color=INK, alpha=0.5, linestyle="--", linewidth=1)
    where = {"loc": "outside lower center", "ncols": COLUMNS, "frameon": False}
    figure.legend(lines.values(), map(_name, lines), **where)
    return figure


def _name(text: str) -> str:
    """A name as a picture has room for it."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
