"""The picture of a comparison: what it shows, and that methods can be told apart."""

from dataclasses import replace
from itertools import pairwise, product
from xml.etree import ElementTree

import pytest
from made_up_comparison import renamed

pytest.importorskip("matplotlib", reason="needs the extra compare")

from lorada.compare.report import expected_loss_plot, score_picture, svg_pictures
from lorada.compare.report.baseline_scores import Baseline


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
    parameters, _, seconds = expected_loss_plot.COST_AXES  # the memory is that of the model
    for axis, cost in zip(axes, (parameters, seconds), strict=True):
        each = {line.result.method: [] for line in known}
        for line in known:
            each[line.result.method].append([cost.cost_of(line), line.decided.expected_loss])
        assert points(axis) == list(each.values())
        assert set(axis.lines[-1].get_ydata()) == {made_up_summary.margin} == {1.0}
    drawn = expected_loss_plot.cost_picture(made_up_summary)
    assert expected_loss_plot.cost_picture(made_up_summary) == drawn
    for svg in (drawn.wide, drawn.narrow):
        ElementTree.fromstring(svg)
        assert "currentColor" in svg
    assert expected_loss_plot.cost_picture(with_lines(made_up_summary, without_loss)) is None


def test_a_cost_that_differs_by_less_than_its_noise_is_not_drawn(made_up_summary):
    titles = [cost.title for cost in expected_loss_plot.costs_that_differ(made_up_summary.scored)]
    assert titles == ["trained parameters", "seconds per step"]  # memory: 1.4 GB for all
    steps = [line.measured.seconds_per_step for line in made_up_summary.scored]
    noisy = []
    for line in made_up_summary.scored:
        runs = [
            replace(run, result=run.result.model_copy(
                update={"seconds_per_step": max(steps) * (1 + run.seed)}
            ))
            for run in line.result.runs
        ]  # fmt: skip
        noisy.append(replace(line, result=replace(line.result, runs=runs)))
    titles = [cost.title for cost in expected_loss_plot.costs_that_differ(noisy)]
    assert titles == ["trained parameters"]
    one_size = with_lines(
        replace(made_up_summary, lines=tuple(noisy)),
        lambda line: renamed(line, line.label, trainable=100),
    )
    assert expected_loss_plot.cost_picture(one_size) is None


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
    many = tuple(renamed(line, f"$m_{i}$", trainable=100 + i) for i in range(56))
    many = replace(made_up_summary, lines=many)
    keys = expected_loss_plot.over_costs(many).legends[0].get_lines()
    styles = {(key.get_color(), key.get_marker()) for key in keys}
    assert styles == set(product(expected_loss_plot.COLOURS, expected_loss_plot.MARKERS))
    assert ">$m_0$<" in expected_loss_plot.cost_picture(many).wide


def test_the_scores_are_drawn_with_intervals_seeds_and_the_one_to_take_marked(made_up_summary):
    lines = score_picture.score_lines(made_up_summary)
    scored = made_up_summary.scored
    assert [line.name for line in lines[: len(scored)]] == [line.label for line in scored]
    assert lines[0].kind == "pick"
    for line, candidate in zip(lines, scored, strict=False):
        assert line.ends == (candidate.decided.low, candidate.decided.high)
        means = [float(run.mean()) for run in candidate.result.scores]
        assert line.seed_scores == pytest.approx(means, rel=1e-12)
        apart = made_up_summary.decision.differ(line.name, made_up_summary.decision.highest)
        assert (line.kind == "worse") == apart
    drawn = score_picture.score_picture(made_up_summary)
    for svg in (drawn.wide, drawn.narrow):
        ElementTree.fromstring(svg)
        assert f">★ {made_up_summary.best}<" in svg
    assert "var(--mark)" in drawn.wide
    assert score_picture.score_picture(replace(made_up_summary, lines=())) is None


@pytest.mark.parametrize("width", [svg_pictures.WIDE, svg_pictures.NARROW])
def test_names_and_numbers_of_many_baselines_do_not_overlap(made_up_summary, width):
    baselines = [Baseline(f"{n} examples in the prompt", 60 + n / 50, 58.0, 63.0) for n in range(9)]
    many = replace(made_up_summary, baselines=(*made_up_summary.baselines, *baselines))
    figure = score_picture.draw_scores(score_picture.pictured_scores(many), width)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    texts = [*axes.texts, *axes.get_yticklabels()]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    count = len(many.scored) + len(many.baselines)
    assert len(boxes) >= 2 * count
    overlapping = [
        (one, other) for place, one in enumerate(boxes) for other in boxes[:place]
        if one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1
    ]  # fmt: skip
    assert overlapping == []
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_a_baseline_far_from_all_candidates_does_not_press_them_together(made_up_summary):
    scores = [score for line in made_up_summary.scored for score in line.seed_scores]
    spread = max(scores) - min(scores)
    far = Baseline("the model as it is", -20 * spread, -21 * spread, -19 * spread)
    lines = score_picture.score_lines(replace(made_up_summary, baselines=(far,)))
    left, right = score_picture.axis_ends(lines)
    assert right - left < 4 * spread
    drawn = score_picture.score_picture(replace(made_up_summary, baselines=(far,)))
    assert "An arrow" in drawn.caption
    near = replace(far, score=min(scores) - spread / 2)
    left, _ = score_picture.axis_ends(
        score_picture.score_lines(replace(made_up_summary, baselines=(near,)))
    )
    assert left < near.score
