"""The search for a learning rate: several rates, each tried in a training of its own.

Every method and size gets the same number of trials over the same range: first its default rate,
then points of one low-discrepancy sequence; or all try the same rates, if the user gives them. If
the best of them is the lowest or the highest, further rates are tried on that side, until the best
has a worse one on each side or three more are tried. So no method is held back by where its range
happens to end.

A trial trains as long as a final run, on the training rows without those that are set aside. Its
loss on the latter is measured in the middle and at the end, and it is stopped in the middle if it
is worse than the median of the trials before. The final runs take the rate with the lowest loss.

The trials of a search run one after another in one process, and a search that was killed goes on
with the same trial, so its result does not depend on timing.
"""

import gc
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorada.experiments.queue.job import Report
from lorada.methods.sizes import RATE_RANGE
from lorada.runs.folder.folder import TRAINED_FILE, holds_run
from lorada.runs.folder.result import RESULT_FILE
from lorada.runs.recipe import Recipe
from lorada.runs.training.callbacks import DivergedError
from lorada.runs.training.train import train
from lorada.support.errors import needs_extra
from lorada.support.files import json_text, write_atomic
from lorada.support.progress import only_reports

MEASURED = 2  # how often a trial measures its loss on the rows that are set aside
FURTHER = 3  # trials at most beyond an end of the tried rates
FACTOR = 10**0.5  # between an end of the tried rates and the next rate beyond it
SEED = 3  # of the sequence; its first rates are 1.5e-3, 1.5e-5 and 1.5e-2
SEARCH_FILE, TRIAL_FILE = "search.json", "trial.json"
LOSSES_FILE = "losses.json"  # in the run of a trial: its losses so far, and whether it has ended
MAP, MAP_RATE = "lmam", "map_learning_rate"  # maps may have a learning rate of their own
# What a trial's run keeps only until its loss is known.
WEIGHTS = ("adapter", "model", TRAINED_FILE, "checkpoint-*")


def rates_to_try(default: float, trials: int) -> list[float]:
    """The default rate, then rates spread over ``RATE_RANGE``; more trials only add to the end."""
    with needs_extra("compare"):
        from scipy.stats.qmc import Halton

    low, high = RATE_RANGE
    points = Halton(1, scramble=True, seed=SEED).random(trials - 1)[:, 0] if trials > 1 else []
    return [default, *(low * (high / low) ** float(point) for point in points)][:trials]


def at_rate(recipe: Recipe, rate: float) -> Recipe:
    """A recipe at another learning rate.

    If its maps have a rate of their own, that one keeps its ratio to the learning rate; else
    the search would change nothing in a method that trains only maps.
    """
    parts, factor = recipe.parts, rate / recipe.training["learning_rate"]
    if MAP_RATE in parts.get(MAP, {}):
        parts = {**parts, MAP: {**parts[MAP], MAP_RATE: factor * parts[MAP][MAP_RATE]}}
    training = {**recipe.training, "learning_rate": rate}
    return recipe.model_copy(update={"parts": parts, "training": training})


def most_trials(trials: int) -> int:
    """How many trials a search may take, with those beyond an end; one rate is no range."""
    return trials + FURTHER if trials > 1 else trials


def further_rate(tried: Sequence[Mapping[str, Any]]) -> float | None:
    """The next rate to try beyond an end of the tried ones; None if the best is between others.

    A trial that was stopped or diverged is worse than the best, so a best rate beside it is inside.

    Args:
        tried: the trials so far, as ``search.json`` keeps them.
    """
    best = best_trial(tried)
    if best is None:
        return None
    rates = [one["rate"] for one in tried]
    if best["rate"] == max(rates):
        return float(best["rate"] * FACTOR)
    return float(best["rate"] / FACTOR) if best["rate"] == min(rates) else None


def best_trial(tried: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The trial with the lowest loss, of equal ones the first; None if none has ended."""
    ended = [one for one in tried if not one["pruned"] and not one["diverged"]]
    return min(ended, key=lambda one: (one["loss"], one["number"]), default=None)


def chosen_rate(folder: Path) -> float:
    """The learning rate that the search in a folder has found.

    Raises:
        ValueError: if the loss became NaN at every rate that was tried.
    """
    search = json.loads((folder / SEARCH_FILE).read_text(encoding="utf-8"))
    if search["rate"] is None:
        tried = ", ".join(f"{trial['rate']:.2g}" for trial in search["trials"])
        raise ValueError(f"the loss became NaN at every learning rate that was tried: {tried}")
    return float(search["rate"])


def search_rate(
    recipe: Recipe, folder: Path, trials: int, given: Sequence[float] = (), *, report: Report
) -> None:
    """Do the trials of a search that are not done yet, then write ``search.json``.

    Args:
        recipe: of the candidate, with the rows to set aside, the number of steps, and the method's
            own learning rate.
        folder: of the candidate's search.
        trials: how many there are, without those beyond an end of the rates tried before.
        given: the rates to try, if the user gave them.
        report: called with a line about each trial.

    Raises:
        KeyboardInterrupt: if a training was interrupted and saved.
    """
    default = float(recipe.training["learning_rate"])
    rates, tried = given or rates_to_try(default, trials), list[dict[str, Any]]()
    for number in range(most_trials(trials)):
        rate = rates[number] if number < trials else further_rate(tried)
        if rate is None:
            break
        run = folder / f"trial-{number}"
        if not (run / TRIAL_FILE).is_file():
            found = _try(
                recipe, run, [folder / f"trial-{before}" for before in range(number)], rate
            )
            for pattern in WEIGHTS:
                for path in run.glob(pattern):
                    path.unlink() if path.is_file() else shutil.rmtree(path)
            write_atomic(run / TRIAL_FILE, json_text({"number": number, **found}) + "\n")
            report(f"trial {number}, learning rate {rate:.2g}: {_outcome(found)}")
            gc.collect()  # the Trainer refers to itself, so its model would stay beside the next
        tried.append(json.loads((run / TRIAL_FILE).read_text(encoding="utf-8")))
    best = best_trial(tried)
    search = {
        "default": default,
        "range": list(RATE_RANGE),
        "rate": best and best["rate"],
        "trials": tried,
    }
    write_atomic(folder / SEARCH_FILE, json_text(search) + "\n")


def _outcome(found: dict[str, Any]) -> str:
    if found["diverged"]:
        return "the loss became NaN"
    at = f", stopped at step {found['steps']}" if found["pruned"] else ""
    return f"loss {found['loss']:.4f}{at}"


def _try(recipe: Recipe, run: Path, before: Sequence[Path], rate: float) -> dict[str, Any]:
    """Train one trial, or go on with it; return what ``search.json`` keeps of it."""
    began, watch = time.monotonic(), MeasureTrial(run, before)
    # If it was killed after it was stopped or diverged, it must not train on from a checkpoint.
    if not (watch.pruned or watch.diverged or (run / RESULT_FILE).is_file()):
        mine = at_rate(recipe.model_copy(update={"output": str(run)}), rate)
        try:
            with only_reports():
                trained = train(mine, resume=holds_run(run), quiet=True, callbacks=[watch])
            if trained.interrupted:
                raise KeyboardInterrupt
        except DivergedError:
            watch.diverged = True
            watch.save()
    steps = max(watch.losses, default=0)
    return {
        "rate": rate, "loss": None if watch.diverged else watch.losses[steps],
        "steps": steps, "pruned": watch.pruned, "diverged": watch.diverged,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


class MeasureTrial(TrainerCallback):  # type: ignore[misc]
    """Keeps the losses on the rows set aside, and stops a trial that is behind.

    It is behind if from half of the steps on its lowest loss is above the median, at the same step,
    of the trials before that were not stopped; of two at least.

    Args:
        run: the folder of the trial, which may have begun before.
        before: those of the trials before it.

    Attributes:
        losses: step → loss on the rows set aside, in nats per token.
        pruned: whether it was stopped in the middle.
        diverged: whether its loss became NaN.
    """

    def __init__(self, run: Path, before: Sequence[Path] = ()) -> None:
        self._file = run / LOSSES_FILE
        known = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        self.losses = {int(step): float(loss) for step, loss in known.get("losses", {}).items()}
        self.pruned, self.diverged = (bool(known.get(name)) for name in ("pruned", "diverged"))
        others = [MeasureTrial(other) for other in before]
        self._others = [one.losses for one in others if not one.pruned and not one.diverged]

    def save(self) -> None:
        """Write what is known of the trial."""
        known = {"losses": self.losses, "pruned": self.pruned, "diverged": self.diverged}
        write_atomic(self._file, json_text(known) + "\n")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep a loss.

        Raises:
            DivergedError: if it is NaN or infinite.
        """
        loss, step = kwargs["metrics"]["eval_loss"], state.global_step
        if not math.isfinite(loss):
            raise DivergedError(f"the loss on the rows set aside became {loss} at step {step}")
        self.losses[step] = loss
        there = [losses[step] for losses in self._others if step in losses]
        if state.max_steps // 2 <= step < state.max_steps and len(self._others) > 1 and there:
            self.pruned = min(self.losses.values()) > median(there)
            control.should_training_stop = self.pruned or control.should_training_stop
        self.save()
