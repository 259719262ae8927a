"""The search for a learning rate: several rates, each tried in a training of its own.

Every method and size gets the same number of trials over the same range: first its default rate,
then points of one low-discrepancy sequence; or all try the same rates, if the user gives them. If
the best of them is the lowest or the highest, further rates are tried on that side, until the best
has a worse one on each side or three more are tried. So no method is held back by where its range
happens to end.

A trial trains as long as a final run, on the training rows without those that are set aside. Its
loss on the latter is measured in the middle and at the end, and it is stopped in the middle if it
is worse than the median of the trials before. The final runs take the rate with the lowest loss.

Optuna keeps the trials in ``study.log``. A search that was killed goes on with the same trial, and
the trials of one candidate run one after another, so its result does not depend on timing.
"""

import json
import math
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
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
STUDY_FILE, SEARCH_FILE, TRIAL_FILE = "study.log", "search.json", "trial.json"
MAP, MAP_RATE = "lmam", "map_learning_rate"  # maps may have a learning rate of their own
# What a trial's run keeps only until its loss is known.
WEIGHTS = ("adapter", "model", TRAINED_FILE, "checkpoint-*")


def rates_to_try(default: float, trials: int) -> list[float]:
    """The default rate, then rates spread over ``RATE_RANGE``; more trials only add to the end."""
    optuna = _optuna()
    sampler = optuna.samplers.QMCSampler(qmc_type="halton", scramble=True, seed=SEED)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({"rate": default})
    rates = []
    for _ in range(trials):
        trial = study.ask()
        rates.append(float(trial.suggest_float("rate", *RATE_RANGE, log=True)))
        study.tell(trial, 0.0)
    return rates


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


def trial_done(folder: Path, number: int, trials: int) -> bool:
    """Whether a trial is done or not needed; the last that is needed writes the search's result."""
    if (folder / SEARCH_FILE).is_file():
        return True
    if not (_run_of(folder, number) / TRIAL_FILE).is_file():
        return False
    return number < trials - 1 or _next_rate(folder, number, trials) is not None


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


def run_trial(
    recipe: Recipe, folder: Path, number: int, trials: int, given: Sequence[float] = (), *,
    report: Report,
) -> None:  # fmt: skip
    """Do one trial of a search, as far as it is not done; after the last, write ``search.json``.

    From number ``trials`` on a trial lies beyond an end of the rates tried before. The last that is
    needed, by ``further_rate``, writes ``search.json``; those after it are done then.

    Args:
        recipe: of the candidate, with the rows to set aside, the number of steps, and the method's
            own learning rate.
        folder: of the candidate's search.
        number: of this trial, from 0 to ``most_trials`` - 1; those before it are done.
        trials: how many there are without further ones.
        given: the rates to try, if the user gave them.
        report: called with a line about the trial.

    Raises:
        KeyboardInterrupt: if the training was interrupted and saved.
    """
    run, default = _run_of(folder, number), float(recipe.training["learning_rate"])
    if not (run / TRIAL_FILE).is_file():
        rates = given or rates_to_try(default, trials)
        rate = rates[number] if number < trials else further_rate(_tried(folder, number))
        if rate is None:
            raise ValueError(f"{folder} has no {SEARCH_FILE}, though its search has ended")
        found = _try(recipe, folder, number, rate)
        for pattern in WEIGHTS:
            for path in run.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_atomic(run / TRIAL_FILE, json_text(found) + "\n")
        report(f"learning rate {found['rate']:.2g}: {_outcome(found)}")
    if number >= trials - 1 and _next_rate(folder, number, trials) is None:
        _finish(folder, _tried(folder, number + 1), default)


def _next_rate(folder: Path, number: int, trials: int) -> float | None:
    """The rate to try after a trial that is done; None if the search ends with it."""
    last = number == most_trials(trials) - 1
    return None if last else further_rate(_tried(folder, number + 1))


def _tried(folder: Path, count: int) -> list[dict[str, Any]]:
    """What is kept of the first trials."""
    return [
        json.loads((_run_of(folder, number) / TRIAL_FILE).read_text(encoding="utf-8"))
        for number in range(count)
    ]


def _outcome(found: dict[str, Any]) -> str:
    if found["diverged"]:
        return "the loss became NaN"
    at = f", stopped at step {found['steps']}" if found["pruned"] else ""
    return f"loss {found['loss']:.4f}{at}"


def _finish(folder: Path, tried: list[dict[str, Any]], default: float) -> None:
    """Write ``search.json``, with the rate of the lowest loss among the trials that ended."""
    best = best_trial(tried)
    search = {
        "default": default,
        "range": list(RATE_RANGE),
        "rate": best and best["rate"],
        "trials": tried,
    }
    write_atomic(folder / SEARCH_FILE, json_text(search) + "\n")


def _try(recipe: Recipe, folder: Path, number: int, rate: float) -> dict[str, Any]:
    """Train one trial, or go on with it; return what ``search.json`` keeps of it."""
    study = _study(folder, recipe.training["max_steps"])
    trial = _trial(study, number, rate)
    run = _run_of(folder, number)
    before = study.trials[number].user_attrs
    began = time.monotonic()
    # If it was killed after it was stopped or diverged, it must not train on from a checkpoint.
    if not {"pruned", "diverged"} & before.keys() and not (run / RESULT_FILE).is_file():
        mine = at_rate(recipe.model_copy(update={"output": str(run)}), rate)
        try:
            watch = MeasureTrial(study, trial, number)
            with only_reports():
                trained = train(mine, resume=holds_run(run), quiet=True, callbacks=[watch])
            if trained.interrupted:
                raise KeyboardInterrupt
        except DivergedError:
            trial.set_user_attr("diverged", True)
    if "seconds" not in before:
        trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
    return _tell(study, number)


def _tell(study: Any, number: int) -> dict[str, Any]:
    """Tell Optuna how a trial ended; return what ``search.json`` keeps of it."""
    known = study.trials[number]
    losses, kept = known.intermediate_values, known.user_attrs
    steps = max(losses, default=0)
    pruned, diverged = "pruned" in kept, "diverged" in kept
    loss = None if diverged else losses[steps]
    if not known.state.is_finished():
        states = _optuna().trial.TrialState
        if pruned or diverged:
            study.tell(number, state=states.PRUNED)
        else:
            study.tell(number, loss)
    return {
        "number": number, "rate": known.params["rate"], "loss": loss, "steps": steps,
        "pruned": pruned, "diverged": diverged, "seconds": kept["seconds"],
    }  # fmt: skip


class MeasureTrial(TrainerCallback):  # type: ignore[misc]
    """Reports the loss on the rows set aside to Optuna, and stops a trial that is behind."""

    def __init__(self, study: Any, trial: Any, number: int) -> None:
        self._study, self._trial, self._number = study, trial, number

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report a loss.

        Raises:
            DivergedError: if it is NaN or infinite.
        """
        loss, step = kwargs["metrics"]["eval_loss"], state.global_step
        if not math.isfinite(loss):
            raise DivergedError(f"the loss on the rows set aside became {loss} at step {step}")
        if step not in self._study.trials[self._number].intermediate_values:
            self._trial.report(loss, step)
        if step < state.max_steps and self._trial.should_prune():
            self._trial.set_user_attr("pruned", step)
            control.should_training_stop = True


def _study(folder: Path, steps: int) -> Any:
    optuna = _optuna()
    folder.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / STUDY_FILE))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="learning rate",
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),  # never asked, as every rate is given
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=steps // 2),
    )


def _trial(study: Any, number: int, rate: float) -> Any:
    """The trial of this number, which may have begun before."""
    if number == len(study.trials):
        study.enqueue_trial({"rate": rate})
    known = study.trials[number]
    waiting = known.state == _optuna().trial.TrialState.WAITING
    trial = study.ask() if waiting else _optuna().trial.Trial(study, known._trial_id)
    if not known.state.is_finished():
        _rate_of(trial)
    return trial


def _rate_of(trial: Any) -> float:
    """The rate of a trial, from a range wide enough for rates beyond each end."""
    low, high = RATE_RANGE
    wider = 10 * FACTOR**FURTHER
    return float(trial.suggest_float("rate", low / wider, high * wider, log=True))


def _run_of(folder: Path, number: int) -> Path:
    return folder / f"trial-{number}"


def _optuna() -> Any:
    with needs_extra("compare"):
        import optuna
        import optuna.storages.journal
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna
