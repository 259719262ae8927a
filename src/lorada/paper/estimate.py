"""Estimates what a run needs from its recipe: parameters, steps, time and memory."""

from typing import Any

from lorada.data.tasks import TASKS
from lorada.paper.table_runs import TableJob
from lorada.paper.table_spec import Scale
from lorada.training.device_settings import dtype_on
from lorada.training.models.loading import kind_of, load_config
from lorada.training.parameter_counts import counts_of

# Rows of the real training sets, by the name of the set or the task; they give steps per epoch.
ROWS = {
    "commonsense_170k": 170_420,
    "math10k_rebuilt": 9_919,  # on the hub, MATH10K itself
    "cola": 8_551,
    "sst2": 67_349,
    "mrpc": 3_668,
    "stsb": 5_749,
    "qqp": 363_846,
    "mnli": 392_702,
    "qnli": 104_743,
    "rte": 2_490,
}


# FLOPs per second: SmolLM2 at 250 tokens per second on two cores; an A100 at 40 % of its bf16 peak.
SPEED: dict[Scale, float] = {"local": 4 * 135e6 * 250, "paper": 0.4 * 312e12}
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "mixed": 2, "mixed_float16": 2}


def estimate(job: TableJob, scale: Scale) -> dict[str, Any]:
    """Estimate what a run needs; the time is rough.

    Returns:
        What ``parameters_of`` counts, ``steps`` of the optimizer, ``tokens`` that training reads if
        every row is ``max_length`` long and its ``seconds`` at ``SPEED`` (all three None if they
        depend on an unknown number of rows), and ``memory``: bytes of weights, gradients and
        optimizer states, without activations.
    """
    counts, training = counts_of(job.recipe), job.recipe.training
    config = load_config(job.recipe.model)
    # Embeddings cost no FLOPs in an encoder; a decoder also multiplies by them at its output.
    looked_up = config.vocab_size * config.hidden_size if kind_of(config) == "encoder" else 0
    batch = int(training.get("per_device_train_batch_size", 8))
    batch *= int(training.get("gradient_accumulation_steps", 1))
    steps = _steps(training, _rows_of(job), batch)
    tokens = None if steps is None else steps * batch * job.recipe.max_length
    # FLOPs per parameter and token: 2 forward and 2 backward; 2 more where the weight trains.
    each = 4 * (counts["total"] - looked_up) + 2 * counts["trainable"]
    seconds = None if tokens is None else tokens * each / SPEED[scale]
    each_weight = BYTES[dtype_on(job.recipe, config, narrow=False)]
    # A trained weight has a gradient and Adam's two moments, all fp32.
    memory = counts["total"] * each_weight + 12 * counts["trainable"]
    found = {"steps": steps, "tokens": tokens, "seconds": seconds, "memory": memory}
    return {**counts, **found}


def _rows_of(job: TableJob) -> int | None:
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
