"""The pictures of a comparison: what they show, and that they can be told apart."""

from dataclasses import replace
from itertools import pairwise, product
from xml.etree import ElementTree

import pytest
from made_up_comparison import renamed

pytest.importorskip("matplotlib", reason="needs the extra compare")

from lorada.compare.report import pictures


def with_lines(summary, **changes):
    """The summary with the same changes to each line."""
    return replace(summary, lines=tuple(replace(line, **changes) for line in summary.lines))


def test_a_point_is_on_the_front_if_all_that_cost_no_more_score_less():
    assert pictures.pareto_front([3, 1, 2, 2], [9, 5, 4, 6]) == {0, 1, 3}
    assert pictures.pareto_front([1, 1, 2], [4, 5, 5]) == {1}


def test_each_picture_is_drawn_from_its_numbers_and_the_same_each_time(made_up_summary):
    drawn = pictures.pictures(made_up_summary)
    assert list(drawn) == ["costs", "intervals"]
    assert pictures.pictures(made_up_summary) == drawn
    for svg in drawn.values():
        ElementTree.fromstring(svg)
        assert "currentColor" in svg
    bare = with_lines(made_up_summary, score=None)
    assert pictures.pictures(bare) == {}


def test_a_cost_that_was_not_measured_has_no_axis_and_one_that_differs_much_is_logarithmic(
    made_up_summary,
):
    two = with_lines(made_up_summary, peak_memory_gib=None)
    axes = pictures.over_costs(two).axes
    assert [axis.get_xlabel() for axis in axes] == ["trained parameters", "seconds per step"]
    assert [axis.get_xscale() for axis in axes] == ["linear", "linear"]
    small = replace(two, lines=(renamed(two.lines[0], "small", trainable=100), *two.lines[1:]))
    assert pictures.over_costs(small).axes[0].get_xscale() == "log"


def test_numbers_of_a_logarithmic_axis_do_not_overlap(made_up_summary):
    first, second = made_up_summary.lines[:2]
    sizes = renamed(first, "ia3", trainable=13_824), renamed(second, "large", trainable=400_000)
    figure = pictures.over_costs(replace(made_up_summary, lines=sizes))
    figure.draw_without_rendering()
    axis = figure.axes[0]
    low, high = axis.get_xlim()
    ticks = axis.xaxis.get_major_ticks() + axis.xaxis.get_minor_ticks()
    labels = [one.label1 for one in ticks if low <= one.get_loc() <= high and one.label1.get_text()]
    places = sorted((box.x0, box.x1) for box in (one.get_window_extent() for one in labels))
    assert len(places) >= 2
    assert all(left[1] < right[0] for left, right in pairwise(places))


def test_intervals_reach_from_low_to_high_with_letters_and_baselines(made_up_summary):
    axis = pictures.intervals(made_up_summary).axes[0]
    every = [*made_up_summary.scored, *made_up_summary.baselines]
    every.sort(key=lambda one: -one.score)
    ends = [bars.get_segments()[0][:, 0].tolist() for bars in axis.collections]
    assert ends == [pytest.approx([one.low, one.high]) for one in every]
    assert [text.get_text() for text in axis.texts] == [getattr(o, "letter", "") for o in every]


def test_56_methods_have_styles_of_their_own(made_up_summary):
    line = made_up_summary.lines[0]
    many = replace(made_up_summary, lines=tuple(renamed(line, f"m{i}") for i in range(56)))
    keys = pictures.over_costs(many).legends[0].get_lines()
    styles = {(key.get_color(), key.get_marker()) for key in keys}
    assert styles == set(product(pictures.COLOURS, pictures.MARKERS))


def test_the_expected_loss_is_drawn_over_each_cost_with_the_margin(made_up_summary):
    summary = made_up_summary
    figure = pictures.over_costs(summary)
    known = [line for line in summary.lines if line.expected_loss is not None]
    axis = figure.axes[0]
    points = [container.lines[0].get_xydata()[0].tolist() for container in axis.containers]
    assert points == [[line.trainable, line.expected_loss] for line in known]
    dashed = next(line for line in axis.lines if line.get_linestyle() == "--")
    assert set(dashed.get_ydata()) == {summary.margin} == {1.0}
    (axis, *_) = pictures.over_costs(with_lines(summary, expected_loss=None)).axes
    assert axis.get_ylabel() == "score (percent)"
    points = [container.lines[0].get_xydata()[0].tolist() for container in axis.containers]
    assert points == [[line.trainable, line.score] for line in summary.scored]
    assert all(line.get_linestyle() != "--" for line in axis.lines)
