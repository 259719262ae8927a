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
from lorada.compare.stored_plan import SEARCH_FILE, Point, Search, Trial, mapping_in, search_in
from lorada.runs.folder import HeldError, holds_run
from lorada.runs.recipe import Recipe
from lorada.runs.result import RESULT_FILE, read_result
from lorada.support.error_messages import out_of_memory
from lorada.support.files import json_text, write_atomic
from lorada.training.callbacks import DivergedError
from lorada.training.train import train

SAID_EVERY = 5.0  # seconds between two lines on the steps of a training
TRIAL_FILE = "trial.json"
MAP, MAP_RATE = "lmam", "map_learning_rate"  # maps may have a learning rate of their own
# What a trial's run keeps only until its loss is known.
WEIGHTS = ("adapter", "model", "checkpoint-*")


@dataclass(frozen=True)
class Space:
    """What a search chooses from."""

    # One for each setting of the method, at the default learning rate, with the number of steps and
    # the rows to set aside.
    recipes: Sequence[Recipe]
    trials: int  # how many rates are tried for each, without those beyond an end of them
    given: Sequence[float] = ()  # the rates to try, if the user gave them
    # Where that of maps beside other parts starts, if it is to be searched; else it is as their
    # config says.
    map_rate: float | None = None

    @property
    def default(self) -> float:
        """The method's own learning rate."""
        return float(self.recipes[0].training["learning_rate"])

    @property
    def has_own_map_rate(self) -> bool:
        """Whether the rate of the maps is searched too."""
        return self.map_rate is not None and self.trials > 1

    @property
    def most(self) -> int:
        """How many trials there may be; one rate is no range."""
        each = self.trials + FURTHER if self.trials > 1 else self.trials
        return len(self.recipes) * each + (2 + FURTHER if self.has_own_map_rate else 0)

    @property
    def usual(self) -> int:
        """How many trials there usually are: a map's own rate takes two to five more."""
        return min(self.most, len(self.recipes) * self.trials + 3 * self.has_own_map_rate)

    def following(self, trials: Sequence[Trial]) -> Point | None:
        """What to try after the trials so far; None for nothing."""
        first = self.given or [self.default * factor for factor in (1.0, FACTOR, 1 / FACTOR)]
        fills = not self.given
        for choice in range(len(self.recipes)):
            of_choice = _of_rates(trials, choice)
            rate = next_value("rate", of_choice, first[: self.trials], self.trials, fills=fills)
            if rate is not None:
                return self._point(choice, rate)
        best = self._best_rate(trials)
        if best is None or not self.has_own_map_rate:
            return None
        at_best = _of_factors(trials, best)
        factor = next_value("map_factor", at_best, (1.0, 1 / FACTOR, FACTOR), 3)
        return None if factor is None else self._point(best.choice, best.rate, factor)

    def best(self, trials: Sequence[Trial]) -> Point | None:
        """What the final runs take after all trials; None if none has ended with a loss."""
        best = self._best_rate(trials)
        if best is None or not self.has_own_map_rate:
            return best
        factor = taken_value("map_factor", _of_factors(trials, best))
        return best if factor is None else self._point(best.choice, best.rate, factor.value)

    def _best_rate(self, trials: Sequence[Trial]) -> Point | None:
        """The setting and the learning rate with the lowest loss."""
        # The rate of a map is searched at a rate whose own trial is the first of that search.
        between = not self.given and not self.has_own_map_rate
        best, lowest = None, math.inf
        for choice in range(len(self.recipes)):
            rate = taken_value("rate", _of_rates(trials, choice), between=between)
            if rate is not None and rate.loss < lowest:
                best, lowest = self._point(choice, rate.value), rate.loss
        return best

    def _point(self, choice: int, rate: float, factor: float = 1.0) -> Point:
        map_rate = (self.map_rate or 0.0) * factor if self.has_own_map_rate else None
        return Point(choice, rate, factor, map_rate)

    def recipe_of(self, point: Point) -> Recipe:
        """The recipe of what was tried or chosen."""
        recipe = self.recipes[point.choice]
        parts, training = recipe.parts, {**recipe.training, "learning_rate": point.rate}
        if point.map_rate is not None:
            parts = {**parts, MAP: {**parts.get(MAP, {}), MAP_RATE: point.map_rate}}
        return recipe.model_copy(update={"parts": parts, "training": training})

    def chosen(self, folder: Path | None) -> Recipe:
        """The recipe that the search in a folder has found; for None that of the first rate."""
        if folder is None:
            return self.recipe_of(self._point(0, self.given[0] if self.given else self.default))
        search = search_in(folder)
        if search is None:
            raise ValueError(f"the search in {folder} is not finished: run the command again")
        if search.choice is None or search.rate is None:
            tried = ", ".join(f"{trial.rate:.2g}" for trial in search.trials)
            raise ValueError(f"the loss became NaN at every learning rate that was tried: {tried}")
        return self.recipe_of(Point(search.choice, search.rate, map_rate=search.map_rate))


def _of_rates(trials: Sequence[Trial], choice: int) -> list[Trial]:
    """The trials of a setting in which maps have their rate in its ratio to the learning rate."""
    return [trial for trial in trials if (trial.choice, trial.map_factor) == (choice, 1.0)]


def _of_factors(trials: Sequence[Trial], best: Point) -> list[Trial]:
    """The trials at the best learning rate, in which only the rate of maps differs."""
    return [trial for trial in trials if (trial.choice, trial.rate) == (best.choice, best.rate)]


def search_rate(space: Space, folder: Path) -> None:
    """Do the trials of a search that are not done yet, then write ``search.json``."""
    trials: list[Trial] = []
    while (point := space.following(trials)) is not None:
        number = len(trials)
        run = folder / f"trial-{number}"
        if not (run / TRIAL_FILE).is_file():
            what = f"trial {number}{_in_words(space, point)}"
            outcome = _try(space.recipe_of(point), run, trials, what)
            trial = Trial(**asdict(point), number=number, **asdict(outcome))
            for pattern in WEIGHTS:
                for path in run.glob(pattern):
                    path.unlink() if path.is_file() else shutil.rmtree(path)
            write_atomic(run / TRIAL_FILE, json_text(asdict(trial)) + "\n")
            report(f"{what}: {_outcome_in_words(trial)}")
        trials.append(mapping_in(run / TRIAL_FILE, Trial))
    best = space.best(trials)
    search = Search(space.default, trials)
    if best is not None:
        search = Search(
            space.default, trials, best.choice, best.rate, best.map_factor, best.map_rate
        )
    write_atomic(folder / SEARCH_FILE, json_text(asdict(search)) + "\n")


def _in_words(space: Space, point: Point) -> str:
    settings = len(space.recipes)
    words = f" of setting {point.choice + 1} of {settings}" if settings > 1 else ""
    words += f", learning rate {point.rate:.2g}"
    return words if point.map_rate is None else f"{words} (map {point.map_rate:.2g})"


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


def _try(recipe: Recipe, run: Path, before: Sequence[Trial], what: str) -> _Outcome:
    """Train one trial, ``what`` in words, or go on with it.

    Raises:
        Exception: if it failed and no trial before it has ended, or for want of memory or disk
            space, or while another process trains it: that does not depend on what it tries.
    """
    known = guessing_loss_of(before)
    if known is None:  # the model as it is is measured too, before the first step
        recipe = recipe.model_copy(update={"training": {**recipe.training, "eval_on_start": True}})
    try:
        if not (run / RESULT_FILE).is_file():
            train_on(recipe.model_copy(update={"output": str(run)}), what)
        return _Outcome(loss_of(run), guessing_in(run) if known is None else known)
    except DivergedError:
        return _Outcome(guessing=known)
    except (OSError, HeldError):
        raise
    except Exception as error:  # of any class, as in a run
        if out_of_memory(error) or all(trial.loss is None for trial in before):
            raise
        return _Outcome(guessing=known, failed=last_line(error))


def loss_of(run: Path) -> float | None:
    """The loss of a trial on the rows set aside; None if it is not finite."""
    losses = [entry["eval_loss"] for entry in read_result(run).history if "eval_loss" in entry]
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


def train_on(recipe: Recipe, what: str) -> None:
    """Begin a training or go on with it, ``what`` in words, as ``lorada train --resume`` does.

    Raises:
        KeyboardInterrupt: if it was interrupted and saved.
    """
    resume = holds_run(Path(recipe.output))
    if train(recipe, resume=resume, quiet=True, callbacks=[Steps(what)]).interrupted:
        raise KeyboardInterrupt
    gc.collect()  # the Trainer refers to itself, so its model would stay beside the next


class Steps(TrainerCallback):  # type: ignore[misc]
    """Reports the step of a training every few seconds, in a line that begins with ``what``."""

    def __init__(self, what: str) -> None:
        self._what, self._said = what, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step, if that is due."""
        if time.monotonic() - self._said > SAID_EVERY:
            self._said = time.monotonic()
            report(f"{self._what}: step {state.global_step} of {state.max_steps}")
