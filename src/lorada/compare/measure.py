"""Measures a few training steps of each candidate, before a comparison and at its end.

The steps are real: in a process of its own, with the model. ``lorada compare --dry-run`` measures
the longest rows and says what the trainings would take. At the end of a comparison all candidates
are measured in turns, on the first rows, with nothing else of the comparison beside them: the
trainings' own times depend on what ran beside each.
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

from lorada.compare.jobs.job import Job, last_line, report
from lorada.compare.jobs.pool import Workers
from lorada.compare.jobs.queue import Report, run_queue
from lorada.compare.plan import (
    TIMES,
    Candidate,
    ComparisonPlan,
    mapping_in,
    searches_of,
    settled,
)
from lorada.compare.spec import LEAST_RUNS, Comparison
from lorada.compare.trainings import reads, trials_of
from lorada.data.task_rows import Rows
from lorada.runs.recipe import Recipe
from lorada.runs.result import peak_memory
from lorada.support.files import json_text, write_atomic
from lorada.training.inputs import prepare_training
from lorada.training.train import set_up

STEPS = 3  # the first does not count, as it is slower than those after it
TURNS = 2  # at the end; the fastest counts, since other work can only slow a step down
STAGE = ("trainings", "probably", "seconds", "probably_seconds")
UNTIL = 0.6  # of all runs, what `--until` needs in the made-up comparisons of docs/compare.md


def forecast(
    comparison: Comparison, plan: ComparisonPlan, slots: int, report: Report
) -> dict[str, Any]:
    """What the trainings of a comparison would take, at most and probably, on the longest rows.

    At most, every search takes all trials that it may, and every seed is run. Probably, a search
    takes ``Space.usual`` trials; with ``--until`` the number of runs is a guess, ``UNTIL`` of all.

    ``slots`` is how many jobs run at once; ``report`` is called with a line on each measurement.

    Returns:
        ``candidates``: those of the plan, each with ``runs`` at most, ``seconds_per_step``,
        ``peak_memory_bytes`` and ``seconds`` of all its trainings at most (None where it cannot be
        run); ``stages``: name → ``trainings`` and ``seconds``, each at most and ``probably``;
        ``jobs``, ``steps``, ``slots``; ``seconds`` and ``probably_seconds`` of the whole.
    """
    rows = _measured(comparison, plan, report)
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


def _measured(comparison: Comparison, plan: ComparisonPlan, report: Report) -> list[dict[str, Any]]:
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
        outcomes = run_queue(jobs, Workers(), report=report)
        for candidate, row, path in zip(plan.candidates, rows, files, strict=True):
            if candidate.reason is None and not path.is_file():
                row["reason"] = outcomes[f"{STEPS} steps of {candidate.name}"].error
            row |= mapping_in(path)
    return rows


def keep_steps(recipe: Recipe, path: Path) -> None:
    """Measure steps with the longest rows, and write what they take as JSON."""
    write_atomic(path, json_text(measure_steps(recipe, longest=True)) + "\n")


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
            taken, _ = settled(candidate, searches_of(candidate, folder))
            found.append(Job(
                name=f"{candidate.name} time of a step, turn {turn}",
                work=partial(keep_time, _recipe(comparison, plan, taken), path),
                folder=path.parent,
                done=path.is_file,
                after=found[-1].name if found else "",
                reads=reads(comparison),
                trainings=STEPS / plan.steps,
            ))  # fmt: skip
    return found


def keep_time(recipe: Recipe, path: Path) -> None:
    """Measure the time of a step, and write it as JSON: null where it cannot be measured."""
    try:
        seconds = measure_steps(recipe, longest=False)["seconds_per_step"]
    except Exception as error:  # of any class: the method itself may not train
        report(last_line(error))
        seconds = None
    write_atomic(path, json_text({"seconds_per_step": seconds}) + "\n")


def measure_steps(recipe: Recipe, *, longest: bool) -> dict[str, Any]:
    """Train the first few steps of a training, in this process; nothing is kept.

    They are on the ``longest`` rows, or on the first. It returns ``seconds_per_step`` of the
    fastest, and ``peak_memory_bytes`` of the process (or of the accelerator).
    """
    clock = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
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
