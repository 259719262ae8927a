"""What three training sizes say of doubling the rows, in made-up worlds whose truth is known."""

import sys

import numpy as np
import pytest
from paths import ROOT

sys.path.append(str(ROOT / "studies" / "decision"))
import doubling_worlds as worlds

from lorada.decision.statistics import Estimate


@pytest.mark.parametrize("name", ["linear in log rows", "saturated"])
def test_the_interval_of_the_measured_doubling_holds_the_truth(name):
    curve, random = worlds.CURVES[name], np.random.default_rng(66)
    truth = worlds.true_score(curve, 1.0, 0.13) - worlds.true_score(curve, 0.5, 0.13)
    held = []
    for _ in range(80):
        tables = worlds.draw(curve, 200, 0.13, random)
        measured = worlds.predictions(tables)["half to all, measured"]
        held.append(measured.low <= truth <= measured.high)
    assert np.mean(held) > 0.9


def test_the_slope_on_log_rows_promises_too_much_where_a_method_is_saturated():
    curve, random = worlds.CURVES["saturated"], np.random.default_rng(66)
    truth = worlds.true_score(curve, 2.0, 0.05) - worlds.true_score(curve, 1.0, 0.05)
    said = []
    for _ in range(20):
        tables = worlds.draw(curve, 1000, 0.05, random)
        said.append(worlds.predictions(tables)["next: slope on log rows"].value)
    assert np.mean(said) > truth + 3


def test_the_shrunk_power_law_follows_sharp_gains_and_lies_between_nothing_and_the_last_one():
    sharp = [Estimate(value, 0.1, 100.0) for value in (8.0, 4.0, 12.0)]
    assert worlds.shrunk_power_law(*sharp).value == pytest.approx(2.0, abs=0.2)
    vague = [Estimate(value, 5.0, 100.0) for value in (8.0, 4.0, 12.0)]
    prediction = worlds.shrunk_power_law(*vague)
    assert prediction.low < prediction.value < prediction.high
    assert prediction.high - prediction.low > 5
