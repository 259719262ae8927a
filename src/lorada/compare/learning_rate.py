"""The search for a learning rate: several rates, each tried in a training of its own.

Every method and size is searched in the same way: its default rate, √10 times as much, √10 times
as little, then further to the better side until the best rate has a worse one on each side, and to
higher rates where losses are as good as equal; trials that are left try half a step beside the
best. If the user gives rates, all try these, and more beyond an end only. A method with several
settings to choose from, such as ranks, has a search of each. A map beside other parts has a rate of
its own: it keeps its default until the learning rate is found, and is then searched in the same
way.

A trial trains as long as a final run, on the training rows without those that are set aside. Its
loss on the latter is measured at the end, and not before: high rates are often behind in the
middle of a training and ahead at its end. The final runs take what had the lowest loss.

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
from lorada.compare.stored_plan import SEARCH_FILE, Point, Search, Trial, mapping_in, search_in
from lorada.runs.folder import HeldError, holds_run
from lorada.runs.recipe import Recipe
from lorada.runs.result import RESULT_FILE, read_result
from lorada.support.error_messages import out_of_memory
from lorada.support.files import json_text, write_atomic
from lorada.training.callbacks import DivergedError
from lorada.training.train import train

FURTHER = 3  # trials at most beyond an end of the first ones
FACTOR = 10**0.5  # between a rate and the next one
# Losses that differ by a smaller share count as equal, and of equal ones the highest rate leads on:
# where the rates are too low to learn anything, chance alone says which loss is the lowest.
TIE = 0.005
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
        of_rate = [trial for trial in trials if trial.map_factor == 1.0]
        for choice in range(len(self.recipes)):
            of_choice = [trial for trial in of_rate if trial.choice == choice]
            rate = next_value("rate", of_choice, first[: self.trials], self.trials)
            if rate is not None:
                return self._point(choice, rate)
        best = best_trial(of_rate)
        if best is None or not self.has_own_map_rate:
            return None
        at_best = [
            trial for trial in trials if (trial.choice, trial.rate) == (best.choice, best.rate)
        ]
        factor = next_value("map_factor", at_best, (1.0, 1 / FACTOR, FACTOR), 3)
        return None if factor is None else self._point(best.choice, best.rate, factor)

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


def next_value(
    name: str, tried: Sequence[Trial], first: Sequence[float], trials: int
) -> float | None:
    """The next learning rate, or another factor, to try; None if that is enough.

    A trial that diverged or failed is worse than any other; below only such, lower ones follow.

    Args:
        name: of the value in the trials.
        tried: the trials so far in which nothing else differs.
        first: the values to begin with.
        trials: how many there are, without up to ``FURTHER`` beyond an end of those before.
    """
    if len(tried) < len(first):
        return first[len(tried)]
    if trials < 2 or len(tried) >= trials + FURTHER:
        return None
    by_value = {getattr(trial, name): trial.loss_or_infinity for trial in tried}
    values, best = sorted(by_value), best_trial(tried)
    place = 0
    if best is not None:
        # A loss may be negative in a unit of the user's own, so the tie is a share of its size.
        highest = best.loss_or_infinity + TIE * abs(best.loss_or_infinity)
        place = max(i for i, value in enumerate(values) if by_value[value] <= highest)
    if place == 0:
        return float(values[0] / FACTOR)
    if place == len(values) - 1:
        return float(values[-1] * FACTOR)
    if len(tried) >= trials:
        return None
    # Half a step: into the wider gap beside the best, of equal ones to the better side.
    middle = values[place]
    beside = (values[place - 1], values[place + 1])
    gaps = {one: round(abs(math.log10(one / middle)), 6) for one in beside}
    return math.sqrt(middle * min(beside, key=lambda one: (-gaps[one], by_value[one])))


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the lowest loss, of equal ones the first; None if none has ended."""
    ended = [trial for trial in trials if trial.loss is not None]
    return min(ended, key=lambda trial: (trial.loss, trial.number), default=None)


def search_rate(space: Space, folder: Path) -> None:
    """Do the trials of a search that are not done yet, then write ``search.json``."""
    trials: list[Trial] = []
    while (point := space.following(trials)) is not None:
        number = len(trials)
        run = folder / f"trial-{number}"
        if not (run / TRIAL_FILE).is_file():
            what = f"trial {number}{_in_words(space, point)}"
            loss, failed = _try(space.recipe_of(point), run, trials, what)
            trial = Trial(**asdict(point), number=number, loss=loss, failed=failed)
            for pattern in WEIGHTS:
                for path in run.glob(pattern):
                    path.unlink() if path.is_file() else shutil.rmtree(path)
            write_atomic(run / TRIAL_FILE, json_text(asdict(trial)) + "\n")
            report(f"{what}: {_outcome(trial)}")
        trials.append(mapping_in(run / TRIAL_FILE, Trial))
    best = best_trial(trials)
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


def _outcome(trial: Trial) -> str:
    if trial.loss is None:
        return trial.failed or "the loss became NaN"
    return f"loss {trial.loss:.4f}"


def _try(
    recipe: Recipe, run: Path, before: Sequence[Trial], what: str
) -> tuple[float | None, str | None]:
    """Train one trial, ``what`` in words, or go on with it; return its loss, or why it failed.

    Raises:
        Exception: if it failed and no trial before it has ended, or for want of memory or disk
            space, or while another process trains it: that does not depend on what it tries.
    """
    try:
        if not (run / RESULT_FILE).is_file():
            train_on(recipe.model_copy(update={"output": str(run)}), what)
        return loss_of(run), None
    except DivergedError:
        return None, None
    except (OSError, HeldError):
        raise
    except Exception as error:  # of any class, as in a run
        if out_of_memory(error) or best_trial(before) is None:
            raise
        return None, last_line(error)


def loss_of(run: Path) -> float | None:
    """The loss of a trial on the rows set aside; None if it is not finite."""
    losses = [one["eval_loss"] for one in read_result(run)["history"] if "eval_loss" in one]
    return float(losses[-1]) if losses[-1] is not None and math.isfinite(losses[-1]) else None


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
