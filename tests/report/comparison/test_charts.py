"""The charts of a comparison, as specifications: their data, fronts and styles."""

import dataclasses
import json

import pytest
from made_up_summary import made_up_summary

pytest.importorskip("altair", reason="needs the extra compare")

from lorada.report.comparison import charts


def rows_of(spec):
    """The data of a chart."""
    (rows,) = spec["datasets"].values()
    return rows


def scales(spec, channel):
    """Method → value of a channel, such as a colour, over all layers of a chart."""
    found = {}
    for layer in spec.get("layer", [spec]):
        if scale := layer["encoding"].get(channel, {}).get("scale"):
            found |= {
                name: str(value)
                for name, value in zip(scale["domain"], scale["range"], strict=True)
            }
    return found


def test_a_point_is_on_the_front_if_all_that_cost_no_more_score_less():
    assert charts.pareto_front([3, 1, 2, 2], [9, 5, 4, 6]) == {0, 1, 3}
    assert charts.pareto_front([1, 1, 2], [4, 5, 5]) == {1}


def test_a_cost_that_was_not_measured_has_no_chart():
    summary = made_up_summary()
    lines = tuple(dataclasses.replace(line, peak_memory_gib=None) for line in summary.lines)
    found = charts.pareto_charts(dataclasses.replace(summary, lines=lines))
    assert list(found) == ["parameters", "time"]


def test_an_axis_is_logarithmic_if_costs_differ_by_much():
    summary = made_up_summary()
    small = dataclasses.replace(summary.lines[0], trainable=100)
    wide = dataclasses.replace(summary, lines=(small, *summary.lines[1:]))
    kinds = [
        charts.pareto_charts(one)["parameters"]["layer"][0]["encoding"]["x"]["scale"]["type"]
        for one in (summary, wide)
    ]
    assert kinds == ["linear", "log"]


def test_thinning_keeps_the_first_and_the_last_point_of_a_curve():
    curve = [(step, 1.0 / step) for step in range(1, 1001)]
    kept = charts.thin_out(curve, 100)
    assert len(kept) == 100
    assert (kept[0], kept[-1]) == (curve[0], curve[-1])
    assert charts.thin_out(curve, 1000) == curve


def test_a_loss_that_is_no_number_is_a_gap_in_its_curve():
    summary = made_up_summary(methods=("lora",))
    summary.histories["lora"][5] = (6, float("nan"))
    (spec,) = charts.loss_charts(summary).values()
    (rows,) = spec["datasets"].values() if "datasets" in spec else (spec["data"]["values"],)
    assert rows[5] == {"method": "lora", "step": 6, "loss": None}
    json.dumps(spec, allow_nan=False)


def test_thirty_five_methods_differ_in_colour_and_marker_or_dash():
    summary = made_up_summary([f"method{i}" for i in range(35)])
    pareto = charts.pareto_charts(summary)["parameters"]
    (loss,) = charts.loss_charts(summary).values()
    for spec, second in ((pareto, "shape"), (loss, "strokeDash")):
        channel = "stroke" if second == "shape" else "color"
        colours, others = scales(spec, channel), scales(spec, second)
        assert len({(colours[name], others[name]) for name in colours}) == 35


def test_a_method_has_one_colour_in_all_charts_and_budgets():
    summary = made_up_summary(budgets=("0.1%", "0.2%"))
    pareto = charts.pareto_charts(summary)
    losses = charts.loss_charts(summary)
    assert list(losses) == ["0.1%", "0.2%"]
    colours = [scales(spec, "color") for spec in (*pareto.values(), *losses.values())]
    for name in colours[0]:
        assert len({found[name] for found in colours}) == 1


def test_a_comparison_without_a_score_has_no_charts():
    summary = made_up_summary()
    nothing = dataclasses.replace(summary, lines=summary.lines[-1:], histories={})
    assert charts.pareto_charts(nothing) == {}
    assert charts.loss_charts(nothing) == {}
    assert charts.interval_chart(nothing) is None
