"""Estimates what a run needs from its recipe: parameters, steps, time and memory."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from lorada.experiments.table_runs import TableJob
from lorada.experiments.table_spec import Scale, counts_of
from lorada.runs.by_device import dtype_on
from lorada.runs.models.loading import kind_of, load_config
from lorada.runs.recipe import Recipe
from lorada.runs.training.checkpointing import why_full
from lorada.runs.training.training_memory import Memory, training_memory
from lorada.support.errors import unknown_name
from lorada.tasks import TASKS

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
# The most candidates that a question of a task has; each is a sequence of its own.
CANDIDATES = {
    "boolq": 2, "piqa": 2, "siqa": 3, "hellaswag": 4, "winogrande": 2, "arc_easy": 5,
    "arc_challenge": 5, "openbookqa": 4,
}  # fmt: skip
# TrainingArguments that change the memory of a step.
STEP = ("per_device_train_batch_size", "gradient_checkpointing", "gradient_checkpointing_kwargs")


@dataclass(frozen=True)
class Gpu:
    """A GPU: its memory in bytes, and its peak FLOPs per second in bfloat16, without sparsity."""

    memory: float
    peak: float


# From the makers' data sheets.
GPUS = {
    "a100-40gb": Gpu(40 * 2**30, 312e12),
    "a100-80gb": Gpu(80 * 2**30, 312e12),
    "h100-80gb": Gpu(80 * 2**30, 989e12),
    "h200-141gb": Gpu(141e9, 989e12),
    "l40s-48gb": Gpu(48 * 2**30, 362e12),
    "rtx4090-24gb": Gpu(24 * 2**30, 165e12),
}
USED = 0.4  # the share of its peak that a training reaches; our guess


def gpu_named(name: str) -> Gpu:
    """A GPU by its name.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    if name not in GPUS:
        raise unknown_name("GPU", name, GPUS)
    return GPUS[name]


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        parameters: as ``parameters_of`` counts them.
        steps: optimizer steps; None if they depend on an unknown number of rows.
        tokens: upper bound of the tokens that training reads (every row ``max_length`` long).
        seconds: upper bound of the training time at ``SPEED``.
        memory: bytes of weights, gradients and optimizer states, without activations.
        parts: bytes at the peak of a step by part; None if no GPU was named, or for a method whose
            step cannot be computed.
    """

    parameters: dict[str, Any]
    steps: int | None
    tokens: int | None
    seconds: float | None
    memory: int
    parts: Memory | None = None


# FLOPs per second: SmolLM2 at 250 tokens per second on two cores; an A100 at 40 % of its bf16 peak.
SPEED: dict[Scale, float] = {"local": 4 * 135e6 * 250, "paper": USED * GPUS["a100-80gb"].peak}
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def estimate(job: TableJob, scale: Scale, gpu: Gpu | None = None) -> Estimate:
    """Estimate parameters, steps, time and memory of a run; the time is rough.

    With a ``gpu``, the time is of this GPU, and the memory has its parts.
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
    speed = SPEED[scale] if gpu is None else USED * gpu.peak
    seconds = None if tokens is None else tokens * each / speed
    each_weight = BYTES[dtype_on(job.recipe, config, narrow=gpu is not None)]
    # A trained weight has a gradient and Adam's two moments, all fp32.
    memory = counts["total"] * each_weight + 12 * counts["trainable"]
    parts = None if gpu is None else _memory(job)
    return Estimate(counts, steps, tokens, seconds, memory, parts)


def _memory(job: TableJob) -> Memory | None:
    """The memory of a step by part, cached over the tasks and seeds of a row."""
    training = {key: job.recipe.training[key] for key in STEP if key in job.recipe.training}
    config = load_config(job.recipe.model)
    dtype = dtype_on(job.recipe, config, narrow=True)
    same = {"task": "-", "output": "-", "data_dir": None, "training": training, "dtype": dtype}
    if job.recipe.activation_checkpointing == "auto":
        same["activation_checkpointing"] = "full" if why_full(job.recipe, config) else "off"
    batch = int(training.get("per_device_train_batch_size", 8))
    task = TASKS[job.tasks[0]]
    kind = kind_of(config)
    form = task.protocols[task.protocol(job.recipe.protocol, kind)].form
    each = max(CANDIDATES.get(name, 1) for name in job.tasks) if form == "choice" else 1
    return _cached_memory(job.recipe.model_copy(update=same).model_dump_json(), batch * each)


@cache
def _cached_memory(text: str, sequences: int) -> Memory | None:
    with suppress(NotImplementedError):
        return training_memory(Recipe.model_validate_json(text), sequences)
    return None


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
