"""Trainer callbacks of every run: for Ctrl-C, and for what saves and held-out rows need."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerState, TrainingArguments

from lorada.runs.checkpoints import CHECKSUM_FILE, checkpoints, write_checksums
from lorada.support.processes import all_or_none, in_any_process


class DivergedError(ValueError):
    """The loss or a weight became NaN or infinite."""


@all_or_none()
def refuse_broken(model: nn.Module, args: TrainingArguments, state: TrainerState) -> None:
    """Refuse weights that are NaN or infinite in any process."""
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
    """Refuse a step whose loss is NaN or infinite in any process, before its update."""
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
        self._stops = False  # in all processes, after the same step
        self._previous: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over SIGINT."""
        try:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        except ValueError:  # only the main thread can catch signals
            self._previous = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = self.interrupted = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if Ctrl-C was pressed in any process; all do so after the same step."""
        self.interrupted = self._stops = in_any_process(self.interrupted, args.device)
        if self._stops:
            control.should_save = True
            control.should_training_stop = True
            args.save_only_model = False  # a run cannot go on without its optimizer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure nothing where an epoch was cut off, and save what is measured at a true end."""
        if self._stops:
            ends = float(state.epoch).is_integer() or state.global_step >= state.max_steps
            control.should_evaluate &= ends
            control.should_save = ends and (control.should_save or control.should_evaluate)
            # With a limit of 1 the Trainer ends by deleting all checkpoints except the best.
            args.save_total_limit = None

    def restore(self) -> None:
        """Give SIGINT back to its previous handler."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """What every run does when an epoch, a step or a save begins or ends; the last callback.

    Attributes:
        measures: whether held-out rows are measured after the last step and, if the recipe has no
            ``eval_strategy``, after each epoch.
    """

    def __init__(self, *, measures: bool) -> None:
        self.measures = measures

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the innermost sampler of the training rows which epoch begins.

        The Trainer and accelerate do so too, but in a run of several processes that resumes within
        an epoch a sampler has wrappers through which it does not hear it.
        """
        found: Any = kwargs["train_dataloader"]
        while found is not None:
            tell = getattr(found, "set_epoch", None) if isinstance(found, Sampler) else None
            if tell is not None:
                tell(int(state.epoch or 0))
            wrapped = getattr(found, "batch_sampler", None)
            found = getattr(found, "sampler", None) if wrapped is None else wrapped

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare a save, and ask for a measurement before it, so that a resumed run has it too."""
        last = state.global_step >= state.max_steps
        self._before_save(args, state, control, kwargs["model"], last=last)
        if self.measures and args.eval_strategy == "steps":
            control.should_evaluate |= last
        elif self.measures and args.eval_strategy == "no":
            control.should_evaluate |= last or float(state.epoch or 0).is_integer()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare a save: ``save_strategy=epoch`` asks for one only now."""
        self._before_save(args, state, control, kwargs["model"], last=False)

    @staticmethod
    def _before_save(args: Any, state: Any, control: Any, model: nn.Module, *, last: bool) -> None:
        if control.should_save or last:
            refuse_broken(model, args, state)  # losses do not show what the last update broke
        if control.should_save:
            # The Trainer does not save the sum of the losses since its last log line, so a run that
            # resumes between two lines would log another mean than an uninterrupted run.
            control.should_log |= args.logging_strategy != "no"
            if state.is_world_process_zero:  # a damaged checkpoint, which is overwritten
                (_checkpoint(args, state) / CHECKSUM_FILE).unlink(missing_ok=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint, now that it is complete, with checksums of its files."""
        if state.is_world_process_zero and _checkpoint(args, state).is_dir():
            write_checksums(_checkpoint(args, state))


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
