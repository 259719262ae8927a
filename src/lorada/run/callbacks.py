"""Trainer callbacks of every run: stop before a NaN does harm, save before Ctrl-C ends it."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class DivergedError(ValueError):
    """The loss stopped being a number."""


class StopOnNaN(TrainerCallback):  # type: ignore[misc]
    """Ends training before the step that would put a NaN into the weights."""

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
        """Check the loss of this step.

        Raises:
            DivergedError: if it is NaN or infinite, naming the step and the last good checkpoint.
        """
        loss, self._loss = self._loss, None
        if loss is None or torch.isfinite(loss):
            return
        last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint was saved yet"
        raise DivergedError(
            f"the loss became {float(loss)} at step {state.global_step + 1}; {kept}. "
            "Lower training.learning_rate"
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching."""
        self._handle.remove()


class SaveOnInterrupt(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C ends the step in hand, saves a checkpoint and stops; a second one stops at once."""

    def __init__(self) -> None:
        self.interrupted = False
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
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop if Ctrl-C was pressed."""
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def restore(self) -> None:
        """Give SIGINT back, however training ended."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
