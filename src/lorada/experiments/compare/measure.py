"""Measures a few training steps of each candidate, and says what a comparison would take.

``lorada compare --dry-run`` prints it. The steps are real: in a process of its own, with the model
and the longest rows. So times and memory of training are upper bounds, but for the scoring, which
is not measured.
"""

import json
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorada.experiments import own_process
from lorada.experiments.compare.jobs import comparison_jobs
from lorada.experiments.compare.plan import Candidate, Plan
from lorada.experiments.compare.spec import Comparison
from lorada.experiments.queue.job import Report
from lorada.experiments.queue.queue import last_line
from lorada.experiments.queue.simulate import makespan
from lorada.runs.data.rows import Rows
from lorada.runs.folder.result import peak_memory
from lorada.runs.prepare import prepare_training
from lorada.runs.recipe import Recipe
from lorada.runs.training.setup import set_up
from lorada.support.progress import only_reports

STEPS = 3  # the first does not count, as it is slower than those after it


def estimate(comparison: Comparison, plan: Plan, slots: int, report: Report) -> dict[str, Any]:
    """What a comparison would take.

    Args:
        comparison: what to compare.
        plan: its candidates and steps.
        slots: how many jobs run at once.
        report: called with a line before each measurement.

    Returns:
        ``candidates``: those of the plan, each with ``runs``, ``seconds_per_step``,
        ``peak_memory_bytes`` and ``seconds`` of all its trainings (None where it cannot be run);
        ``jobs``, ``steps``, ``slots``, and ``seconds``, the time of the whole queue.
    """
    jobs = comparison_jobs(comparison, plan, Path("/"))
    seconds: dict[str, float] = {}
    rows = []
    for candidate in plan.candidates:
        mine = [job.name for job in jobs if job.name.startswith(f"{candidate.name} ")]
        found: dict[str, Any] = {"seconds_per_step": None, "peak_memory_bytes": None}
        reason = candidate.reason
        if reason is None:
            report(f"measuring {STEPS} steps of {candidate.name}")
            work = partial(measure_steps, _recipe(comparison, plan, candidate))
            try:
                found = own_process.call(work)
            except Exception as error:  # of any class, as in a run
                reason = last_line(error)
        each = found["seconds_per_step"]
        whole = None if each is None else each * plan.steps
        seconds.update(dict.fromkeys(mine, whole or 0.0))
        rows.append({
            **asdict(candidate), "reason": reason, "runs": len(mine), **found,
            "seconds": None if whole is None else whole * len(mine),
        })  # fmt: skip
    after = {job.name: job.after for job in jobs}
    return {
        "candidates": rows,
        "jobs": len(jobs),
        "steps": plan.steps,
        "slots": slots,
        "seconds": makespan(seconds, after, slots),
    }


def _recipe(comparison: Comparison, plan: Plan, candidate: Candidate) -> Recipe:
    settings = {
        "seed": comparison.seeds[0],
        "max_steps": STEPS,
        "per_device_train_batch_size": plan.batch,
        "save_strategy": "no",
    }
    return comparison.run_recipe(
        candidate.method, "-", parts=candidate.parts, training=settings
    ).model_copy(update={"eval_data": None})


def measure_steps(recipe: Recipe) -> dict[str, Any]:
    """Train a few steps on the longest rows, in this process; nothing is kept.

    Returns:
        ``seconds_per_step``, and ``peak_memory_bytes`` of the process (or of the accelerator).
    """
    clock = _Clock()
    with only_reports(), tempfile.TemporaryDirectory() as scratch:
        prepared = prepare_training(recipe.model_copy(update={"output": scratch}))
        if not recipe.packing:  # packed rows are all as long as they may be
            args = recipe.training
            size = args["per_device_train_batch_size"] * args.get("gradient_accumulation_steps", 1)
            prepared = replace(prepared, rows=_longest(prepared.rows, STEPS * size))
        set_up(prepared, [clock], quiet=True).trainer.train()
    steps = len(clock.ends) - 1
    return {
        "seconds_per_step": (clock.ends[-1] - clock.ends[0]) / steps,
        "peak_memory_bytes": peak_memory(),
    }


def _longest(rows: Rows, count: int) -> Rows:
    """The rows with the most characters."""
    order = sorted(range(len(rows.rows)), key=lambda i: -len(json.dumps(rows.rows[i])))
    return rows.part(order[:count])


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the time."""
        self.ends.append(time.monotonic())
