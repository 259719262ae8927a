"""Runs of a table's rows: which are done, what they would cost, and doing the rest.

The results of a table are kept apart from the runs, one file each, so that they can be committed:
``RESULTS/table5/local/lora/rte/seed1.json``. A table that was cut off goes on where it was.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.experiments import own_process
from lorada.experiments.table_spec import PaperTable, Scale, TableRow, counts_of, row_recipe
from lorada.runs.folder.folder import clear, differences, holds_run
from lorada.runs.folder.lock import locked
from lorada.runs.folder.result import RESULT_FILE, read_result, result_in
from lorada.runs.inference.evaluate import evaluate_tasks
from lorada.runs.inference.load import load_run
from lorada.runs.models.loading import kind_of, load_config
from lorada.runs.recipe import Recipe
from lorada.runs.training.train import train
from lorada.support.files import json_text, write_whole
from lorada.support.models import MODELS
from lorada.support.progress import watched
from lorada.tasks import TASKS
from lorada.tasks.sources import data_folder

SEED = re.compile(r"seed(\d+)\.json")

# Training rows of the real data, by their name or that of the task; what epochs are made of.
ROWS = {
    "commonsense_170k": 170_420,
    "math10k_rebuilt": 9_919,  # which is MATH10K itself on the hub
    "cola": 8_551,
    "sst2": 67_349,
    "mrpc": 3_668,
    "stsb": 5_749,
    "qqp": 363_846,
    "mnli": 392_702,
    "qnli": 104_743,
    "rte": 2_490,
}


@dataclass(frozen=True)
class Job:
    """One run of a table: a row on one task, or on all, with one seed.

    Attributes:
        stored: where its result is kept.
    """

    row: TableRow
    tasks: list[str]
    seed: int
    recipe: Recipe
    stored: Path


def jobs(
    table: PaperTable,
    scale: Scale,
    *,
    rows: list[str] | None = None,
    tasks: list[str] | None = None,
    seeds: list[int] | None = None,
    results: Path,
    output: Path,
    data_dir: str | None = None,
) -> list[Job]:
    """All runs that rows, tasks and seeds ask for, row by row.

    Raises:
        ValueError: for a row or task that the table does not have, or not at this scale.
    """
    # In the table's order and once each, or the same runs would have two names.
    wanted = [task for task in table.tasks if task in table.tasks_at(scale, tasks)]
    groups = [[task] for task in wanted] if table.train == "each" else [wanted]
    found = []
    for row in watched(table.rows_at(scale, rows), "Counting parameters"):
        for group in groups:
            for seed in dict.fromkeys(seeds or table.seeds):
                place = Path(row.key) / "-".join(group) / f"seed{seed}"
                run = output / f"{table.name}-{scale}" / place
                recipe = row_recipe(table, row, scale, group, seed, run)
                recipe = recipe.model_copy(update={"data_dir": data_dir})
                stored = results / table.name / scale / f"{place}.json"
                found.append(Job(row, group, seed, recipe, stored))
    return found


def done(job: Job) -> dict[str, Any] | None:
    """The stored result of a run; None if there is none, or if it was not scored to its end.

    Raises:
        ValueError: if it was made with another recipe.
    """
    if not job.stored.is_file():
        return None
    try:
        result = result_in(job.stored, of_table=True)
        before, scored = Recipe(**result["recipe"]), _is_scored(job, result)
    except (KeyError, TypeError, ValueError) as error:  # pydantic's is one too
        raise ValueError(f"{job.stored} is not the result of a run: delete it") from error
    _check_recipe(job.stored, before, job)
    return result if scored else None


def stored_rows(
    table: PaperTable,
    scale: Scale,
    tasks: list[str] | None,
    results: Path,
    *,
    report: Callable[[str], None],
) -> list[tuple[TableRow, list[dict[str, Any]]]]:
    """All rows that have results, whichever calls they came from, with those results.

    Args:
        table: the table.
        scale: at which scale.
        tasks: of the runs, None for those of the scale; of a table whose tasks are learned apart,
            all are looked for.
        results: where results are kept.
        report: called with a line for each result that was left out, as it is of another recipe.
    """
    folder = results / table.name / scale
    names = (SEED.fullmatch(path.name) for path in folder.rglob("seed*.json"))
    seeds = sorted({int(name[1]) for name in names if name})
    some = table.tasks if table.train == "each" else tasks
    rows = [row.key for row in table.rows_at(scale, None) if (folder / row.key).is_dir()]
    if not seeds or not rows:
        return []
    found: dict[str, tuple[TableRow, list[dict[str, Any]]]] = {}
    for job in jobs(table, scale, rows=rows, tasks=some, seeds=seeds, results=results,
                    output=Path()):  # fmt: skip
        try:
            result = done(job)
        except ValueError as error:
            report(f"left out: {error}")
            continue
        if result is not None:
            found.setdefault(job.row.key, (job.row, []))[1].append(result)
    return list(found.values())


def _check_recipe(path: Path, before: Recipe, job: Job) -> None:
    for key, old, value in differences(before, _with_weights(job.recipe)):
        raise ValueError(
            f"{path} was made with {key}={old!r}, not {value!r}: choose another --results and "
            "--output, or --overwrite"
        )


def _is_scored(job: Job, result: dict[str, Any]) -> bool:
    """Whether a run was scored on all test rows of its tasks."""
    wanted = {"_".join(filter(None, (t, suffix))) for t in job.tasks for suffix in TASKS[t].test}
    return wanted <= set(result["metrics"])


def _with_weights(recipe: Recipe) -> Recipe:
    """The recipe with the hub's id of a model that is there, in place of its short name."""
    named = MODELS.get(recipe.model)
    hub = named.hub if named else ""
    return recipe.model_copy(update={"model": hub or recipe.model})


def forget(found: list[Job]) -> None:
    """Remove the results of runs and what they wrote, so that they start anew.

    All at once: a table that is cut off must not go on with old numbers.

    Raises:
        ValueError: if another process trains one of them.
        FileNotFoundError: if there is no data to train them on again.
    """
    runs = [run for job in found if holds_run(run := Path(job.recipe.output))]
    for job in found:
        data_folder(job.recipe.data_dir)
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(locked(run))
        for job in found:
            job.stored.unlink(missing_ok=True)
        for run in runs:
            clear(run)


def carry_out(job: Job, *, report: Callable[[str], None]) -> dict[str, Any]:
    """Train and score one run, or finish what was begun of it, and store its result.

    It happens in a process of its own, so that no earlier run counts in its peak of memory.

    Args:
        job: the run.
        report: called with a line before each step.

    Raises:
        ValueError: if its folder holds a run of another recipe.
    """
    recipe = _with_weights(job.recipe)
    run = Path(recipe.output)
    result = read_result(run) if (run / RESULT_FILE).is_file() else None
    if result is None or not _is_scored(job, result):
        result = own_process.call(train_and_score, job, report=report)
    _check_recipe(run / RESULT_FILE, Recipe(**result["recipe"]), job)
    # Where the rows lay is nobody's business but the run's; what kind of place it was is not.
    result["recipe"].update(data_dir=None, output=str(run))
    result["data"]["source"] = "a local folder" if data_folder(recipe.data_dir) else "the hub"
    write_whole(job.stored, json_text(result) + "\n")
    return result


def train_and_score(job: Job, *, report: Callable[[str], None]) -> dict[str, Any]:
    """What is left to do of one run, in this process; its result.

    Args:
        job: the run.
        report: called with a line before each step.

    Raises:
        ValueError: if its folder holds a run of another recipe.
        KeyboardInterrupt: if the training was interrupted and saved.
    """
    recipe = _with_weights(job.recipe)
    run = Path(recipe.output)
    if not (run / RESULT_FILE).is_file():
        report(f"{job.row.key}, {recipe.task}, seed {job.seed}: training")
        if train(recipe, resume=holds_run(run)).interrupted:
            raise KeyboardInterrupt
    result = read_result(run)
    _check_recipe(run / RESULT_FILE, Recipe(**result["recipe"]), job)
    if not _is_scored(job, result):
        report(f"{job.row.key}, {recipe.task}, seed {job.seed}: scoring")
        evaluate_tasks(load_run(run), recipe.data_dir)
        result = read_result(run)
        if not _is_scored(job, result):  # what could not be written has been said
            raise OSError(f"the scores of {run} were not kept: run the command again")
    return result


@dataclass(frozen=True)
class Estimate:
    """What a run would take, from its recipe alone.

    Attributes:
        parameters: as ``parameters_of`` counts them.
        steps: of the optimizer; None where the number of rows decides and is not known.
        tokens: at most, that training reads: every row as long as ``max_length``.
        seconds: of training, at most, at ``SPEED``.
        memory: bytes of weights, gradients and optimizer states, without activations.
    """

    parameters: dict[str, Any]
    steps: int | None
    tokens: int | None
    seconds: float | None
    memory: int


# Operations a second: two cores at SmolLM2's 250 tokens a second; an A100 at 40 % in bf16.
SPEED: dict[Scale, float] = {"local": 4 * 135e6 * 250, "paper": 0.4 * 312e12}
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def estimate(job: Job, scale: Scale) -> Estimate:
    """Parameters, steps, time and memory of a run; the time is a rough one."""
    counts, training = counts_of(job.recipe), job.recipe.training
    config = load_config(job.recipe.model)
    # An encoder looks its embeddings up; a decoder multiplies by them at its end.
    looked_up = config.vocab_size * config.hidden_size if kind_of(config) == "encoder" else 0
    batch = int(training.get("per_device_train_batch_size", 8))
    batch *= int(training.get("gradient_accumulation_steps", 1))
    steps = _steps(training, _rows_of(job), batch)
    tokens = None if steps is None else steps * batch * job.recipe.max_length
    # Forward and backward through frozen weights cost 4 operations a parameter and token; weights
    # that train cost 2 more.
    each = 4 * (counts["total"] - looked_up) + 2 * counts["trainable"]
    seconds = None if tokens is None else tokens * each / SPEED[scale]
    # A weight that trains has a gradient and two moments in fp32.
    memory = counts["total"] * BYTES[job.recipe.dtype] + 12 * counts["trainable"]
    return Estimate(counts, steps, tokens, seconds, memory)


def _rows_of(job: Job) -> int | None:
    recipe = job.recipe
    name = recipe.train_on or next(iter(TASKS[job.tasks[0]].train))
    known = ROWS.get(name, ROWS.get(job.tasks[0]))
    return recipe.train_rows or (None if known is None else known - recipe.dev_rows)


def _steps(training: dict[str, Any], rows: int | None, batch: int) -> int | None:
    if training.get("max_steps", -1) > 0:
        return int(training["max_steps"])
    if rows is None:
        return None
    return int(float(training.get("num_train_epochs", 3)) * -(-rows // batch))
