"""Decides which activations a training computes again in its backward pass, to need less memory.

``activation_checkpointing`` is ``off`` (none), ``selective`` (those that take few operations),
``full`` (all within a layer), or ``auto``: the first of these with which a step fits, by its memory
as ``training_memory`` computes it, against what is free.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import psutil
import torch

from lorada.runs.data.dataset import context_of
from lorada.runs.prepare import PreparedTraining
from lorada.runs.recipe import Checkpointing
from lorada.runs.training.arguments import DEFAULTS
from lorada.runs.training.training_memory import training_memory
from lorada.support.processes import is_first, made_by_first, process_count

logger = logging.getLogger(__name__)

# The share of the free memory that a computed step may take. Real steps of a small model take up
# to a third more than is computed, with ``selective`` 57 % more (docs/guides/tables.md).
ROOM = 0.6
CONTAINER = Path("/sys/fs/cgroup")  # limits of this container, if it has any (cgroups, version 2)


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        asked: as in the recipe.
        chosen: off, selective or full.
        free: bytes that are free.
        sizes: bytes of a step with each; None if they cannot be computed.
        reason: why the bytes cannot be computed.
    """

    asked: str
    chosen: Checkpointing
    free: int
    sizes: dict[Checkpointing, float] | None = None
    reason: str | None = None

    @property
    def line(self) -> str:
        """The choice in a line."""
        said = f"activation_checkpointing={self.asked}"
        if self.asked == "auto":
            said += f" takes {self.chosen}"
        if self.sizes is None:
            return f"{said}: the memory of a step cannot be computed ({self.reason})"
        needs = ", ".join(f"{_gib(size)} with {name}" for name, size in self.sizes.items())
        said += f": a step needs {needs}, and may take {ROOM:.0%} of {_gib(self.free)} free"
        if self.sizes[self.chosen] > ROOM * self.free:
            said += "; that may not be enough: take smaller batches or a smaller max_length"
        return said


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"


def decided(prepared: PreparedTraining) -> PreparedTraining:
    """A training for which ``auto`` is decided, by the first process for all; a log line says how.

    All processes must call this.
    """
    if prepared.recipe.activation_checkpointing != "auto":
        return prepared
    choice = made_by_first(lambda: choose(prepared))
    if is_first():
        logger.warning("%s", choice.line)
    return replace(prepared, checkpointing=choice.chosen)


def choose(prepared: PreparedTraining) -> Choice:
    """Compare the memory of a step with what is free; both are of one process."""
    recipe = prepared.recipe
    asked, free = recipe.activation_checkpointing, free_memory(recipe.training)
    context = context_of(prepared.config)
    length = recipe.max_length if context is None else min(recipe.max_length, context)
    steps = {
        name: recipe.model_copy(update={"activation_checkpointing": name, "max_length": length})
        for name in get_args(Checkpointing)
    }
    given: Checkpointing = "off" if asked == "auto" else asked
    try:
        with _silence():
            sizes: dict[Checkpointing, float] = {
                name: training_memory(step, _sequences(prepared)).total
                for name, step in steps.items()
            }
    except Exception as error:  # of any class: a model may do what fake tensors cannot
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Choice(asked, given, free, reason=reason)
    if asked != "auto":
        return Choice(asked, given, free, sizes)
    fitting = (name for name, size in sizes.items() if size <= ROOM * free)
    return Choice(asked, next(fitting, "full"), free, sizes)


@contextmanager
def _silence() -> Iterator[None]:
    """Log no warnings: the training that follows places the same method, and gives them again."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _sequences(prepared: PreparedTraining) -> int | None:
    """Sequences of a batch of rows with candidates; None for rows of one sequence each."""
    if prepared.rows.form != "choice":
        return None
    settings = {**DEFAULTS, **prepared.plan.arguments, **prepared.recipe.training}
    most = max(len(row["candidates"]) for row in prepared.rows.rows)
    return int(settings["per_device_train_batch_size"]) * most


def free_memory(training: dict[str, Any]) -> int:
    """Bytes that a process can use for a training with these TrainingArguments.

    On a GPU, its free memory; else this process's share of the RAM that is available.
    """
    if torch.cuda.is_available() and not training.get("use_cpu"):
        return int(torch.cuda.mem_get_info()[0])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if process_count() > 1 else 1
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = ((CONTAINER / f"memory.{name}").read_text() for name in ("max", "current"))
        available = min(available, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    return max(0, available) // here
