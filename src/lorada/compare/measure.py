"""Measures a few training steps of each candidate, before a comparison and at its end.

The steps are real: in a process of its own, with the model. ``lorada compare --dry-run`` measures
the longest rows and says what a comparison would take. So times and memory of training are upper
bounds, but for the scoring, which is not measured.

At the end of a comparison all candidates are measured in turns, on the first rows, with nothing
else of the comparison beside them. The trainings' own times would depend on what ran beside each.
"""

import json
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorada.compare.candidate import Candidate
from lorada.compare.jobs import own_process
from lorada.compare.jobs.job import Job, Report
from lorada.compare.jobs.queue import last_line
from lorada.compare.plan import ComparisonPlan
from lorada.compare.spec import Comparison
from lorada.compare.trainings import reads, settled, trainings_of
from lorada.data.task_rows import Rows
from lorada.runs.recipe import Recipe
from lorada.runs.result import peak_memory
from lorada.support.files import json_text, write_atomic
from lorada.support.progress import only_reports
from lorada.training.build_trainer import set_up
from lorada.training.inputs import prepare_training

STEPS = 3  # the first does not count, as it is slower than those after it
TURNS = 2  # at the end; the fastest counts, since other work can only slow a step down
TIMES = "times"  # the folder of a comparison that has them


def forecast(
    comparison: Comparison, plan: ComparisonPlan, slots: int, report: Report
) -> dict[str, Any]:
    """What a comparison would take.

    Args:
        comparison: what to compare.
        plan: its candidates and steps.
        slots: how many jobs run at once.
        report: called with a line before each measurement.

    Returns:
        ``candidates``: those of the plan, each with ``runs``, ``seconds_per_step``,
        ``peak_memory_bytes`` and ``seconds`` of all its trainings (None where it cannot be run);
        ``jobs``, ``steps``, ``slots``, and ``seconds``, which the whole queue takes at most.

    Raises:
        ValueError: if none can be run, with the reason of the first.
    """
    rows, trainings = [], 0
    for candidate in plan.candidates:
        found: dict[str, Any] = {"seconds_per_step": None, "peak_memory_bytes": None}
        reason, runs = candidate.reason, trainings_of(comparison, plan, candidate)
        trainings += runs
        if reason is None:
            report(f"measuring {STEPS} steps of {candidate.name}")
            work = partial(measure_steps, _recipe(comparison, plan, candidate), longest=True)
            try:
                found = own_process.call(work)
            except Exception as error:  # of any class, as in a run
                reason = last_line(error)
        each = found["seconds_per_step"]
        whole = None if each is None else each * plan.steps
        rows.append({
            **asdict(candidate), "reason": reason, **found,
            "runs": runs,
            "seconds": None if whole is None else whole * runs,
        })  # fmt: skip
    if all(row["reason"] is not None for row in rows):
        raise ValueError(f"no method can be run: {rows[0]['reason']}")
    seconds = [row["seconds"] or 0.0 for row in rows]
    return {
        "candidates": rows,
        "jobs": trainings,
        "steps": plan.steps,
        "slots": slots,
        # Graham's bound for jobs of which some wait for others, none for one of another candidate.
        "seconds": sum(seconds) / slots + max(seconds, default=0.0) * (1 - 1 / slots),
    }


def _recipe(comparison: Comparison, plan: ComparisonPlan, candidate: Candidate) -> Recipe:
    settings = {
        "seed": comparison.seeds[0],
        # Schedules in steps must fit; the clock stops the training after the measured steps.
        "max_steps": max(STEPS, plan.steps),
        "per_device_train_batch_size": plan.batch,
        "save_strategy": "no",
        "report_to": [],
    }
    return comparison.run_recipe(
        candidate.method, "-", parts=candidate.parts, training=settings
    ).model_copy(update={"eval_data": None})


def time_jobs(comparison: Comparison, plan: ComparisonPlan, folder: Path) -> list[Job]:
    """The jobs that measure the time of a step, in turns and one after another."""
    found: list[Job] = []
    for turn in range(1, TURNS + 1):
        for candidate in plan.runnable:
            path = folder / TIMES / candidate.path / f"turn{turn}.json"
            taken = settled(comparison, candidate, folder)
            found.append(Job(
                name=f"{candidate.name} time of a step, turn {turn}",
                work=partial(keep_time, _recipe(comparison, plan, taken), path),
                folder=path.parent,
                done=path.is_file,
                after=tuple(job.name for job in found[-1:]),
                reads=reads(comparison),
            ))  # fmt: skip
    return found


def keep_time(recipe: Recipe, path: Path, *, report: Report) -> None:
    """Measure the time of a step, and write it as JSON: null where it cannot be measured."""
    try:
        seconds = measure_steps(recipe, longest=False)["seconds_per_step"]
    except Exception as error:  # of any class: the method itself may not train
        report(last_line(error))
        seconds = None
    write_atomic(path, json_text({"seconds_per_step": seconds}) + "\n")


def measure_steps(recipe: Recipe, *, longest: bool) -> dict[str, Any]:
    """Train the first few steps of a training, in this process; nothing is kept.

    Args:
        recipe: of the training.
        longest: whether on the longest rows; else on the first.

    Returns:
        ``seconds_per_step`` of the fastest, and ``peak_memory_bytes`` of the process (or of the
        accelerator).
    """
    clock = _Clock()
    with only_reports(), tempfile.TemporaryDirectory() as scratch:
        prepared = prepare_training(recipe.model_copy(update={"output": scratch}))
        if longest and not recipe.packing:  # packed rows are all as long as they may be
            args = recipe.training
            size = args["per_device_train_batch_size"] * args.get("gradient_accumulation_steps", 1)
            prepared = replace(prepared, rows=_longest(prepared.rows, STEPS * size))
        set_up(prepared, [clock], quiet=True).trainer.train()
    return {
        "seconds_per_step": min(end - began for began, end in pairwise(clock.ends)),
        "peak_memory_bytes": peak_memory(),
    }


def _longest(rows: Rows, count: int) -> Rows:
    """The rows with the most characters."""
    order = sorted(range(len(rows.rows)), key=lambda i: -len(json.dumps(rows.rows[i])))
    return rows.part(order[:count])


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when each step ends, and stops the training when enough are measured."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the time."""
        self.ends.append(time.monotonic())
        control.should_training_stop |= len(self.ends) == STEPS
