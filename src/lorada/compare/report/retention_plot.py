"""Draws what each candidate gains over what it loses elsewhere."""

from itertools import cycle
from typing import Any

from lorada.compare.report.expected_loss_plot import COLUMNS, LEGEND_LINE, PLOT_HEIGHT, STYLES
from lorada.compare.report.summarize_comparison import Summary
from lorada.compare.report.svg_pictures import INK, WIDE, Picture, picture, shortened
from lorada.compare.retention import Interval, Retention
from lorada.compare.scale_findings import ScaleFinding
from lorada.support.error_messages import needs_extra

with needs_extra("compare"):
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

TEXT = (
    "Gain on the held-out rows over the growth of the loss on rows to keep, a marker for each "
    "candidate; the numbers are in the table"
)


def retention_picture(summary: Summary) -> Picture | None:
    """The picture of a summary; None if gain or retention is unknown."""
    retention = summary.retention
    caption = (
        f"Gain over {retention.over}, and the growth of the loss on {retention.rows} rows that the "
        f"model should still do ({', '.join(retention.files)}), with 95 % intervals. The upper "
        "left is best."
    )
    if retention.scales is not None and retention.scales.at:
        caption += " A line joins the scales of one adapter."
    return picture("retention", lambda width: gain_over_retention(summary, width), TEXT, caption)


def gain_over_retention(summary: Summary, width: float = WIDE) -> Figure | None:
    """The gain of each candidate over what it loses elsewhere, with both intervals.

    A line joins the pick with its smaller scales. None if no candidate has both. ``width`` is in
    inches.
    """
    shown = [
        retention for retention in summary.retention.methods
        if retention.gain is not None and retention.lost is not None
    ]  # fmt: skip
    if not shown:
        return None
    columns = COLUMNS if width >= WIDE else 1
    height = PLOT_HEIGHT + LEGEND_LINE * -(-len(shown) // columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    subplot = figure.subplots()
    legend_lines: dict[str, Any] = {}  # matplotlib knows a container as a handle, its types not
    for retention, (colour, marker) in zip(shown, cycle(STYLES), strict=False):
        legend_lines[retention.method] = _draw_method(subplot, retention, colour, marker)
        scales = summary.retention.scales
        if scales is not None and scales.method == retention.method:
            _draw_scales(subplot, retention, scales.at, colour)
    for draw_line in (subplot.axhline, subplot.axvline):  # where nothing is gained, nothing lost
        draw_line(0, color=INK, alpha=0.5, linewidth=1)
    unit = "points" if summary.scale.unit == "percent" else summary.scale.unit
    subplot.set_xlabel("lost elsewhere (nats a token)")
    subplot.set_ylabel(f"gain ({unit})")
    figure.legend(
        legend_lines.values(), [shortened(method) for method in legend_lines],
        loc="outside lower center", ncols=columns, frameon=False,
    )  # fmt: skip
    return figure


def _draw_method(
    subplot: Axes, retention: Retention, colour: str, marker: str
) -> ErrorbarContainer:
    """Draw the point of a method with both intervals; return what the legend shows."""
    gain, lost = retention.gain, retention.lost
    assert gain is not None  # the others are left out
    assert lost is not None
    return subplot.errorbar(
        [lost.value], [gain.value], xerr=_ends(lost), yerr=_ends(gain), color=colour, marker=marker,
        linestyle="", elinewidth=1,
    )  # fmt: skip


def _ends(interval: Interval) -> list[list[float]]:
    """How far an interval reaches below its value, and above it."""
    return [[interval.value - interval.low], [interval.high - interval.value]]


def _draw_scales(
    subplot: Axes, retention: Retention, at: tuple[ScaleFinding, ...], colour: str
) -> None:
    """Draw the way from the smaller scales of an adapter to its own."""
    gain, lost = retention.gain, retention.lost
    assert gain is not None
    assert lost is not None
    points = [(finding.scale, finding.lost.value, finding.gain.value) for finding in at]
    points = sorted([*points, (1.0, lost.value, gain.value)])
    subplot.plot(
        [lost_nats for _, lost_nats, _ in points], [gained for _, _, gained in points],
        color=colour, linewidth=1, marker="o", markersize=3,
    )  # fmt: skip
    for scale, lost_nats, gained in points[:-1]:
        subplot.annotate(f"{scale:g}", (lost_nats, gained), xytext=(5, -10),
                         textcoords="offset points", color=INK)  # fmt: skip
