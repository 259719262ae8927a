"""Measures a few training steps of each candidate, for ``--dry-run`` and ``--hours``.

The steps are real: in a process of its own, with the model. From them follows what the trainings of
a comparison would take: at most, if they are on the longest rows, or on average, if they are on
rows drawn at random.
"""

import json
import random
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorada.compare.curve import CURVE_SEEDS, HALVINGS
from lorada.compare.jobs.job import Job
from lorada.compare.jobs.pool import Workers
from lorada.compare.jobs.queue import Report, run_queue
from lorada.compare.spec import LEAST_RUNS, Comparison
from lorada.compare.stored_plan import Candidate, ComparisonPlan, record_in
from lorada.compare.trainings import trials_of
from lorada.data.row_lengths import EncodingLog
from lorada.data.rows.rows import Rows
from lorada.data.tokenize import encode_each, encode_options, fit_context
from lorada.runs.machine import peak_memory
from lorada.runs.recipe import Recipe
from lorada.support.files import json_text, write_atomic
from lorada.training.inputs import PreparedTraining, prepare_training
from lorada.training.models.loading import stretched
from lorada.training.setup import set_up

STEPS = 3  # the first does not count, as it is slower than those after it
AVERAGE_STEPS = 9  # on rows drawn at random, which differ in length; again without the first
UNTIL = 0.7  # of all runs, what `--until` needs (docs/studies/decision.md)


@dataclass(frozen=True)
class StepCosts:
    """What a few steps of a training took.

    Attributes:
        seconds_per_step: of the fastest step on the longest rows, or of an average step.
        peak_memory_bytes: of the process, or of the accelerator.
        start_seconds: what comes before the second step: the model is loaded, the rows are read.
    """

    seconds_per_step: float
    peak_memory_bytes: int
    start_seconds: float

    def training_seconds(self, steps: int) -> float:
        """What a whole training takes, from the start of its process to its last step."""
        return self.start_seconds + steps * self.seconds_per_step


@dataclass(frozen=True)
class CandidateForecast:
    """What the trainings of a candidate would take, at most.

    Attributes:
        candidate: of the plan; its ``reason`` says why it cannot be run, if it cannot.
        costs: of its steps; None if it cannot be run.
        runs: how many trainings it has.
        seconds: of all of them; None if it cannot be run.
    """

    candidate: Candidate
    costs: StepCosts | None
    runs: int = 0
    seconds: float | None = None

    def plain(self) -> dict[str, Any]:
        """It as JSON has it: the candidate, and what is known of its steps."""
        costs = {} if self.costs is None else asdict(self.costs)
        return {**asdict(self.candidate), **costs, "runs": self.runs, "seconds": self.seconds}


@dataclass(frozen=True)
class StageForecast:
    """The trainings of one stage of a comparison, one after another.

    Attributes:
        trainings: how many there are at most.
        probably: how many there are probably.
        seconds: of all at most.
        probably_seconds: of those that there are probably.
    """

    trainings: float = 0.0
    probably: float = 0.0
    seconds: float = 0.0
    probably_seconds: float = 0.0

    def plus(self, trainings: int, probably: int, seconds_each: float) -> "StageForecast":
        """The stage with more trainings that take so many seconds each."""
        return StageForecast(
            trainings=self.trainings + trainings,
            probably=self.probably + probably,
            seconds=self.seconds + trainings * seconds_each,
            probably_seconds=self.probably_seconds + probably * seconds_each,
        )


@dataclass(frozen=True)
class Forecast:
    """What a comparison would take.

    Attributes:
        candidates: those of the plan.
        search: the trials of all searches for a learning rate.
        seeds: the final runs.
        curve: the runs of the pick on fewer training rows, each as slow as the slowest candidate's.
        steps: of each training.
        slots: how many trainings run at once.
    """

    candidates: list[CandidateForecast]
    search: StageForecast
    seeds: StageForecast
    curve: StageForecast
    steps: int
    slots: int

    @property
    def stages(self) -> dict[str, StageForecast]:
        """The stages by name, in their order."""
        return {"search": self.search, "seeds": self.seeds, "curve": self.curve}

    @property
    def seconds(self) -> float:
        """What all of it takes at most.

        Graham's bound for jobs of which some wait for others, none for one of another candidate.
        """
        longest = max(candidate.seconds or 0.0 for candidate in self.candidates)
        total = self.search.seconds + self.seeds.seconds + self.curve.seconds
        return total / self.slots + longest * (1 - 1 / self.slots)

    @property
    def probably_seconds(self) -> float:
        """What all of it takes probably."""
        seconds = sum(stage.probably_seconds for stage in self.stages.values())
        return seconds / self.slots

    def plain(self) -> dict[str, Any]:
        """It as JSON has it."""
        return {
            "candidates": [candidate.plain() for candidate in self.candidates],
            "stages": {name: asdict(stage) for name, stage in self.stages.items()},
            "jobs": sum(candidate.runs for candidate in self.candidates),
            "steps": self.steps,
            "slots": self.slots,
            "seconds": self.seconds,
            "probably_seconds": self.probably_seconds,
        }


def forecast(
    comparison: Comparison,
    plan: ComparisonPlan,
    slots: int,
    report: Report,
    *,
    gpus_per_job: float = 1.0,
) -> Forecast:
    """What the trainings of a comparison would take, at most and probably, on the longest rows.

    At most, every search takes all trials that it may, and every seed is run. Probably, a search
    takes its usual number of trials; with ``--until`` the number of runs is a guess, ``UNTIL`` of
    all.

    Args:
        comparison: what would be run.
        plan: its plan.
        slots: how many jobs run at once.
        report: called with a line on each measurement.
        gpus_per_job: how many cards of this machine a job sees, or the share of one.

    Raises:
        ValueError: if no method can be run.
    """
    measured = _measure(comparison, plan, report, gpus_per_job)
    _refuse_none(measured)
    seeds = len(comparison.seeds)
    probable_seeds = seeds
    if comparison.until is not None:
        probable_seeds = min(seeds, max(LEAST_RUNS, round(UNTIL * seeds)))

    search, final_runs = StageForecast(), StageForecast()
    candidates = []
    for planned, candidate in zip(plan.candidates, measured, strict=True):
        if candidate.costs is None:
            candidates.append(candidate)
            continue
        seconds_each = candidate.costs.seconds_per_step * plan.steps
        trials = trials_of(comparison, plan, planned)
        search = search.plus(trials.most, trials.usual, seconds_each)
        final_runs = final_runs.plus(seeds, probable_seeds, seconds_each)
        runs = trials.most + seeds
        candidates.append(replace(candidate, runs=runs, seconds=runs * seconds_each))
    curve = StageForecast()
    if comparison.curve:  # which candidate is picked is not known yet
        slowest = max(one.costs.seconds_per_step for one in candidates if one.costs is not None)
        trainings = len(HALVINGS) * CURVE_SEEDS
        curve = curve.plus(trainings, trainings, slowest * plan.steps)
    return Forecast(candidates, search, final_runs, curve, plan.steps, slots)


def average_costs(
    comparison: Comparison, plan: ComparisonPlan, report: Report, gpus_per_job: float
) -> dict[str, StepCosts]:
    """What an average step of each candidate takes, by the candidate's path.

    Args:
        comparison: what would be run.
        plan: its plan.
        report: called with a line on each measurement.
        gpus_per_job: how many cards of this machine a job sees, or the share of one.

    Raises:
        ValueError: if no method can be run.
    """
    measured = _measure(comparison, plan, report, gpus_per_job, longest=False)
    _refuse_none(measured)
    costs = {}
    for candidate in measured:
        if candidate.costs is not None:
            costs[candidate.candidate.path] = candidate.costs
    return costs


def _refuse_none(measured: list[CandidateForecast]) -> None:
    """Refuse candidates of which none can be run."""
    if all(candidate.costs is None for candidate in measured):
        raise ValueError(f"no method can be run: {measured[0].candidate.reason}")


def _measure(
    comparison: Comparison,
    plan: ComparisonPlan,
    report: Report,
    gpus_per_job: float,
    *,
    longest: bool = True,
) -> list[CandidateForecast]:
    """The candidates, each with what a few of its steps took, or with the reason why none did."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {}
        jobs = []
        for number, candidate in enumerate(plan.candidates):
            files[candidate.path] = path = Path(scratch) / str(number) / "steps.json"
            if candidate.reason is None:
                jobs.append(_step_job(comparison, plan, candidate, path, longest=longest))
        outcomes = run_queue(jobs, Workers(1, gpus_per_job), report=report)
        measured = []
        for candidate in plan.candidates:
            costs = record_in(files[candidate.path], StepCosts)
            if costs is None and candidate.reason is None:
                candidate = replace(candidate, reason=outcomes[_job_name(candidate)].error)
            measured.append(CandidateForecast(candidate, costs))
    return measured


def _step_job(
    comparison: Comparison, plan: ComparisonPlan, candidate: Candidate, path: Path, *, longest: bool
) -> Job:
    """The job that measures the steps of a candidate."""
    recipe = _recipe(comparison, plan, candidate)
    return Job(
        name=_job_name(candidate),
        work=partial(keep_steps, recipe, path, longest=longest),
        folder=path.parent,
        done=path.is_file,
    )


def _job_name(candidate: Candidate) -> str:
    return f"a few steps of {candidate.name}"


def keep_steps(recipe: Recipe, path: Path, *, longest: bool) -> None:
    """Measure steps, and write what they take as JSON."""
    costs = measure_steps(recipe) if longest else measure_average_step(recipe)
    write_atomic(path, json_text(asdict(costs)) + "\n")


def _recipe(comparison: Comparison, plan: ComparisonPlan, candidate: Candidate) -> Recipe:
    """The recipe by which a candidate's time and memory are measured, without held-out rows."""
    settings = {
        "seed": comparison.seeds[0],
        # Schedules in steps must fit; the clock stops the training after the measured steps.
        "max_steps": max(AVERAGE_STEPS, plan.steps),
        "per_device_train_batch_size": plan.batch,
        "save_strategy": "no",
        "report_to": [],
    }
    return comparison.run_recipe(
        candidate.method, "-", parts=candidate.parts, training=settings
    ).model_copy(update={"eval_data": None})


def measure_steps(recipe: Recipe) -> StepCosts:
    """Train the first few steps of a training on its longest rows; nothing is kept."""
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare_training(recipe.model_copy(update={"output": scratch}))
        if not recipe.packing:  # packed rows are all as long as they may be
            prepared = replace(prepared, rows=_longest(prepared, _row_count(recipe, STEPS)))
        step_seconds = _train(prepared, STEPS)
    return StepCosts(
        seconds_per_step=min(step_seconds),
        peak_memory_bytes=peak_memory(),
        start_seconds=time.monotonic() - began_at - sum(step_seconds),
    )


def measure_average_step(recipe: Recipe) -> StepCosts:
    """Train a few steps on rows drawn at random; nothing is kept."""
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare_training(recipe.model_copy(update={"output": scratch}))
        rows = prepared.rows
        count = _row_count(recipe, AVERAGE_STEPS)
        if not recipe.packing and count < len(rows.rows):
            drawn = random.Random(0).sample(range(len(rows.rows)), count)
            prepared = replace(prepared, rows=rows.part(drawn))
        step_seconds = _train(prepared, AVERAGE_STEPS)
    return StepCosts(
        seconds_per_step=statistics.mean(step_seconds),
        peak_memory_bytes=peak_memory(),
        start_seconds=time.monotonic() - began_at - sum(step_seconds),
    )


def _row_count(recipe: Recipe, steps: int) -> int:
    """How many rows so many steps read."""
    args = recipe.training
    accumulated = args.get("gradient_accumulation_steps", 1)
    return steps * int(args["per_device_train_batch_size"]) * int(accumulated)


def _train(prepared: PreparedTraining, steps: int) -> list[float]:
    """Train so many steps; return the seconds of each but the first."""
    clock = _Clock(steps)
    set_up(prepared, [clock], quiet=True).trainer.train()
    return [end - start for start, end in pairwise(clock.ends)]


def _longest(prepared: PreparedTraining, count: int) -> Rows:
    """The rows with the most characters, of those that have something to learn."""
    rows = prepared.rows
    order = sorted(range(len(rows.rows)), key=lambda index: -len(json.dumps(rows.rows[index])))
    if rows.form == "text":  # which are joined
        return rows.part(order[:count])
    fitted = fit_context(prepared.recipe, stretched(prepared.config, prepared.recipe.rope_factor))
    options = encode_options(rows, fitted, prepared.kind)
    learned: list[int] = []
    # A row that is left out, as it is too long, is followed by the next ones.
    for start in range(0, len(order), count):
        longest_left = order[start : start + count]
        encoded = encode_each(rows.part(longest_left), prepared.tokenizer, options, EncodingLog())
        learned += [longest_left[index] for index, _ in encoded]
        if len(learned) >= count:
            break
    return rows.part(learned[:count])


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when each step ends, and stops the training when enough are measured."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.ends: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the time."""
        self.ends.append(time.monotonic())
        control.should_training_stop |= len(self.ends) == self._steps
