"""Draws the charts of a comparison's page, as Vega-Lite specifications.

A method has the same colour, dash and marker in all charts, so that no chart needs colours to be
read. Text and lines have ``currentColor``: the page's style sheet sets it for light, dark and
print. Altair comes with the extra ``compare``.
"""

import math
from collections.abc import Sequence
from typing import Any

from lorada.report.comparison.summary import CandidateLine, Summary
from lorada.report.comparison.verdict import LOSSES
from lorada.support.errors import needs_extra

with needs_extra("compare"):
    import altair as alt

Spec = dict[str, Any]
Curve = Sequence[tuple[int, float]]

# Okabe and Ito's colours without yellow, which cannot be seen on white. The numbers of colours,
# dashes and markers have no common factor, so 35 lines and 56 markers differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "currentColor")
DASHES = ((1, 0), (6, 3), (2, 2), (10, 3, 2, 3), (14, 4))
MARKERS = (
    "circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right",
    "triangle-left",
)  # fmt: skip

# What the score is drawn over: name → (field of a line, title of the axis, format of a number).
COSTS = {
    "parameters": ("trainable", "trained parameters", "~s"),
    "memory": ("peak_memory_gib", "peak memory (GiB)", "~g"),
    "time": ("seconds_per_step", "seconds per step", "~g"),
}
LOG_FROM = 8  # an axis is logarithmic if its largest value is so many times its smallest
MOST_POINTS = 100  # of one loss curve
TEXT = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12}
CONFIG = {
    "background": "transparent",
    "font": "system-ui, Liberation Sans, Arial, sans-serif",
    "view": {"stroke": None},
    "text": {"fontSize": 12},
    "axis": {
        **TEXT, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "currentColor",
        "gridOpacity": 0.15, "domainColor": "currentColor", "domainOpacity": 0.5,
        "tickColor": "currentColor", "tickOpacity": 0.5,
    },
    "legend": {**TEXT, "symbolStrokeWidth": 2, "symbolOpacity": 1},
}  # fmt: skip


def pareto_charts(summary: Summary) -> dict[str, Spec]:
    """Charts of the score over each cost that was measured: name of the cost → specification."""
    charts = {}
    for name, (field, title, form) in COSTS.items():
        lines = [line for line in scored(summary) if getattr(line, field) is not None]
        if lines:
            costs = [float(getattr(line, field)) for line in lines]
            charts[name] = _pareto(summary, lines, costs, title, form)
    return charts


def _pareto(
    summary: Summary, lines: list[CandidateLine], costs: list[float], title: str, form: str
) -> Spec:
    front = pareto_front(costs, [line.score or 0.0 for line in lines])
    rows = [
        {**_row(line), "cost": cost, "front": index in front}
        for index, (line, cost) in enumerate(zip(lines, costs, strict=True))
    ]
    logarithmic = min(costs) > 0 and max(costs) > LOG_FROM * min(costs)
    scale = alt.Scale(type="log" if logarithmic else "linear", zero=False, nice=False, padding=30)
    title_of_axis = f"{title} (logarithmic)" if logarithmic else title
    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X(
            "cost:Q", title=title_of_axis, scale=scale, axis=alt.Axis(format=form, tickCount=5)
        ),
        y=alt.Y("score:Q", title=f"score ({score_unit(summary)})", scale=alt.Scale(zero=False)),
        tooltip=[*_tooltip(summary), alt.Tooltip("cost:Q", title=title, format=form)],
    )
    styles = _styles(summary, lines)
    colour = alt.Color("method:N", **styles(COLOURS))
    markers = base.encode(
        stroke=alt.Stroke("method:N", **styles(COLOURS)),
        shape=alt.Shape("method:N", **styles(MARKERS)),
    )
    on_front = alt.datum.front
    labels = base.transform_filter(on_front).encode(text="label:N")
    beside: Any = {
        "align": "left",
        "dx": 9,
        "dy": -10,
        "limit": 140,
        "opacity": alt.ExprRef("width < 250 ? 0 : 1"),
    }
    layers = [
        base.transform_filter(on_front).mark_line(
            interpolate="step-after", color="currentColor", opacity=0.5, size=1.5
        ),
        # One line a method: its sizes, if it has several.
        base.mark_line(size=1.5).encode(color=colour),
        base.mark_rule(size=1.5).encode(y="low:Q", y2="high:Q", color=colour),
        markers.transform_filter(~on_front).mark_point(size=80, strokeWidth=2, fill=None),
        markers.transform_filter(on_front)
        .mark_point(size=130, opacity=1)
        .encode(fill=alt.Fill("method:N", **styles(COLOURS))),
        # The same text twice: the first is an outline that keeps lines off the letters.
        labels.mark_text(**beside, stroke="var(--page)", strokeWidth=4),
        labels.mark_text(**beside, color="currentColor"),
    ]
    return _finished(alt.layer(*layers), height=380)


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> set[int]:
    """Positions of the points that score higher than all points that cost no more.

    Args:
        costs: of each point; lower is better.
        scores: of each point; higher is better.
    """
    front, best = set(), -math.inf
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if scores[index] > best:
            front.add(index)
            best = scores[index]
    return front


def interval_chart(summary: Summary) -> Spec | None:
    """Chart of each score with its interval, the highest first; None if nothing is scored."""
    rows = [{**_row(line), "letter": line.letter, "kind": "trained"} for line in scored(summary)]
    if not rows:
        return None
    rows += [
        {"label": one.name, "score": one.score, "low": one.low, "high": one.high,
         "letter": "", "kind": "baseline"}
        for one in summary.baselines
        if one.score is not None
    ]  # fmt: skip
    rows.sort(key=lambda row: -row["score"])
    names = alt.Axis(labelLimit=160, title=None, domain=False, ticks=False, grid=True)
    kinds = ["trained", "baseline"]
    colour = alt.Color(
        "kind:N", scale=alt.Scale(domain=kinds, range=["#0072B2", "currentColor"]), legend=None
    )
    marker = alt.Shape(
        "kind:N", scale=alt.Scale(domain=kinds, range=["circle", "diamond"]), legend=None
    )
    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X(
            "score:Q",
            title=f"score ({score_unit(summary)}) and its 95 % interval",
            scale=alt.Scale(zero=False, padding=12),
            axis=alt.Axis(tickCount=8),
        ),
        y=alt.Y("label:N", sort=[row["label"] for row in rows], axis=names),
        tooltip=_tooltip(summary),
    )
    layers = [
        base.mark_rule(size=2).encode(x="low:Q", x2="high:Q", color=colour),
        base.mark_point(size=70, filled=True, opacity=1).encode(color=colour, shape=marker),
        base.mark_text(align="left", dx=7, color="currentColor").encode(
            x="high:Q", text="letter:N"
        ),
    ]
    return _finished(alt.layer(*layers), height=28 * len(rows) + 10)


def loss_charts(summary: Summary) -> dict[str, Spec]:
    """Charts of the mean training loss over steps, a line for each method: budget → specification.

    A click on a method in the legend makes its line stand out.
    """
    lines = [line for line in summary.lines if summary.histories.get(line.label)]
    by_size = sorted(lines, key=lambda line: line.trainable or 0)
    budgets = list(dict.fromkeys(name for line in by_size for name in _budgets(line)))
    return {
        budget: _loss(summary, [line for line in lines if budget in _budgets(line)])
        for budget in budgets
    }


def _loss(summary: Summary, lines: list[CandidateLine]) -> Spec:
    curves = {line.method: thin_out(summary.histories[line.label], MOST_POINTS) for line in lines}
    rows = [
        # JSON has no NaN; a null leaves a gap in the line.
        {"method": method, "step": step, "loss": loss if math.isfinite(loss) else None}
        for method, curve in curves.items()
        for step, loss in curve
    ]
    styles = _styles(summary, lines)
    chosen = alt.selection_point(fields=["method"], bind="legend")
    chart = (
        alt.Chart(alt.InlineData(rows))
        .mark_line(size=2.25)
        .encode(
            x=alt.X("step:Q", title="optimizer steps", axis=alt.Axis(tickCount=6)),
            y=alt.Y("loss:Q", title="training loss (nats per token)", scale=alt.Scale(zero=False)),
            color=alt.Color("method:N", **styles(COLOURS)),
            strokeDash=alt.StrokeDash("method:N", **styles(DASHES)),
            opacity=alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.12)),
        )
        .add_params(chosen)
    )
    return _finished(chart, height=340)


def rate_chart(summary: Summary) -> Spec | None:
    """Chart of the loss over the learning rates that were tried; None without a search.

    The chosen rate of each search is filled, and has a ring if it is the lowest or the highest of
    those tried. A trial that was stopped is drawn with its loss in the middle; one whose loss
    became NaN is left out.
    """
    lines = [line for line in summary.lines if summary.tried.get(line.label)]
    rows = [
        {
            "label": line.label, "method": line.method, "search": trial.search,
            "rate": trial.rate, "loss": trial.loss, "chosen": trial.chosen,
            "edge": trial.at_edge, "stopped": trial.stopped,
        }
        for line in lines
        for trial in summary.tried[line.label]
        if trial.loss is not None
    ]  # fmt: skip
    if not rows:
        return None
    styles = _styles(summary, lines)
    colour = styles(COLOURS)
    base = alt.Chart(alt.InlineData(rows)).encode(
        x=alt.X("rate:Q", title="learning rate (logarithmic)", axis=alt.Axis(format="~e"),
                scale=alt.Scale(type="log", nice=False, padding=20)),
        y=alt.Y("loss:Q", title="loss on the rows set aside", scale=alt.Scale(zero=False)),
        stroke=alt.Stroke("method:N", **colour),
        tooltip=[
            alt.Tooltip("label:N", title="candidate"),
            alt.Tooltip("rate:Q", format=".2g"), alt.Tooltip("loss:Q", format=".4f"),
        ],
    )  # fmt: skip
    ended, chosen = ~alt.datum.stopped, alt.datum.chosen
    layers = [
        base.transform_filter(ended).mark_line(size=1.5, fill=None).encode(
            detail=["label:N", "search:N"], strokeDash=alt.StrokeDash("method:N", **styles(DASHES))
        ),
        base.transform_filter(ended & ~chosen).mark_point(size=50, fill=None),
        base.transform_filter(alt.datum.stopped).mark_point(size=40, shape="cross", fill=None),
        base.transform_filter(chosen).mark_point(size=80, opacity=1).encode(
            fill=alt.Fill("method:N", **colour)
        ),
        base.transform_filter(alt.datum.edge).mark_point(size=260, fill=None, strokeWidth=2),
    ]  # fmt: skip
    return _finished(alt.layer(*layers), height=300)


def thin_out(curve: Curve, points: int) -> Curve:
    """At most so many points of a curve, evenly spread, the first and the last among them."""
    if len(curve) <= points:
        return curve
    return [curve[round(i * (len(curve) - 1) / (points - 1))] for i in range(points)]


def score_unit(summary: Summary) -> str:
    """What a score counts."""
    return "minus nats per token" if summary.metric == LOSSES else "percent"


def scored(summary: Summary) -> list[CandidateLine]:
    """The candidates that have a score, the highest first."""
    return [line for line in summary.lines if line.score is not None]


def _budgets(line: CandidateLine) -> list[str]:
    return [name.strip() for name in line.budget.split(",")]


def _row(line: CandidateLine) -> dict[str, Any]:
    """What each chart of scores needs of a candidate."""
    return {
        "label": line.label, "method": line.method, "score": line.score,
        "low": line.low if line.low is not None else line.score,
        "high": line.high if line.high is not None else line.score,
    }  # fmt: skip


def _tooltip(summary: Summary) -> list[alt.Tooltip]:
    form = ".3f" if summary.metric == LOSSES else ".1f"
    numbers = [alt.Tooltip(f"{name}:Q", format=form) for name in ("score", "low", "high")]
    return [alt.Tooltip("label:N", title="candidate"), *numbers]


def _styles(summary: Summary, lines: list[CandidateLine]) -> Any:
    """A function from values, such as colours, to the scale and legend of the lines' methods.

    A method's place among all methods chooses its value, so that it is the same in all charts.
    """
    methods = list(dict.fromkeys(line.method for line in summary.lines))
    shown = list(dict.fromkeys(line.method for line in lines))
    legend = alt.Legend(
        title=None,
        orient="bottom",
        # Not by ``width``, which shrinks after the rows were counted and would cut off the last.
        columns=alt.ExprRef("max(1, floor(containerSize()[0] / 170))"),
        labelLimit=130,
        symbolLimit=0,
        symbolSize=200,
    )

    def scale(values: Sequence[Any]) -> dict[str, Any]:
        chosen = [values[methods.index(method) % len(values)] for method in shown]
        return {"scale": alt.Scale(domain=shown, range=chosen), "legend": legend}

    return scale


def _finished(chart: Any, height: Any) -> Spec:
    """A chart as a specification, as wide as its place on the page."""
    autosize = {"type": "fit-x", "contains": "padding"}
    spec = chart.properties(width="container", height=height, autosize=autosize).to_dict()
    return {**spec, "config": CONFIG}
