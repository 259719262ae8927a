"""``lorada train``: from a recipe to a run folder, on transformers' Trainer.

    recipe → prepare_training → set_up → Trainer → save_model, training_result → run folder

A run folder holds ``recipe.yaml``, checkpoints while it trains, then ``adapter/`` (``model/`` if
everything trains, ``trained.safetensors`` if a part of the base does), ``loss.png`` and
``result.json``. It is complete when it has a ``result.json``.
"""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState

from lorada.runs.folder import Start, begin, check_folder
from lorada.runs.lock import locked
from lorada.runs.recipe import AUTO, Recipe
from lorada.runs.result import RESULT_FILE, peak_memory, write_result
from lorada.support.errors import full_disk_in_one_line
from lorada.support.files import remove_orphans
from lorada.support.processes import (
    all_or_none,
    gather_values,
    in_any_process,
    is_first,
    join_processes,
    made_by_first,
)
from lorada.training.arguments import argument_errors
from lorada.training.device_settings import as_it_trains
from lorada.training.callbacks import SaveOnInterrupt, refuse_broken
from lorada.training.effect_size import EffectSize
from lorada.training.finish import all_weights, save_model, training_result
from lorada.training.prepare import prepare_training
from lorada.training.setup import set_up

logger = logging.getLogger(__name__)

AGAIN = "What was saved before is whole: free space, then lorada train --resume --output "


@dataclass(frozen=True)
class Trained:
    """The outcome of a training.

    Attributes:
        run: the run's folder.
        result: the fields of its ``result.json``; only ``steps`` if it was interrupted.
        interrupted: whether Ctrl-C ended it, after a checkpoint was saved.
    """

    run: Path
    result: dict[str, Any]
    interrupted: bool = False


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Train a recipe into its output folder.

    If ``torchrun`` or ``accelerate launch`` started several processes, all call this: they train
    together, only the first writes, and all return its result.

    Args:
        recipe: what to train.
        resume: continue from the last checkpoint in that folder, bit for bit.
        overwrite: delete an earlier run there, once everything else has been checked.
        quiet: no progress bar.
        callbacks: further callbacks of the Trainer; one that stops the training ends the run early.

    Raises:
        ValueError: for a folder that holds a run or in which another process trains, or for
            settings that do not fit.
        DivergedError: if the loss becomes NaN; checkpoints saved before stay.
        OSError: if the disk is full; what was saved before stays whole.
        OtherProcessError: for any of these, in all processes except the one that fails.
    """
    run = Path(recipe.output)
    with argument_errors():
        join_processes(recipe.training)
    with full_disk_in_one_line(run, "Free space, then run the command again"), ExitStack() as stack:

        def lock_and_check() -> Start:
            stack.enter_context(locked(run))
            return check_folder(recipe, resume=resume, overwrite=overwrite)

        start = made_by_first(lock_and_check)
        if recipe.dtype == AUTO and start.dtype is not None:  # as where it began
            recipe = recipe.model_copy(update={"dtype": start.dtype})
        return _train(recipe, start, callbacks, quiet=quiet)


def _train(
    recipe: Recipe, start: Start, callbacks: Sequence[TrainerCallback], *, quiet: bool
) -> Trained:
    run = Path(recipe.output)
    again = AGAIN + quote(str(run))
    effect, interrupt = EffectSize(), SaveOnInterrupt()
    with all_or_none():
        prepared = prepare_training(recipe)
    with all_or_none():
        setup = set_up(prepared, [effect, interrupt, *callbacks], quiet=quiet)
    trainer = setup.trainer
    resolved = as_it_trains(prepared.recipe, again=trainer.args.gradient_checkpointing)
    made_by_first(lambda: begin(resolved, start, prepared.rows.fingerprint))
    started = time.monotonic()
    try:
        _fit(trainer, start.checkpoint, again)
    finally:
        interrupt.restore()
        effect.stop()
    if in_any_process(interrupt.interrupted, trainer.args.device):
        return Trained(run, {"steps": trainer.state.global_step}, interrupted=True)
    if trainer.args.load_best_model_at_end and is_first():
        logger.warning("the training ended after step %d; the weights of step %d, which has the "
                       "best held-out score, are kept", trainer.state.global_step,
                       trainer.state.best_global_step)  # fmt: skip
    weights, peak = all_weights(trainer), max(gather_values(peak_memory()))

    def finish() -> dict[str, Any]:
        with full_disk_in_one_line(f"the weights of {run}", again):
            save_model(setup, weights, prepared)
        result = training_result(prepared, setup, peak)
        result["wall_time_s"] = round(time.monotonic() - started, 1)
        result["resumed_from"] = start.checkpoint.name if start.checkpoint else None
        with full_disk_in_one_line(run / RESULT_FILE, again):
            write_result(run, result)
        return result

    return Trained(run, made_by_first(finish))


def _fit(trainer: Trainer, checkpoint: Path | None, again: str) -> None:
    """Train to the end; if the disk is full, the error names the step, with ``again`` as remedy."""
    try:
        _continue(trainer, checkpoint)
    except Exception:
        print(file=sys.stderr)  # ends the line of the progress bar
        with full_disk_in_one_line(
            f"{trainer.args.output_dir} at step {trainer.state.global_step}", again
        ):
            raise


def _continue(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train to the end, from a checkpoint if there is one; refuse broken weights at the end."""
    state = None
    if checkpoint is not None:
        remove_orphans(checkpoint)  # of a process that was killed while it wrote the checksums
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if checkpoint is None or state is None or not _ended(state):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    else:
        # The run ended between its last checkpoint and its result. The Trainer would take one step
        # too many from there, so only the checkpoint's weights and state are loaded.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state
        if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            trainer._load_best_model()
    refuse_broken(trainer.model, trainer.args, trainer.state)


def _ended(state: TrainerState) -> bool:
    """Whether a training had ended in this state, after its last step or early."""
    early = state.stateful_callbacks.get("EarlyStoppingCallback")
    if early is not None:
        counted = early["attributes"]["early_stopping_patience_counter"]
        if counted >= early["args"]["early_stopping_patience"]:
            return True
    return bool(state.global_step >= state.max_steps)
