"""The search for a learning rate: several rates, each tried in a training of its own.

Every method and size is searched in the same way (``rate_rule.py``): its default rate, √10 times as
much, √10 times as little, then further to the better side until the best rate has a worse one on
each side; trials that are left try half a step beside the best. While none has learned anything,
lower and higher rates follow in turn. If the user gives rates, all try these, and more beyond an
end only. A method with several settings to choose from, such as ranks, has a search of each. A map
beside other parts has a rate of its own: it keeps its default until the learning rate is found, and
is then searched in the same way.

A trial trains as long as a final run, on the training rows without those that are set aside. Its
loss on the latter is measured at the end, and not before: high rates are often behind in the
middle of a training and ahead at its end. The final runs take the rate with the lowest loss once
losses are smoothed over the rates. It may lie between rates that were tried, unless the user gave
them, or a map's own rate is searched at it.

The trials of a search run one after another in one process. Which is next follows from the trials
that are stored, so a search that was killed goes on with the same trial.
"""

import gc
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lorada.compare.jobs.job import last_line, report
from lorada.compare.rate_rule import FACTOR, FURTHER, guessing_loss_of, next_value, taken_value
from lorada.compare.stored_plan import SEARCH_FILE, Point, Search, Trial, record_in, search_in
from lorada.runs.folder import TRIAL_FILE, HeldError, holds_run
from lorada.runs.recipe import Recipe
from lorada.runs.result import RESULT_FILE, read_result
from lorada.support.error_messages import out_of_memory
from lorada.support.files import json_text, write_atomic
from lorada.training.callbacks import DivergedError
from lorada.training.train import train

SAID_EVERY = 5.0  # seconds between two lines on the steps of a training
MAP, MAP_RATE = "lmam", "map_learning_rate"  # maps may have a learning rate of their own
FIRST_FACTORS = (1.0, FACTOR, 1 / FACTOR)  # of the default rate, where the user gives no rates
# Of a map's own rate, whose first trial is the one with the best learning rate. A lower rate is
# tried first.
FIRST_MAP_FACTORS = (1.0, 1 / FACTOR, FACTOR)
# What a trial's run keeps only until its loss is known.
WEIGHTS = ("adapter", "model", "checkpoint-*")


@dataclass(frozen=True)
class Space:
    """What a search chooses from, and in which order."""

    # One for each setting of the method, at the default learning rate, with the number of steps and
    # the rows to set aside.
    recipes: Sequence[Recipe]
    trials: int  # how many rates are tried for each, without those beyond an end of them
    given_rates: Sequence[float] = ()  # the rates to try, if the user gave them
    # Where that of maps beside other parts starts, if it is to be searched; else it is as their
    # config says.
    map_rate: float | None = None

    @property
    def default_rate(self) -> float:
        """The method's own learning rate."""
        return float(self.recipes[0].training["learning_rate"])

    @property
    def has_own_map_rate(self) -> bool:
        """Whether the rate of the maps is searched too."""
        return self.map_rate is not None and self.trials > 1

    @property
    def most_trials(self) -> int:
        """How many trials there may be; one rate is no range."""
        of_each_setting = self.trials + FURTHER if self.trials > 1 else self.trials
        count = len(self.recipes) * of_each_setting
        if self.has_own_map_rate:
            count += len(FIRST_MAP_FACTORS) - 1 + FURTHER  # the first was tried with the rates
        return count

    @property
    def usual_trials(self) -> int:
        """How many trials there usually are: a map's own rate takes two to five more."""
        count = len(self.recipes) * self.trials
        if self.has_own_map_rate:
            count += 3
        return min(self.most_trials, count)

    def next_point(self, trials: Sequence[Trial]) -> Point | None:
        """What to try after the trials so far; None for nothing."""
        first_rates = [self.default_rate * factor for factor in FIRST_FACTORS]
        if self.given_rates:
            first_rates = list(self.given_rates)
        for choice in range(len(self.recipes)):
            rate = next_value(
                "rate",
                _trials_of_setting(trials, choice),
                first_rates[: self.trials],
                self.trials,
                divides_wide=not self.given_rates,
            )
            if rate is not None:
                return self._point(choice, rate)

        # The rates of all settings are searched: only that of a map may be left.
        best = self._best_rate(trials)
        if best is None or not self.has_own_map_rate:
            return None
        map_factor = next_value(
            "map_factor", _trials_at_rate(trials, best), FIRST_MAP_FACTORS, len(FIRST_MAP_FACTORS)
        )
        if map_factor is None:
            return None
        return self._point(best.choice, best.rate, map_factor)

    def best_point(self, trials: Sequence[Trial]) -> Point | None:
        """What the final runs take after all trials; None if none has ended with a loss."""
        best = self._best_rate(trials)
        if best is None or not self.has_own_map_rate:
            return best
        map_factor = taken_value("map_factor", _trials_at_rate(trials, best))
        if map_factor is None:
            return best
        return self._point(best.choice, best.rate, map_factor.value)

    def _best_rate(self, trials: Sequence[Trial]) -> Point | None:
        """The setting and the learning rate with the lowest loss."""
        # A rate of the user's is taken as it is. That of a map is searched at a rate whose own
        # trial is the first of that search, so there it cannot lie between two that were tried.
        between = not self.given_rates and not self.has_own_map_rate
        best = None
        lowest_loss = math.inf
        for choice in range(len(self.recipes)):
            rate = taken_value("rate", _trials_of_setting(trials, choice), between=between)
            if rate is not None and rate.loss < lowest_loss:
                best = self._point(choice, rate.value)
                lowest_loss = rate.loss
        return best

    def _point(self, choice: int, rate: float, map_factor: float = 1.0) -> Point:
        """What a trial with these values tries, with the rate of maps if that is searched."""
        map_rate = None
        if self.map_rate is not None and self.has_own_map_rate:
            map_rate = self.map_rate * map_factor
        return Point(choice, rate, map_factor, map_rate)

    def recipe_of(self, point: Point) -> Recipe:
        """The recipe of what was tried or chosen."""
        recipe = self.recipes[point.choice]
        update: dict[str, Any] = {"training": {**recipe.training, "learning_rate": point.rate}}
        if point.map_rate is not None:
            map_settings = {**recipe.parts.get(MAP, {}), MAP_RATE: point.map_rate}
            update["parts"] = {**recipe.parts, MAP: map_settings}
        return recipe.model_copy(update=update)

    def chosen_recipe(self, folder: Path | None) -> Recipe:
        """The recipe that the search in a folder has found; for None that of the first rate.

        Raises:
            ValueError: if the search is not finished, or found no rate with a loss.
        """
        if folder is None:
            rate = self.given_rates[0] if self.given_rates else self.default_rate
            return self.recipe_of(self._point(0, rate))
        search = search_in(folder)
        if search is None:
            raise ValueError(f"the search in {folder} is not finished: run the command again")
        if search.choice is None or search.rate is None:
            tried = ", ".join(f"{trial.rate:.2g}" for trial in search.trials)
            raise ValueError(f"the loss became NaN at every learning rate that was tried: {tried}")
        return self.recipe_of(Point(search.choice, search.rate, map_rate=search.map_rate))


def _trials_of_setting(trials: Sequence[Trial], choice: int) -> list[Trial]:
    """The trials of a setting in which maps have their rate in its ratio to the learning rate."""
    return [trial for trial in trials if trial.choice == choice and trial.map_factor == 1.0]


def _trials_at_rate(trials: Sequence[Trial], best: Point) -> list[Trial]:
    """The trials at the best learning rate, in which only the rate of maps differs."""
    return [trial for trial in trials if trial.choice == best.choice and trial.rate == best.rate]


def search_rate(space: Space, folder: Path) -> None:
    """Do the trials of a search that are not done yet, then write ``search.json``."""
    trials: list[Trial] = []
    point = space.next_point(trials)
    while point is not None:
        trials.append(_trial(space, point, trials, folder))
        point = space.next_point(trials)

    best = space.best_point(trials)
    search = Search(space.default_rate, trials)
    if best is not None:
        search = Search(
            space.default_rate, trials, best.choice, best.rate, best.map_factor, best.map_rate
        )
    write_atomic(folder / SEARCH_FILE, json_text(asdict(search)) + "\n")


def _trial(space: Space, point: Point, trials_before: Sequence[Trial], folder: Path) -> Trial:
    """The next trial of a search, as it is stored; it is trained if it is not done yet."""
    number = len(trials_before)
    run = folder / f"trial-{number}"
    stored = record_in(run / TRIAL_FILE, Trial)
    if stored is not None:
        return stored
    name = f"trial {number}{_in_words(space, point)}"
    outcome = _train_trial(space.recipe_of(point), run, trials_before, name)
    trial = Trial(**asdict(point), number=number, **asdict(outcome))
    # The weights go before the trial counts as done: a killed search would leave them for ever.
    for pattern in WEIGHTS:
        for path in run.glob(pattern):
            path.unlink() if path.is_file() else shutil.rmtree(path)
    write_atomic(run / TRIAL_FILE, json_text(asdict(trial)) + "\n")
    report(f"{name}: {_outcome_in_words(trial)}")
    return trial


def _in_words(space: Space, point: Point) -> str:
    """What a trial tries: `` of setting 1 of 2, learning rate 0.001 (map 0.0004)``."""
    words = ""
    settings = len(space.recipes)
    if settings > 1:
        words += f" of setting {point.choice + 1} of {settings}"
    words += f", learning rate {point.rate:.2g}"
    if point.map_rate is not None:
        words += f" (map {point.map_rate:.2g})"
    return words


def _outcome_in_words(trial: Trial) -> str:
    if trial.loss is None:
        return trial.failed or "the loss became NaN"
    return f"loss {trial.loss:.4f}"


@dataclass(frozen=True)
class _Outcome:
    """What a trial has measured."""

    loss: float | None = None  # None if it diverged or failed
    guessing: float | None = None  # the loss of guessing on the same rows, if it is known
    failed: str | None = None  # the last line of the error of one that failed


def _train_trial(recipe: Recipe, run: Path, trials_before: Sequence[Trial], name: str) -> _Outcome:
    """Train one trial, or go on with it; ``name`` begins the lines that it reports.

    Raises:
        Exception: if it failed and no trial before it has ended, or for want of memory or disk
            space, or while another process trains it: that does not depend on what it tries.
    """
    guessing = guessing_loss_of(trials_before)
    if guessing is None:  # the model as it is is measured too, before the first step
        training = {**recipe.training, "eval_on_start": True}
        recipe = recipe.model_copy(update={"training": training})
    try:
        if not (run / RESULT_FILE).is_file():
            train_on(recipe.model_copy(update={"output": str(run)}), name)
        loss = loss_of(run)
        return _Outcome(loss, guessing_in(run) if guessing is None else guessing)
    except DivergedError:
        return _Outcome(guessing=guessing)
    except (OSError, HeldError):
        raise
    except Exception as error:  # of any class, as in a run
        has_ended_before = any(trial.loss is not None for trial in trials_before)
        if out_of_memory(error) or not has_ended_before:
            raise
        return _Outcome(guessing=guessing, failed=last_line(error))


def loss_of(run: Path) -> float | None:
    """The loss of a trial on the rows set aside; None if it is not finite."""
    history = read_result(run).history
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    # A trial is judged at its end: high rates are often behind in the middle, and ahead there.
    last_loss = losses[-1]
    if last_loss is None or not math.isfinite(last_loss):
        return None
    return float(last_loss)


def guessing_in(run: Path) -> float | None:
    """The loss of what has learned nothing, on the rows that a trial set aside; None if unknown.

    It is that of one answer for all rows or that of the model as it is, whichever is lower.
    """
    result = read_result(run)
    losses = [result.guessing_loss]
    losses += [entry.get("eval_loss") for entry in result.history if entry.get("step") == 0]
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return min(finite, default=None)


def train_on(recipe: Recipe, name: str) -> None:
    """Begin a training or go on with it, as ``lorada train --resume`` does.

    ``name`` begins the lines that it reports.

    Raises:
        KeyboardInterrupt: if it was interrupted and saved.
    """
    resume = holds_run(Path(recipe.output))
    trained = train(recipe, resume=resume, quiet=True, callbacks=[StepReports(name)])
    if trained.interrupted:
        raise KeyboardInterrupt
    gc.collect()  # the Trainer refers to itself, so its model would stay beside the next


class StepReports(TrainerCallback):  # type: ignore[misc]
    """Reports the step of a training every few seconds, in a line that begins with ``name``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last_report = 0.0  # seconds of a clock that never goes back

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step, if that is due."""
        now = time.monotonic()
        if now - self._last_report > SAID_EVERY:
            self._last_report = now
            report(f"{self._name}: step {state.global_step} of {state.max_steps}")
