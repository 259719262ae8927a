"""The search for a learning rate: which rates are tried, what is kept, and how it goes on."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorada.compare import learning_rate
from lorada.compare.learning_rate import Space, search_rate
from lorada.runs.recipe import Recipe
from lorada.runs.result import RunResult, StoredRecipe, write_result
from lorada.training.callbacks import DivergedError

STEPS, ROOT = 8, 10**0.5
AS_IT_IS = 99.0  # the loss before the first step: far above all that trials measure
WORSE = [9.9, 9.9, 9.9, 9.9]
RECIPE = Recipe(
    model="-", output="-", dev_rows=8, method="lora",
    training={"learning_rate": 1e-3, "max_steps": STEPS},
)  # fmt: skip


class Script:
    """A training that has given losses instead of training; ``killed_at`` ends it there.

    ``losses`` has those of each trial, the last at its end, and trials beyond them have worse ones;
    or it is a function of a recipe. An error among the losses is raised.
    """

    def __init__(self, losses, killed_at=None, guessing=None):
        self.losses, self.killed_at, self.recipes = losses, killed_at, {}
        self.guessing = guessing  # the loss of one answer for all rows

    @property
    def rates(self):
        return [recipe.training["learning_rate"] for recipe in self.recipes.values()]

    def train(self, recipe, *, resume, quiet, callbacks):
        self.recipes[recipe.output] = recipe
        tried = list(self.recipes).index(recipe.output)
        if callable(self.losses):
            losses = [self.losses(recipe)]
        else:
            losses = self.losses[tried] if tried < len(self.losses) else WORSE
        for number, loss in enumerate(losses, start=1):
            if isinstance(loss, Exception):
                raise loss
            if math.isnan(loss):
                raise DivergedError("the loss became nan")
            if (tried, number * STEPS // len(losses)) == self.killed_at:
                self.killed_at = None
                raise OSError("killed")
        history = [{"step": STEPS, "loss": 1.0}, {"step": STEPS, "eval_loss": losses[-1]}]
        Path(recipe.output).mkdir(parents=True, exist_ok=True)
        if recipe.training.get("eval_on_start"):
            history.insert(0, {"step": 0, "eval_loss": AS_IT_IS})
        result = RunResult(
            recipe=StoredRecipe(), history=history, metrics={}, labels=[], form="prompt",
            guessing_loss=self.guessing,
        )  # fmt: skip
        write_result(Path(recipe.output), result)
        return SimpleNamespace(interrupted=False)


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Runs a search whose trials measure the given losses; returns its ``search.json``."""

    def run(losses, killed_at=None, place=None, given=(), trials=None, guessing=None, **space):
        place = place or tmp_path / "search"
        script = Script(losses, killed_at, guessing)
        monkeypatch.setattr(learning_rate, "train", script.train)
        space = Space(**{
            "recipes": [RECIPE], "trials": trials or len(given) or len(losses),
            "given_rates": given,
            **space,
        })  # fmt: skip
        try:
            search_rate(space, place)
        except OSError:
            search_rate(space, place)
        found = json.loads((place / "search.json").read_text())
        assert len(found["trials"]) <= space.most_trials
        return found, script

    return run


def test_a_trial_is_judged_by_its_loss_at_the_end_of_its_training(tmp_path):
    history = [{"step": step, "eval_loss": loss} for step, loss in ((0, 9.0), (4, 0.5), (8, 2.0))]
    result = RunResult(metrics={}, labels=[], form="prompt", history=history)
    write_result(tmp_path, result)
    assert learning_rate.loss_of(tmp_path) == 2.0


FALLING = [4.0, 3.0, 2.0, 1.0]


def bowl(best, map_best=None):
    """The loss of a recipe: the further from the best rates, in decades, the higher."""

    def loss(recipe):
        loss = abs(math.log10(recipe.training["learning_rate"] / best))
        own = recipe.parts.get("lmam", {}).get("map_learning_rate")
        return loss if map_best is None else loss + abs(math.log10(own / map_best))

    return loss


@pytest.mark.parametrize(
    ("best", "steps"),  # half decades from the default rate
    [
        (1.3e-3, [0, 1, -1, 0.5]),  # half a step to the better side
        (8e-4, [0, 1, -1, -0.5]),
        (1e-2, [0, 1, -1, 2, 3]),
        (2e-4, [0, 1, -1, -2]),
        (1e-7, [0, 1, -1, -2, -3, -4, -5]),  # at most so many
    ],
)
def test_the_search_climbs_from_the_default_until_the_best_rate_has_a_worse_one_on_each_side(
    search, best, steps
):
    found, script = search(bowl(best), trials=4)
    assert script.rates == pytest.approx([1e-3 * ROOT**step for step in steps])
    assert found["default"] == 1e-3
    # It lies between the rates that were tried, and at an end it is the last of them.
    assert found["rate"] == pytest.approx(max(best, min(script.rates)), rel=0.15)


@pytest.mark.more
def test_where_nothing_is_learned_yet_the_search_goes_up_though_a_lower_loss_is_below(search):
    """The losses of a method whose default rate is too low for the steps that there are."""
    losses = {0: 0.6982, 1: 0.6981, -1: 0.6978, 2: 0.6907, 3: 0.5021, 4: 0.4110, 5: 0.4830}

    def loss(recipe):
        return losses[round(math.log(recipe.training["learning_rate"] / 1e-3, ROOT))]

    found, script = search(loss, trials=4)
    assert script.rates == pytest.approx([1e-3 * ROOT**step for step in losses])
    assert found["rate"] == pytest.approx(1e-3 * ROOT**4)


def test_while_nothing_is_learned_lower_and_higher_rates_follow_in_turn(search):
    """The default is far too high, as that of a larger model, or far too low."""

    def at(best):
        # Up to half a decade above the best rate something is learned, and a decade below it.
        def loss(recipe):
            away = math.log10(recipe.training["learning_rate"] / best)
            return 0.4 + 0.2 * abs(away) if -1.1 < away < 0.5 else 0.694

        return loss

    found, script = search(at(4e-5), trials=4, guessing=0.693)
    steps = [round(2 * math.log10(rate / 1e-3)) for rate in script.rates]
    assert steps == [0, 1, -1, -3, -4, -2]
    assert found["rate"] == pytest.approx(4e-5, rel=0.4)
    assert [trial["guessing"] for trial in found["trials"]] == [0.693] * len(steps)

    found, script = search(at(8e-2), trials=4, guessing=0.693, place=Path(found_beside(script)))
    steps = [round(2 * math.log10(rate / 1e-3)) for rate in script.rates]
    assert steps[:5] == [0, 1, -1, -3, 3]
    assert found["rate"] == pytest.approx(8e-2, rel=0.4)


def found_beside(script):
    """A folder for another search, beside that of a script."""
    return Path(next(iter(script.recipes))).parent.parent / "another"


def test_no_rate_above_one_that_diverged_follows_where_nothing_is_learned(search):
    losses = [[0.694], [math.nan], [0.694], [0.694], [0.694], [0.5]]
    _, script = search(losses, trials=4, guessing=0.693)
    steps = [round(2 * math.log10(rate / 1e-3)) for rate in script.rates]
    assert steps[:6] == [0, 1, -1, -3, -5, -7]


def test_without_answers_that_repeat_the_model_as_it_is_has_learned_nothing(search):
    """Its loss is measured before the first step, of the first trial alone."""
    found, script = search([[99.0], [99.0], [99.0], [2.0]], trials=3)
    asked = [recipe.training.get("eval_on_start", False) for recipe in script.recipes.values()]
    assert asked == [True] + [False] * (len(asked) - 1)
    assert script.rates[3] == pytest.approx(1e-3 / ROOT**3)
    assert {trial["guessing"] for trial in found["trials"]} == {99.0}


def test_a_rate_beside_one_at_which_nothing_is_learned_is_kept_away_from(search):
    losses = {0: 0.40, 1: 0.693, -1: 0.42}

    def loss(recipe):
        return losses[round(math.log(recipe.training["learning_rate"] / 1e-3, ROOT))]

    found, _ = search(loss, trials=3, guessing=0.693)
    assert 4e-4 < found["rate"] < 8e-4


@pytest.mark.more
def test_trials_that_are_left_halve_the_wider_gap_beside_the_best(search):
    _, script = search(bowl(1.3e-3), trials=7)
    steps = [0, 1, -1, 0.5, -0.5, 0.25, 0.125]
    assert script.rates == pytest.approx([1e-3 * ROOT**step for step in steps])


def test_rates_that_the_user_gives_are_tried_as_they_are(search):
    rates = [2e-3, 7e-4, 3e-4]
    found, script = search([FALLING, [3.0, 2.0, 1.0, 0.5], FALLING], given=rates)
    assert script.rates == rates
    assert found["rate"] == 7e-4


@pytest.mark.more
@pytest.mark.parametrize("side", [1, -1])
def test_beyond_the_best_rate_at_an_end_more_are_tried_until_it_is_inside(search, side):
    losses = [[3.0], [2.0], [1.0], [0.5], [0.7]]
    rates = [1e-3 * 3.0 ** (side * i) for i in range(3)]
    found, script = search(losses, given=rates, trials=3)
    assert script.rates[3:] == pytest.approx([rates[2] * 10 ** (side * i / 2) for i in (1, 2)])
    assert found["rate"] == script.rates[3]
    assert [trial["number"] for trial in found["trials"]] == list(range(5))


def test_a_trial_that_diverged_is_an_end_that_is_worse(search):
    found, script = search([[1.0], [math.nan], [2.0]], given=[1e-3, 1e-2], trials=2)
    assert found["rate"] == 1e-3
    assert (found["trials"][1]["loss"], found["trials"][1]["failed"]) == (None, None)
    assert [trial["rate"] for trial in found["trials"]] == script.rates
    assert script.rates == pytest.approx([1e-3, 1e-2, 1e-3 / 10**0.5])


def test_if_every_trial_diverges_lower_rates_follow_and_the_reason_names_all(search, tmp_path):
    found, script = search([[math.nan]] * 5, trials=2)
    assert found["rate"] is None
    assert script.rates == pytest.approx([1e-3 * ROOT**step for step in (0, 1, -1, -2, -3)])
    with pytest.raises(ValueError, match=r"NaN at every learning rate that was tried: 0\.001, 0\."):
        Space([RECIPE], 2).chosen_recipe(tmp_path / "search")


def test_a_trial_that_fails_counts_as_worse_once_another_has_ended(search, tmp_path):
    broken = RuntimeError("a line before\nsvd did not converge")
    found, script = search([[1.0], [broken], [2.0]], trials=3)
    failed = found["trials"][1]
    assert (failed["loss"], failed["failed"]) == (None, "svd did not converge")
    assert 1e-3 / ROOT < found["rate"] < 1e-3  # away from the rate at which it fails
    assert len(script.rates) == 3


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError])
def test_a_trial_without_memory_ends_the_search_as_that_is_not_the_rates_fault(search, kind):
    with pytest.raises(kind, match="out of memory"):
        search([[1.0], [kind("CUDA error: out of memory")], [2.0]], trials=3)


@pytest.mark.more
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
        return script.train(recipe, **kwargs)

    script = Script([FALLING])
    monkeypatch.setattr(learning_rate, "train", train)
    search_rate(Space([RECIPE], 1), tmp_path / "search")
    kept = {path.name for path in (tmp_path / "search" / "trial-0").iterdir()}
    assert kept == {"result.json", "runs", "trial.json"}


MAP_BESIDE = {"map_rate": 5e-3}


@pytest.mark.more
@pytest.mark.parametrize(
    ("map_best", "factors"),
    [
        (4e-3, [1, 1 / ROOT, ROOT]),
        (3e-4, [1, 1 / ROOT, ROOT, 1 / ROOT**2, 1 / ROOT**3]),
        (2e-2, [1, 1 / ROOT, ROOT, ROOT**2]),
    ],
)
def test_a_map_beside_other_parts_is_searched_at_the_chosen_rate(search, map_best, factors):
    def loss(recipe):  # both rates count, the learning rate more
        return 9 * bowl(1e-3)(recipe) + bowl(1e-3, map_best)(recipe)

    found, script = search(loss, trials=3, **MAP_BESIDE)
    maps = [recipe.parts["lmam"]["map_learning_rate"] for recipe in script.recipes.values()]
    assert maps[:3] == [5e-3] * 3
    assert script.rates[3:] == [1e-3] * (len(factors) - 1)
    assert [5e-3, *maps[3:]] == pytest.approx([5e-3 * factor for factor in factors])
    assert found["rate"] == 1e-3
    assert found["map_rate"] == pytest.approx(map_best, rel=0.12)


@pytest.mark.more
def test_a_learning_rate_far_from_its_default_is_found_beside_a_map_whose_rate_is_right(search):
    def loss(recipe):
        return bowl(1e-2, 5e-3)(recipe)

    found, _ = search(loss, trials=4, **MAP_BESIDE)
    assert found["rate"] == pytest.approx(1e-2)
    assert found["map_rate"] == pytest.approx(5e-3, rel=0.12)


@pytest.mark.parametrize(("given", "rate"), [((), 1e-3), ((2e-3,), 2e-3)])
def test_where_nothing_is_searched_the_rate_is_the_default_or_the_given_one(given, rate):
    chosen = Space([RECIPE], 1, given, map_rate=5e-3).chosen_recipe(None)
    assert (chosen.training["learning_rate"], chosen.parts) == (rate, {})


@pytest.mark.more
@pytest.mark.parametrize("killed_at", [None, (2, STEPS), (5, STEPS), (9, STEPS)])
def test_of_several_settings_the_best_goes_on_after_a_search_of_each(search, tmp_path, killed_at):
    ranks = [RECIPE.model_copy(update={"parts": {"lora": {"r": rank}}}) for rank in (4, 8, 16)]

    def loss(recipe):
        return bowl(1e-3, 1e-3)(recipe) + abs(recipe.parts["lora"]["r"] - 8)

    space = {"recipes": ranks, "trials": 3, **MAP_BESIDE}
    found, script = search(loss, killed_at=killed_at, **space)
    tried = [recipe.parts["lora"]["r"] for recipe in script.recipes.values()]
    assert tried == [4] * 3 + [8] * 3 + [16] * 3 + [8] * 3
    assert found["choice"] == 1
    assert Space(**space).chosen_recipe(tmp_path / "search").parts["lora"] == {"r": 8}
