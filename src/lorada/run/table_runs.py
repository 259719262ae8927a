"""Runs of a table's rows: which are done, what they would cost, and doing the rest.

The results of a table are kept apart from the runs, one file each, so that they can be committed:
``RESULTS/table5/local/lora/rte/seed1.json``. A table that was cut off goes on where it was.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.files import write_whole
from lorada.run.evaluate import evaluate_tasks
from lorada.run.folder import differences, holds_run
from lorada.run.loaded import load_run
from lorada.run.models import kind_of, load_config
from lorada.run.recipe import Recipe
from lorada.run.result import RESULT_FILE, read_result
from lorada.run.tables import PaperTable, Scale, TableRow, counts_of, row_recipe
from lorada.run.train import train

# Where the weights of the paper's models are.
HUB = {
    "roberta-base": "FacebookAI/roberta-base",
    "deberta-v3-base": "microsoft/deberta-v3-base",
    "bart-large": "facebook/bart-large",
    "mbart-large": "facebook/mbart-large-cc25",
    "llama-7b": "huggyllama/llama-7b",
    "llama-13b": "huggyllama/llama-13b",
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "llama2-70b": "meta-llama/Llama-2-70b-hf",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
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
    wanted = table.tasks_at(scale, tasks)
    groups = [[task] for task in wanted] if table.train == "each" else [wanted]
    found = []
    for row in table.rows_at(scale, rows):
        for group in groups:
            for seed in seeds or table.seeds:
                place = Path(row.key) / "-".join(group) / f"seed{seed}"
                run = output / f"{table.name}-{scale}" / place
                recipe = row_recipe(table, row, scale, group, seed, run)
                recipe = recipe.model_copy(update={"data_dir": data_dir})
                stored = results / table.name / scale / f"{place}.json"
                found.append(Job(row, group, seed, recipe, stored))
    return found


def done(job: Job) -> dict[str, Any] | None:
    """The stored result of a run; None if there is none.

    Raises:
        ValueError: if it was made with another recipe.
    """
    if not job.stored.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(job.stored.read_text(encoding="utf-8"))
        before = Recipe(**result["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{job.stored} is not the result of a run: delete it") from error
    for key, old, value in differences(before, _with_weights(job.recipe)):
        raise ValueError(
            f"{job.stored} was made with {key}={old!r}, not {value!r}: choose another "
            "--results, or --overwrite"
        )
    return result


def _with_weights(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"model": HUB.get(recipe.model, recipe.model)})


def carry_out(
    job: Job, *, report: Callable[[str], None], overwrite: bool = False
) -> dict[str, Any]:
    """Train and score one run, or finish what was begun of it, and store its result.

    Args:
        job: the run.
        report: called with a line before each step.
        overwrite: train again whatever is there.
    """
    recipe = _with_weights(job.recipe)
    run = Path(recipe.output)
    if overwrite or not (run / RESULT_FILE).is_file():
        report(f"{job.row.key}, {recipe.task}, seed {job.seed}: training")
        trained = train(recipe, resume=holds_run(run) and not overwrite, overwrite=overwrite)
        if trained.interrupted:
            raise KeyboardInterrupt
    result = read_result(run)
    if not result["metrics"]:
        report(f"{job.row.key}, {recipe.task}, seed {job.seed}: scoring")
        evaluate_tasks(load_run(run), recipe.data_dir)
        result = read_result(run)
    # Where the rows lay is nobody's business but the run's.
    result["recipe"].update(data_dir=None, output=str(run))
    write_whole(job.stored, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


@dataclass(frozen=True)
class Estimate:
    """What a run would take, from its recipe alone.

    Attributes:
        parameters: as ``parameters_of`` counts them.
        steps: of the optimizer; None where the number of rows decides.
        tokens: at most, that training reads: every row as long as ``max_length``.
        seconds: at most, at ``SPEED``.
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
    steps = _steps(training, job.recipe.train_rows, batch)
    tokens = None if steps is None else steps * batch * job.recipe.max_length
    # Forward and backward through frozen weights cost 4 operations a parameter and token; weights
    # that train cost 2 more.
    each = 4 * (counts["total"] - looked_up) + 2 * counts["trainable"]
    seconds = None if tokens is None else tokens * each / SPEED[scale]
    # A weight that trains has a gradient and two moments in fp32.
    memory = counts["total"] * BYTES[job.recipe.dtype] + 12 * counts["trainable"]
    return Estimate(counts, steps, tokens, seconds, memory)


def _steps(training: dict[str, Any], rows: int | None, batch: int) -> int | None:
    if training.get("max_steps", -1) > 0:
        return int(training["max_steps"])
    if rows is None:
        return None
    return int(float(training.get("num_train_epochs", 3)) * -(-rows // batch))
