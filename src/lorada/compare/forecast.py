"""Measures a few training steps of each candidate for ``lorada compare --dry-run``.

The steps are real: in a process of its own, with the model, on the longest rows. From them follows
what the trainings of a comparison would take.
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

from lorada.compare.jobs.job import Job
from lorada.compare.jobs.pool import Workers
from lorada.compare.jobs.queue import Report, run_queue
from lorada.compare.spec import LEAST_RUNS, Comparison
from lorada.compare.stored_plan import Candidate, ComparisonPlan, mapping_in
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
STAGE = ("trainings", "probably", "seconds", "probably_seconds")
UNTIL = 0.7  # of all runs, what `--until` needs in the made-up comparisons of docs/compare.md


def forecast(
    comparison: Comparison, plan: ComparisonPlan, slots: int, report: Report,
    *, gpus_per_job: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """What the trainings of a comparison would take, at most and probably, on the longest rows.

    At most, every search takes all trials that it may, and every seed is run. Probably, a search
    takes ``Space.usual`` trials; with ``--until`` the number of runs is a guess, ``UNTIL`` of all.

    Args:
        comparison: what would be run.
        plan: its plan.
        slots: how many jobs run at once.
        report: called with a line on each measurement.
        gpus_per_job: how many cards of this machine a job sees, or the share of one.

    Returns:
        ``candidates``: those of the plan, each with ``runs`` at most, ``seconds_per_step``,
        ``peak_memory_bytes`` and ``seconds`` of all its trainings at most (None where it cannot be
        run); ``stages``: name → ``trainings`` and ``seconds``, each at most and ``probably``;
        ``jobs``, ``steps``, ``slots``; ``seconds`` and ``probably_seconds`` of the whole.
    """
    rows = _measured(comparison, plan, report, gpus_per_job)
    if all(row["reason"] is not None for row in rows):
        raise ValueError(f"no method can be run: {rows[0]['reason']}")
    seeds = len(comparison.seeds)
    some = seeds
    if comparison.until is not None:
        some = min(seeds, max(LEAST_RUNS, round(UNTIL * seeds)))
    stages = {name: dict.fromkeys(STAGE, 0.0) for name in ("search", "seeds")}
    for candidate, row in zip(plan.candidates, rows, strict=True):
        row["runs"], row["seconds"] = 0, None
        if row["reason"] is None:
            whole = row["seconds_per_step"] * plan.steps
            searched = trials_of(comparison, plan, candidate)
            for stage, (most, usual) in (("search", searched), ("seeds", (seeds, some))):
                taken = most, usual, most * whole, usual * whole
                for key, number in zip(STAGE, taken, strict=True):
                    stages[stage][key] += number
            row["runs"] = searched[0] + seeds
            row["seconds"] = row["runs"] * whole
    # Graham's bound for jobs of which some wait for others, none for one of another candidate.
    last = max(row["seconds"] or 0.0 for row in rows) * (1 - 1 / slots)
    return {
        "candidates": rows,
        "stages": stages,
        "jobs": sum(row["runs"] for row in rows),
        "steps": plan.steps,
        "slots": slots,
        "seconds": sum(stage["seconds"] for stage in stages.values()) / slots + last,
        "probably_seconds": sum(stage["probably_seconds"] for stage in stages.values()) / slots,
    }


def _measured(
    comparison: Comparison, plan: ComparisonPlan, report: Report, gpus_per_job: float
) -> list[dict[str, Any]]:
    """The candidates, each with what a few of its steps took, or with the reason why none did."""
    rows: list[dict[str, Any]] = [asdict(candidate) for candidate in plan.candidates]
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / str(number) / "steps.json" for number in range(len(rows))]
        jobs = [
            Job(f"{STEPS} steps of {candidate.name}",
                partial(keep_steps, _recipe(comparison, plan, candidate), path),
                path.parent, path.is_file)
            for candidate, path in zip(plan.candidates, files, strict=True)
            if candidate.reason is None
        ]  # fmt: skip
        outcomes = run_queue(jobs, Workers(1, gpus_per_job), report=report)
        for candidate, row, path in zip(plan.candidates, rows, files, strict=True):
            if candidate.reason is None and not path.is_file():
                row["reason"] = outcomes[f"{STEPS} steps of {candidate.name}"].error
            row |= mapping_in(path)
    return rows


def keep_steps(recipe: Recipe, path: Path) -> None:
    """Measure steps with the longest rows, and write what they take as JSON."""
    write_atomic(path, json_text(measure_steps(recipe)) + "\n")


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


def measure_steps(recipe: Recipe) -> dict[str, Any]:
    """Train the first few steps of a training on its longest rows; nothing is kept.

    It returns ``seconds_per_step`` of the fastest, and ``peak_memory_bytes`` of the process (or of
    the accelerator).
    """
    clock = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare_training(recipe.model_copy(update={"output": scratch}))
        if not recipe.packing:  # packed rows are all as long as they may be
            args = recipe.training
            size = args["per_device_train_batch_size"] * args.get("gradient_accumulation_steps", 1)
            prepared = replace(prepared, rows=_longest(prepared, STEPS * size))
        set_up(prepared, [clock], quiet=True).trainer.train()
    return {
        "seconds_per_step": min(end - began for began, end in pairwise(clock.ends)),
        "peak_memory_bytes": peak_memory(),
    }


def _longest(prepared: PreparedTraining, count: int) -> Rows:
    """The rows with the most characters, of those that have something to learn."""
    rows, tokenizer = prepared.rows, prepared.tokenizer
    order = sorted(range(len(rows.rows)), key=lambda i: -len(json.dumps(rows.rows[i])))
    if rows.form == "text":  # which are joined
        return rows.part(order[:count])
    fitted = fit_context(prepared.recipe, stretched(prepared.config, prepared.recipe.rope_factor))
    options = encode_options(rows, fitted, prepared.kind)
    learned: list[int] = []
    for start in range(0, len(order), count):
        chosen = order[start : start + count]
        each = encode_each(rows.part(chosen), tokenizer, options, EncodingLog())
        learned += [chosen[index] for index, _ in each]
        if len(learned) >= count:
            break
    return rows.part(learned[:count])


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
