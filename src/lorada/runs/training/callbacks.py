"""Trainer callbacks of every run: stop at a NaN, save on Ctrl-C, log and seal what is saved."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorada.runs.folder.checkpoints import CHECKSUM_FILE, checkpoints, write_checksums
from lorada.support.processes import anywhere, together


class DivergedError(ValueError):
    """The loss or a weight stopped being a number."""


class StopOnNaN(TrainerCallback):  # type: ignore[misc]
    """Ends training before a step that would put a NaN into the weights, or before they are saved.

    What the last update makes of the weights shows in no loss any more.
    """

    def __init__(self) -> None:
        self._loss: torch.Tensor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the model's loss."""
        model: nn.Module = kwargs["model"]
        self._handle = model.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        loss = getattr(output, "loss", None)
        if loss is None and isinstance(output, dict):
            loss = output.get("loss")
        if loss is not None and module.training:
            loss = loss.detach()
            self._loss = loss if self._loss is None else self._loss + loss

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the loss of this step, or its gradient where the model returned no loss.

        Raises:
            DivergedError: if it is NaN or infinite, naming the step and the last good checkpoint.
        """
        value, self._loss = self._loss, None
        what = "loss"
        if value is None and not args.fp16:  # fp16's scaler skips steps that overflow by itself
            what, model = "gradient", kwargs["model"]
            value = torch.nn.utils.get_total_norm(
                [p.grad for p in model.parameters() if p.grad is not None]
            )
        # All processes stop before a step that one of them must not take.
        if not anywhere(value is not None and not torch.isfinite(value), args.device):
            return
        with together():
            if value is None or torch.isfinite(value):
                return
            raise DivergedError(
                f"the {what} became {float(value)} at step {state.global_step + 1}; "
                f"{_last_good(Path(args.output_dir), state.global_step)}"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the weights where they are about to be saved.

        Raises:
            DivergedError: if one is NaN or infinite, naming the step and the last good checkpoint.
        """
        if control.should_save or state.global_step >= state.max_steps:
            refuse_broken(kwargs["model"], args, state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check them with a save that was asked for after this epoch."""
        self.on_step_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching."""
        self._handle.remove()


@together()
def refuse_broken(model: nn.Module, args: TrainingArguments, state: TrainerState) -> None:
    """Refuse weights that are no numbers, in any process.

    Raises:
        DivergedError: naming the first such weight, the step and the last good checkpoint.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not parameter.is_floating_point():
            continue
        weight = parameter.detach()
        weight = weight.to_local() if hasattr(weight, "to_local") else weight  # a shard of it
        if not torch.isfinite(weight).all():
            raise DivergedError(
                f"{name} is not finite after step {state.global_step}; "
                f"{_last_good(Path(args.output_dir), state.global_step)}"
            )


def _last_good(run: Path, step: int) -> str:
    """The newest checkpoint whose weights did not give the NaN that came after ``step`` steps."""
    good = [path for at, path in checkpoints(run) if at < step]
    found = f"the last good checkpoint is {good[0]}" if good else "no good checkpoint was saved yet"
    return f"{found}. Start again with a lower training.learning_rate"


class SaveOnInterrupt(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C ends the step in hand, saves a checkpoint and stops; a second one stops at once."""

    def __init__(self) -> None:
        self.interrupted = False
        self._pressed = False  # in this process; in a launch of many each may get its own
        self._previous: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over SIGINT."""
        try:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        except ValueError:  # not in the main thread, where no signal can be caught
            self._previous = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = self.interrupted = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop if Ctrl-C was pressed; all processes after the same step."""
        self.interrupted = anywhere(self.interrupted, args.device)
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def restore(self) -> None:
        """Give SIGINT back, however training ended."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class LogWithSave(TrainerCallback):  # type: ignore[misc]
    """Logs whenever a checkpoint is saved.

    The Trainer does not save the sum of the losses since its last log line, so a run that resumed
    between two lines would log another mean than one that did not.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log with a save that was asked for after this step."""
        if control.should_save and args.logging_strategy != "no":
            control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log with a save that was asked for after this epoch."""
        self.on_step_end(args, state, control)


class MeasureHeldOut(TrainerCallback):  # type: ignore[misc]
    """Measures held-out rows after the last step, and after each epoch where nothing else does.

    It does so before the step is saved, so that a run that resumes lacks no measurement.
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
    """Seals each checkpoint once it is whole."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the checksums of a damaged checkpoint that is about to be written anew."""
        if control.should_save and state.is_world_process_zero:
            (_checkpoint(args, state) / CHECKSUM_FILE).unlink(missing_ok=True)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do so with a save that was asked for after this epoch."""
        self.on_step_end(args, state, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seal what has just been saved."""
        if state.is_world_process_zero and _checkpoint(args, state).is_dir():
            write_checksums(_checkpoint(args, state))


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
