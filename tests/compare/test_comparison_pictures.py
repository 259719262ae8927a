"""The picture of a comparison: what it shows, and that methods can be told apart."""

from dataclasses import replace
from itertools import pairwise, product
from xml.etree import ElementTree

import pytest
from made_up_comparison import renamed

pytest.importorskip("matplotlib", reason="needs the extra compare")

from lorada.compare.report import expected_loss_plot


def with_lines(summary, change):
    """The summary with the same change to each line."""
    return replace(summary, lines=tuple(change(line) for line in summary.lines))


def without_loss(line):
    return replace(line, decided=replace(line.decided, expected_loss=None))


def without_memory(line):
    return replace(line, measured=replace(line.measured, peak_memory_gib=None))


def points(axis):
    """The points of each method's line; the last line is the margin."""
    return [line.get_xydata().tolist() for line in axis.lines[:-1]]


def test_the_expected_loss_is_drawn_over_each_cost_with_the_margin(made_up_summary):
    axes = expected_loss_plot.over_costs(made_up_summary).axes
    known = [line for line in made_up_summary.lines if line.decided.expected_loss is not None]
    for axis, cost in zip(axes, expected_loss_plot.COST_AXES, strict=True):
        each = {line.result.method: [] for line in known}
        for line in known:
            each[line.result.method].append([cost.cost_of(line), line.decided.expected_loss])
        assert points(axis) == list(each.values())
        assert set(axis.lines[-1].get_ydata()) == {made_up_summary.margin} == {1.0}
    drawn = expected_loss_plot.cost_picture(made_up_summary)
    assert expected_loss_plot.cost_picture(made_up_summary) == drawn
    ElementTree.fromstring(drawn)
    assert "currentColor" in drawn
    assert expected_loss_plot.cost_picture(with_lines(made_up_summary, without_loss)) == ""


def test_a_cost_that_was_not_measured_has_no_axis_and_one_that_differs_much_is_logarithmic(
    made_up_summary,
):
    two = with_lines(made_up_summary, without_memory)
    axes = expected_loss_plot.over_costs(two).axes
    assert [axis.get_xlabel() for axis in axes] == ["trained parameters", "seconds per step"]
    assert [axis.get_xscale() for axis in axes] == ["linear", "linear"]
    first, second = two.lines[:2]
    sizes = renamed(first, "ia3", trainable=13_824), renamed(second, "large", trainable=400_000)
    figure = expected_loss_plot.over_costs(replace(two, lines=sizes))
    figure.draw_without_rendering()
    axis = figure.axes[0]
    assert axis.get_xscale() == "log"
    low, high = axis.get_xlim()
    ticks = axis.xaxis.get_major_ticks() + axis.xaxis.get_minor_ticks()
    labels = [one.label1 for one in ticks if low <= one.get_loc() <= high and one.label1.get_text()]
    places = sorted((box.x0, box.x1) for box in (one.get_window_extent() for one in labels))
    assert len(places) >= 2
    assert all(left[1] < right[0] for left, right in pairwise(places))


def test_56_methods_have_styles_of_their_own_and_names_are_no_formulas(made_up_summary):
    line = made_up_summary.lines[0]
    many = tuple(renamed(line, f"$m_{i}$") for i in range(56))
    many = replace(made_up_summary, lines=many)
    keys = expected_loss_plot.over_costs(many).legends[0].get_lines()
    styles = {(key.get_color(), key.get_marker()) for key in keys}
    assert styles == set(product(expected_loss_plot.COLOURS, expected_loss_plot.MARKERS))
    assert ">$m_0$<" in expected_loss_plot.cost_picture(many)
