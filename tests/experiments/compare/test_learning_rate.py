"""The search for a learning rate: which rates are tried, what is kept, and how it goes on."""

import json
import math
from types import SimpleNamespace

import pytest

from lorada.experiments.compare import learning_rate
from lorada.experiments.compare.learning_rate import (
    RATE_RANGE,
    at_rate,
    chosen_rate,
    rates_to_try,
    search_rate,
)
from lorada.runs.recipe import Recipe

STEPS = 8
WORSE = [9.9, 9.9, 9.9, 9.9]
RECIPE = Recipe(
    model="-", output="-", dev_rows=8, method="lora",
    training={"learning_rate": 1e-3, "max_steps": STEPS},
)  # fmt: skip


class Script:
    """A training that measures given losses instead of training; ``killed_at`` ends it there.

    Trials beyond those whose losses are given measure worse ones.
    """

    def __init__(self, losses, killed_at=None):
        self.losses, self.killed_at, self.rates, self.measured = losses, killed_at, [], []

    def train(self, recipe, *, resume, quiet, callbacks):
        (watch,) = callbacks
        control = SimpleNamespace(should_training_stop=False)
        rate = recipe.training["learning_rate"]
        self.rates.append(rate)
        tried = len(set(self.rates)) - 1
        losses = self.losses[tried] if tried < len(self.losses) else WORSE
        for number, loss in enumerate(losses, start=1):
            step = number * STEPS // len(losses)
            self.measured.append((rate, step))
            state = SimpleNamespace(global_step=step, max_steps=STEPS)
            watch.on_evaluate(None, state, control, metrics={"eval_loss": loss})
            if (len(set(self.rates)) - 1, step) == self.killed_at:
                self.killed_at = None
                raise OSError("killed")
            if control.should_training_stop:
                break
        return SimpleNamespace(interrupted=False)


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Runs a search whose trials measure the given losses; returns its ``search.json``."""

    def run(losses, killed_at=None, place=None, given=(), trials=None):
        place = place or tmp_path / "search"
        trials = trials or len(losses)
        script = Script(losses, killed_at)
        monkeypatch.setattr(learning_rate, "train", script.train)
        try:
            search_rate(RECIPE, place, trials, given, report=print)
        except OSError:
            search_rate(RECIPE, place, trials, given, report=print)
        found = json.loads((place / "search.json").read_text())
        for trial in found["trials"]:
            trial.pop("seconds")
        return found, script

    return run


FALLING = [4.0, 3.0, 2.0, 1.0]


def test_the_default_comes_first_and_others_are_spread_over_the_range():
    some, eight = rates_to_try(1e-3, 5), rates_to_try(1e-3, 8)
    assert some == eight[:5]
    assert some[0] == 1e-3
    assert len(set(eight)) == 8
    low, high = map(math.log, RATE_RANGE)
    places = [(math.log(rate) - low) / (high - low) for rate in eight]
    assert all(0 <= place <= 1 for place in places)
    assert sorted(int(4 * place) for place in places[1:5]) == [0, 1, 2, 3]


def test_rates_that_the_user_gives_are_tried_as_they_are(search):
    rates = [2e-3, 7e-4, 3e-4]
    found, script = search([FALLING, [3.0, 2.0, 1.0, 0.5], FALLING], given=rates)
    assert script.rates == rates
    assert found["rate"] == 7e-4


@pytest.mark.parametrize("side", [1, -1])
def test_beyond_the_best_rate_at_an_end_more_are_tried_until_it_is_inside(search, side):
    losses = [[3.0], [2.0], [1.0], [0.5], [0.7]]
    rates = [1e-3 * 3.0 ** (side * i) for i in range(3)]
    found, script = search(losses, given=rates, trials=3)
    assert script.rates[3:] == pytest.approx([rates[2] * 10 ** (side * i / 2) for i in (1, 2)])
    assert found["rate"] == script.rates[3]
    assert [trial["number"] for trial in found["trials"]] == list(range(5))


def test_at_most_three_rates_are_tried_beyond_an_end(search):
    losses = [[3.0], [2.0], [1.0], [0.5], [0.4], [0.3], [0.2]]
    found, script = search(losses, given=[1e-3, 1e-2, 1e-1], trials=3)
    assert len(script.rates) == 6
    assert found["rate"] == script.rates[-1] == pytest.approx(1e-1 * 10**1.5)


def test_a_trial_that_diverged_or_was_stopped_is_an_end_that_is_worse(search):
    found, script = search([[1.0], [math.nan], [2.0]], given=[1e-3, 1e-2], trials=2)
    assert found["rate"] == 1e-3
    assert [trial["rate"] for trial in found["trials"]] == script.rates
    assert script.rates == pytest.approx([1e-3, 1e-2, 1e-3 / 10**0.5])


def test_the_rate_with_the_lowest_loss_is_chosen(search, tmp_path):
    found, script = search([FALLING, [3.0, 2.0, 1.0, 0.5], [3.5, 2.5, 1.5, 0.7]])
    assert found["default"] == script.rates[0] == 1e-3
    assert found["rate"] == script.rates[1] == chosen_rate(tmp_path / "search")
    assert [trial["loss"] for trial in found["trials"]] == [1.0, 0.5, 0.7, 9.9]
    assert [trial["rate"] for trial in found["trials"]] == script.rates


def test_a_trial_behind_the_median_is_stopped_in_the_middle_and_never_chosen(search):
    found, script = search([FALLING, FALLING, [9.0, 0.0, 0.0, 0.0], [9.0, 9.0, 0.1, 0.1]])
    stopped = found["trials"][3]
    assert (stopped["pruned"], stopped["steps"], stopped["loss"]) == (True, STEPS // 2, 9.0)
    assert [trial["pruned"] for trial in found["trials"]] == [False, False, False, True, True]
    assert (script.rates[3], STEPS // 2) in script.measured
    assert (script.rates[3], STEPS) not in script.measured
    assert found["rate"] == script.rates[2]


def test_a_trial_that_diverges_has_no_loss_and_the_search_goes_on(search):
    found, _ = search([[4.0, math.nan, 0.0, 0.0], FALLING])
    first = found["trials"][0]
    assert (first["loss"], first["diverged"], first["pruned"]) == (None, True, False)
    assert found["rate"] == found["trials"][1]["rate"]


def test_if_every_trial_diverges_the_reason_names_the_rates(search, tmp_path):
    found, _ = search([[math.nan], [math.inf]])
    assert found["rate"] is None
    with pytest.raises(ValueError, match=r"NaN at every learning rate that was tried: 0\.001, 0\."):
        chosen_rate(tmp_path / "search")


@pytest.mark.parametrize("moment", [(0, 2), (1, 4), (3, 4), (3, 2)])
def test_a_search_that_is_killed_goes_on_with_the_same_trial(search, tmp_path, moment):
    losses = [FALLING, FALLING, [3.0, 2.0, 1.0, 0.5], [9.0, 9.0, 0.1, 0.1]]
    whole, _ = search(losses, place=tmp_path / "whole")
    again, _ = search(losses, killed_at=moment, place=tmp_path / "killed")
    assert again == whole


def test_a_trial_keeps_its_result_and_none_of_its_weights(tmp_path, monkeypatch):
    def train(recipe, **kwargs):
        run = tmp_path / "search" / "trial-0"
        for name in ("adapter", "checkpoint-8", "runs"):
            (run / name).mkdir(parents=True)
            (run / name / "weights").write_text("weights")
        (run / "result.json").write_text("{}")
        return script.train(recipe, **kwargs)

    script = Script([FALLING])
    monkeypatch.setattr(learning_rate, "train", train)
    search_rate(RECIPE, tmp_path / "search", 1, report=print)
    kept = {path.name for path in (tmp_path / "search" / "trial-0").iterdir()}
    assert kept == {"losses.json", "result.json", "runs", "trial.json"}


def test_the_rate_of_the_maps_keeps_its_ratio_to_the_learning_rate():
    parts = {"lmam": {"rank": 4, "map_learning_rate": 5e-3}}
    moved = at_rate(RECIPE.model_copy(update={"parts": parts}), 2e-3)
    assert moved.training["learning_rate"] == 2e-3
    assert moved.parts == {"lmam": {"rank": 4, "map_learning_rate": 1e-2}}
    assert at_rate(RECIPE, 2e-3).parts == {}
