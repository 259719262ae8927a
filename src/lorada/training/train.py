"""``lorada train``: from a recipe to a run folder, on transformers' Trainer.

    recipe → prepare_training → set_up → Trainer → save_model, training_result → run folder

A run folder holds ``recipe.yaml``, checkpoints while it trains, then ``adapter/`` (``model/`` if
the base itself trains) and ``result.json``. It is complete when it has the last.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerState

from lorada.runs.checkpoints import STATE_FILE
from lorada.runs.folder import Start, begin, check_folder, locked
from lorada.runs.machine import peak_memory
from lorada.runs.recipe import AUTO, Recipe
from lorada.runs.result import RunResult, write_result
from lorada.support.error_messages import FREE_AND_RESUME, full_disk_in_one_line
from lorada.support.processes import all_gather, all_or_none, broadcast_from_main, join_processes
from lorada.training.arguments import argument_errors
from lorada.training.callbacks import RelativeNorm, SaveOnInterrupt, refuse_broken
from lorada.training.finish import all_weights, save_model, training_result
from lorada.training.inputs import prepare_training
from lorada.training.memory import with_checkpointing
from lorada.training.setup import Setup, set_up

FREE_AND_START = "Free space, then run the command again"


@dataclass(frozen=True)
class Trained:
    """The outcome of a training."""

    run: Path
    result: RunResult | None  # as its ``result.json`` has it; None if it was interrupted
    steps: int  # optimizer steps so far
    interrupted: bool = False  # by Ctrl-C, after a checkpoint was saved


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
        DivergedError: if the loss becomes NaN; checkpoints saved before stay.
        OtherProcessError: for any error, in all processes except the one that fails.
    """
    run = Path(recipe.output)
    with argument_errors():
        join_processes(recipe.training)
    relative_norm, interrupt = RelativeNorm(), SaveOnInterrupt()
    with ExitStack() as held_locks:

        def lock_and_check() -> Start:
            held_locks.enter_context(locked(run))
            return check_folder(recipe, resume=resume, overwrite=overwrite)

        with full_disk_in_one_line(run, FREE_AND_START):
            start = broadcast_from_main(lock_and_check)
            # Everything is checked and loaded before the folder changes. Each process does so by
            # itself, and if it fails in one, it fails in all.
            with all_or_none():
                prepared = prepare_training(_with_dtype_of_start(recipe, start))
            with all_or_none():
                setup = set_up(prepared, [relative_norm, interrupt, *callbacks], quiet=quiet)
            recomputes = setup.trainer.args.gradient_checkpointing
            decided_recipe = with_checkpointing(prepared.recipe, recomputes=recomputes)
            fingerprint = prepared.rows.fingerprint
            broadcast_from_main(lambda: begin(decided_recipe, start, fingerprint))
        with full_disk_in_one_line(run, FREE_AND_RESUME):
            return _train_and_save(setup, start, relative_norm, interrupt)


def _with_dtype_of_start(recipe: Recipe, start: Start) -> Recipe:
    """The recipe, with ``dtype=auto`` as it was decided where a run to resume began."""
    if recipe.dtype != AUTO or start.dtype is None:
        return recipe
    return recipe.model_copy(update={"dtype": start.dtype})


def _train_and_save(
    setup: Setup, start: Start, relative_norm: RelativeNorm, interrupt: SaveOnInterrupt
) -> Trained:
    """Train to the end, save the model and the result, and return the outcome.

    After Ctrl-C nothing is saved beyond the checkpoint, so that ``--resume`` can go on.
    """
    trainer, run = setup.trainer, Path(setup.prepared.recipe.output)
    started_at = time.monotonic()
    try:
        _train_to_the_end(trainer, start.checkpoint)
    except Exception:
        print(file=sys.stderr)  # ends the line of the progress bar
        raise
    finally:
        # After an error the Trainer does not call ``on_train_end``: Ctrl-C would stay caught, and
        # attention would go on being observed.
        interrupt.restore()
        relative_norm.stop()
    if interrupt.interrupted:
        return Trained(run, None, trainer.state.global_step, interrupted=True)
    # These two exchange data with all processes; what follows, the main process does alone.
    weights = all_weights(trainer)
    peak_memory_bytes = max(all_gather(peak_memory()))

    def save() -> RunResult:
        """Write the model, then the result."""
        save_model(setup, weights)
        result = training_result(
            setup,
            peak_memory_bytes,
            wall_time_s=round(time.monotonic() - started_at, 1),
            resumed_from=start.checkpoint.name if start.checkpoint else None,
        )
        # It goes last, as a run with a result counts as complete.
        write_result(run, result)
        return result

    result = broadcast_from_main(save)
    return Trained(run, result, result.steps)


def _train_to_the_end(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train from a checkpoint if there is one; refuse weights that are NaN or infinite at the end.

    Raises:
        DivergedError: if a weight or the loss of a step is NaN or infinite.
    """
    if checkpoint is None:
        trainer.train()
    else:
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        if _has_ended(state):
            _load_ended(trainer, checkpoint, state)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint))
    refuse_broken(trainer.model, trainer.args, trainer.state)


def _load_ended(trainer: Trainer, checkpoint: Path, state: TrainerState) -> None:
    """Load a training that ended between its last checkpoint and its result.

    The Trainer would take one step too many from there, so only weights and state are loaded, by
    the private methods with which ``Trainer.train`` does so itself.
    """
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = state
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        trainer._load_best_model()


def _has_ended(state: TrainerState) -> bool:
    """Whether a training had ended in this state, after its last step or early."""
    if state.global_step >= state.max_steps:
        return True
    early_stopping = state.stateful_callbacks.get("EarlyStoppingCallback")
    if early_stopping is None:
        return False
    evaluations_without_gain = early_stopping["attributes"]["early_stopping_patience_counter"]
    return bool(evaluations_without_gain >= early_stopping["args"]["early_stopping_patience"])
