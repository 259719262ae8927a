"""Trainer callbacks of every run: for Ctrl-C, saves, held-out rows, the relative norm of maps."""

import logging
import signal
import time
import weakref
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from lorada.attention.observation import Observation, observe, ratio_of, squared_norms
from lorada.runs.folder import STATE_FILE, checkpoints
from lorada.support.processes import all_gather, all_or_none, in_any_process

logger = logging.getLogger(__name__)


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
            raise _diverged(f"{name} is not finite after step {state.global_step}", args, state)


def refuse_broken_loss(loss: Tensor, args: TrainingArguments, state: TrainerState) -> None:
    """Refuse a step whose loss is NaN or infinite in any process, before its update."""
    broken = not bool(torch.isfinite(loss))
    if not in_any_process(broken, args.device):
        return
    with all_or_none():
        if broken:
            what = f"the loss became {float(loss)} at step {state.global_step + 1}"
            raise _diverged(what, args, state)


def _diverged(what: str, args: TrainingArguments, state: TrainerState) -> DivergedError:
    """The error with ``what`` happened, the newest checkpoint from before, and what to do."""
    good = [path for at, path in checkpoints(Path(args.output_dir)) if at < state.global_step]
    found = f"the last good checkpoint is {good[0]}" if good else "no good checkpoint was saved yet"
    return DivergedError(f"{what}; {found}. Start again with a lower training.learning_rate")


class SaveOnInterrupt(TrainerCallback):  # type: ignore[misc]
    """Makes Ctrl-C finish the step, save a checkpoint and stop; a second one stops at once."""

    def __init__(self) -> None:
        self.interrupted = False  # whether it ended the training, in all processes
        self._pressed = False  # in this process: each process gets its own signal
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
        self._pressed = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if Ctrl-C was pressed in any process; all do so after the same step."""
        self.interrupted = in_any_process(self._pressed, args.device)
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True
            args.save_only_model = False  # a run cannot go on without its optimizer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure nothing where an epoch was cut off, and save what is measured at a true end."""
        if self.interrupted:
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
    """What every run does when a step, an epoch or a save ends; the last callback.

    If it ``measures``, held-out rows are measured after the last step and, if the recipe has no
    ``eval_strategy``, after each epoch.
    """

    def __init__(self, *, measures: bool) -> None:
        self.measures = measures
        self._ends: list[float] = []  # when each step of this process ended

    @property
    def seconds_per_step(self) -> float | None:
        """The median time from the end of a step to that of the next; None before the second step.

        Evaluations and saves lie between few steps, so they hardly move it.
        """
        between = [end - before for before, end in pairwise(self._ends)]
        return median(between) if between else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare a save, and ask for a measurement before it, so that a resumed run has it too."""
        self._ends.append(time.monotonic())
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
        if control.should_save:
            # The Trainer does not save the sum of the losses since its last log line, so a run that
            # resumes between two lines would log another mean than an uninterrupted run.
            control.should_log |= args.logging_strategy != "no"
            if state.is_world_process_zero:
                # A checkpoint that is written again is whole when it is written to its end again.
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                (checkpoint / STATE_FILE).unlink(missing_ok=True)
        if control.should_save or last:
            # Losses do not show what the last update broke. The processes wait for each other here,
            # so that none writes into a checkpoint that still counts as whole.
            refuse_broken(model, args, state)


Sums = dict[str, list[tuple[Tensor, Tensor]]]  # layer → squared norms of each call

NEGLIGIBLE = 1e-3  # relative norms below this are reported as doing nothing


class RelativeNorm(TrainerCallback):  # type: ignore[misc]
    """Logs the mean relative norm of a model's maps, ‖Attn_s·V‖ / ‖Attn·V‖, with each log line.

    For transformers' Trainer and TRL's trainers alike::

        Trainer(..., callbacks=[RelativeNorm()])

    The relative norm is measured in the forward of each step that is logged. The log line gets
    ``relative_norm``, the mean over layers, and ``relative_norm_max``, the largest layer's. Loggers
    before this callback in the Trainer's list write the line without them. If the mean is below
    1e-3 at the end of training, a warning says that the map is numerically nothing.

    Attributes:
        by_layer: module name of a layer → its relative norm at the last measurement.
    """

    def __init__(self) -> None:
        self.by_layer: dict[str, float] = {}
        self._sums: Sums = {}
        self._names: dict[nn.Module, str] = {}
        self._watching: weakref.finalize[..., RelativeNorm] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Learn the names of the model's layers."""
        model: nn.Module = kwargs["model"]
        self._names = {module: name for name, module in model.named_modules()}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start to measure if this step is to be logged, or saved: ``RunCallback`` logs saves."""
        step = state.global_step + 1
        every = max(int(state.logging_steps or args.logging_steps or 1), 1)
        saves = max(int(state.save_steps or 0), 0) if args.save_strategy == "steps" else 0
        logged = args.logging_strategy != "steps" or step % every == 0 or step == state.max_steps
        logged = logged or (step == 1 and args.logging_first_step)
        self._sums = {}
        if logged or (saves and step % saves == 0):
            self._watch()

    def _watch(self) -> None:
        self.stop()
        # A weak reference, so that attention does not keep the callback of an abandoned training.
        me = weakref.ref(self)
        context = observe(lambda seen: callback._observe(seen) if (callback := me()) else None)
        context.__enter__()
        self._watching = weakref.finalize(self, context.__exit__, None, None, None)

    def stop(self) -> None:
        """Stop measuring; call it too when training ends with an error."""
        if self._watching is not None:
            self._watching()
            self._watching = None

    def _observe(self, seen: Observation) -> None:
        module = seen.call.module
        name = self._names.get(module)
        if name is not None and module.training:
            self._sums.setdefault(name, []).append(squared_norms(seen))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop measuring."""
        self.stop()
        if self._sums:
            sums = _of_all_processes(self._sums) if args.world_size > 1 else self._sums
            self.by_layer = {name: ratio_of(calls) for name, calls in sums.items()}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the relative norm to the log line."""
        if logs is None or "loss" not in logs or not self._sums:
            return  # this step was not measured
        values = {"relative_norm": self.mean, "relative_norm_max": max(self.by_layer.values())}
        logs.update(values)
        if state.log_history:
            state.log_history[-1].update(values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn if the map does nothing."""
        self.stop()
        if self.by_layer and self.mean < NEGLIGIBLE:
            logger.warning(
                "the relative norm of the map is %.1e, below %.0e: it is numerically nothing; "
                "lower inverse_scale or raise the learning rate",
                self.mean,
                NEGLIGIBLE,
            )

    @property
    def mean(self) -> float:
        """The mean over layers at the last measurement; NaN before the first."""
        values = list(self.by_layer.values())
        return sum(values) / len(values) if values else float("nan")


def _of_all_processes(sums: Sums) -> Sums:
    """The squared norms from all processes, which each read a part of the batch."""
    shares = all_gather({name: [(a.cpu(), b.cpu()) for a, b in sums[name]] for name in sums})
    return {name: [call for share in shares for call in share[name]] for name in sums}
