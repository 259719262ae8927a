"""Trainer callbacks of every run: for broken weights, Ctrl-C, logs, held-out rows, checksums."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorada.runs.folder.checkpoints import CHECKSUM_FILE, checkpoints, write_checksums
from lorada.support.processes import all_or_none, in_any_process


class DivergedError(ValueError):
    """The loss or a weight became NaN or infinite."""


class SetEpoch(TrainerCallback):  # type: ignore[misc]
    """Says to the sampler of the training rows which epoch begins.

    The Trainer and accelerate say it too, but in a run of several processes that resumes within an
    epoch a sampler has wrappers through which it does not hear it.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say it to the innermost sampler."""
        found: Any = kwargs["train_dataloader"]
        while found is not None:
            tell = getattr(found, "set_epoch", None) if isinstance(found, Sampler) else None
            if tell is not None:
                tell(int(state.epoch or 0))
            wrapped = getattr(found, "batch_sampler", None)
            found = getattr(found, "sampler", None) if wrapped is None else wrapped


class CheckWeights(TrainerCallback):  # type: ignore[misc]
    """Ends training before NaN or infinite weights are saved.

    The losses do not show such weights if the last update made them.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the weights before they are saved.

        Raises:
            DivergedError: if one is NaN or infinite, with the step and the last good checkpoint.
        """
        if control.should_save or state.global_step >= state.max_steps:
            refuse_broken(kwargs["model"], args, state)

    on_epoch_end = on_step_end  # save_strategy=epoch asks for a save only after an epoch


@all_or_none()
def refuse_broken(model: nn.Module, args: TrainingArguments, state: TrainerState) -> None:
    """Refuse weights that are NaN or infinite in any process.

    Raises:
        DivergedError: with the first such weight, the step and the last good checkpoint.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not parameter.is_floating_point():
            continue
        weight = parameter.detach()
        weight = weight.to_local() if hasattr(weight, "to_local") else weight  # FSDP: a shard
        if not torch.isfinite(weight).all():
            raise DivergedError(
                f"{name} is not finite after step {state.global_step}; "
                f"{_last_good(Path(args.output_dir), state.global_step)}"
            )


def refuse_broken_loss(loss: Tensor, args: TrainingArguments, state: TrainerState) -> None:
    """Refuse a step whose loss is NaN or infinite in any process, before its update.

    Raises:
        DivergedError: with the step and the last good checkpoint.
    """
    broken = not bool(torch.isfinite(loss))
    if not in_any_process(broken, args.device):
        return
    with all_or_none():
        if broken:
            raise DivergedError(
                f"the loss became {float(loss)} at step {state.global_step + 1}; "
                f"{_last_good(Path(args.output_dir), state.global_step)}"
            )


def _last_good(run: Path, step: int) -> str:
    """The end of an error: the newest checkpoint from before ``step`` steps, and what to do."""
    good = [path for at, path in checkpoints(run) if at < step]
    found = f"the last good checkpoint is {good[0]}" if good else "no good checkpoint was saved yet"
    return f"{found}. Start again with a lower training.learning_rate"


class SaveOnInterrupt(TrainerCallback):  # type: ignore[misc]
    """Makes Ctrl-C finish the current step, save a checkpoint and stop; a second one stops at once.

    Attributes:
        interrupted: whether Ctrl-C was pressed in any process.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._pressed = False  # in this process: each process gets its own signal
        self._previous: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over SIGINT."""
        try:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        except ValueError:  # only the main thread can catch signals
            self._previous = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = self.interrupted = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop if Ctrl-C was pressed in any process; all do so after the same step."""
        self.interrupted = in_any_process(self.interrupted, args.device)
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def restore(self) -> None:
        """Give SIGINT back to its previous handler."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class LogWithSave(TrainerCallback):  # type: ignore[misc]
    """Logs whenever a checkpoint is saved.

    The Trainer does not save the sum of the losses since its last log line, so a run that resumes
    between two log lines would log another mean loss than an uninterrupted run.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log if a checkpoint is to be saved after this step."""
        if control.should_save and args.logging_strategy != "no":
            control.should_log = True

    on_epoch_end = on_step_end  # save_strategy=epoch asks for a save only after an epoch


class MeasureHeldOut(TrainerCallback):  # type: ignore[misc]
    """Measures held-out rows after the last step, and after each epoch if no strategy is set.

    The measurement comes before the checkpoint, so that a resumed run has it too.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a measurement."""
        last = state.global_step >= state.max_steps
        if args.eval_strategy == "steps":
            control.should_evaluate |= last
        elif args.eval_strategy == "no":
            control.should_evaluate |= last or float(state.epoch or 0).is_integer()


class SealCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Seals each checkpoint, with checksums of its files, once it is complete."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the checksums of a damaged checkpoint that is about to be overwritten."""
        if control.should_save and state.is_world_process_zero:
            (_checkpoint(args, state) / CHECKSUM_FILE).unlink(missing_ok=True)

    on_epoch_end = on_step_end  # save_strategy=epoch asks for a save only after an epoch

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seal what has just been saved."""
        if state.is_world_process_zero and _checkpoint(args, state).is_dir():
            write_checksums(_checkpoint(args, state))


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
