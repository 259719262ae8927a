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
from lorada.runs.checkpoints import STATE_FILE, checkpoints
from lorada.support.processes import all_gather, all_or_none, in_any_process

logger = logging.getLogger(__name__)


class DivergedError(ValueError):
    """The loss or a weight became NaN or infinite."""


@all_or_none()
def refuse_broken(model: nn.Module, args: TrainingArguments, state: TrainerState) -> None:
    """Refuse weights that train and are NaN or infinite in any process.

    Raises:
        DivergedError: in the process that has such a weight; the others raise OtherProcessError.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not parameter.is_floating_point():
            continue
        weight = parameter.detach()
        if hasattr(weight, "to_local"):  # under FSDP, the shard that this process has
            weight = weight.to_local()
        if not torch.isfinite(weight).all():
            raise _diverged(f"{name} is not finite after step {state.global_step}", args, state)


def refuse_broken_loss(loss: Tensor, args: TrainingArguments, state: TrainerState) -> None:
    """Refuse a step whose loss is NaN or infinite in any process, before its update.

    Raises:
        DivergedError: as ``refuse_broken``.
    """
    broken = not bool(torch.isfinite(loss))
    if not in_any_process(broken, args.device):
        return
    # The process with the broken loss says so; the others end with it.
    with all_or_none():
        if broken:
            event = f"the loss became {float(loss)} at step {state.global_step + 1}"
            raise _diverged(event, args, state)


def _diverged(event: str, args: TrainingArguments, state: TrainerState) -> DivergedError:
    """The error with what happened, the newest checkpoint from before, and what to do."""
    last_good = "no good checkpoint was saved yet"
    for step, path in checkpoints(Path(args.output_dir)):  # the newest first
        if step < state.global_step:
            last_good = f"the last good checkpoint is {path}"
            break
    return DivergedError(f"{event}; {last_good}. Start again with a lower training.learning_rate")


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
        """Note the first Ctrl-C, and raise ``KeyboardInterrupt`` at the second."""
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if Ctrl-C was pressed in any process; all do so after the same step."""
        self.interrupted = in_any_process(self._pressed, args.device)
        if self.interrupted:
            # The Trainer reads these flags after the callbacks of this step.
            control.should_save = True
            control.should_training_stop = True
            args.save_only_model = False  # a run cannot go on without its optimizer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure nothing where an epoch was cut off, and save what is measured at a true end."""
        if not self.interrupted:
            return
        # transformers calls this after an interrupted epoch too, as if it had ended.
        is_true_end = float(state.epoch).is_integer() or state.global_step >= state.max_steps
        control.should_evaluate &= is_true_end
        control.should_save = is_true_end and (control.should_save or control.should_evaluate)
        # With a limit of 1 the Trainer ends by deleting all checkpoints except the best.
        args.save_total_limit = None

    def restore(self) -> None:
        """Give SIGINT back to its previous handler."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class StepTimer(TrainerCallback):  # type: ignore[misc]
    """Measures the time of a step."""

    def __init__(self) -> None:
        self._step_ends: list[float] = []  # when each step of this process ended

    @property
    def seconds_per_step(self) -> float | None:
        """The median time from the end of a step to that of the next; None before the second step.

        Evaluations and saves lie between few steps, so they hardly move it.
        """
        step_times = [end - start for start, end in pairwise(self._step_ends)]
        return median(step_times) if step_times else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self._step_ends.append(time.monotonic())


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """What every run does when a step, an epoch or a save ends; the last callback.

    If it ``measures``, held-out rows are measured after the last step and, if the recipe has no
    ``eval_strategy``, after each epoch.
    """

    def __init__(self, *, measures: bool) -> None:
        self.measures = measures

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare a save, and ask for a measurement before it, so that a resumed run has it too."""
        is_last_step = state.global_step >= state.max_steps
        self._before_save(args, state, control, kwargs["model"], is_last_step=is_last_step)
        if self.measures and args.eval_strategy == "steps":
            control.should_evaluate |= is_last_step
        elif self.measures and args.eval_strategy == "no":
            is_end_of_epoch = float(state.epoch or 0).is_integer()
            control.should_evaluate |= is_last_step or is_end_of_epoch

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare a save: ``save_strategy=epoch`` asks for one only now."""
        self._before_save(args, state, control, kwargs["model"], is_last_step=False)

    @staticmethod
    def _before_save(
        args: Any, state: Any, control: Any, model: nn.Module, *, is_last_step: bool
    ) -> None:
        """Before a save: log the loss, unmark a checkpoint of before, refuse broken weights."""
        if control.should_save:
            # The Trainer does not save the sum of the losses since its last log line, so a run that
            # resumes between two lines would log another mean than an uninterrupted run.
            control.should_log |= args.logging_strategy != "no"
            if state.is_world_process_zero:
                # A checkpoint that is written again is whole when it is written to its end again.
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                (checkpoint / STATE_FILE).unlink(missing_ok=True)
        if control.should_save or is_last_step:
            # Losses do not show what the last update broke. The processes wait for each other here,
            # so that none writes into a checkpoint that still counts as whole.
            refuse_broken(model, args, state)


# Layer → the squared norms ‖Attn_s·V‖² and ‖Attn·V‖² of each call of it, each of shape ().
NormsByLayer = dict[str, list[tuple[Tensor, Tensor]]]

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
        self._norms: NormsByLayer = {}
        self._names: dict[nn.Module, str] = {}
        # While it measures: what stops it, at the latest when this callback is garbage.
        self._stop_observing: weakref.finalize[..., RelativeNorm] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Learn the names of the model's layers."""
        model: nn.Module = kwargs["model"]
        self._names = {module: name for name, module in model.named_modules()}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start to measure if this step is to be logged, or saved: ``RunCallback`` logs saves."""
        self._norms = {}
        # ``global_step`` counts finished steps; this one is the next.
        step = state.global_step + 1
        if _will_log(step, args, state) or _will_save(step, args, state):
            self._start_observing()

    def _start_observing(self) -> None:
        """Let attention report to this callback, until ``stop`` or the callback's end."""
        self.stop()
        # A weak reference, so that attention does not keep the callback of an abandoned training.
        weak_self = weakref.ref(self)

        def pass_on(observation: Observation) -> None:
            callback = weak_self()
            if callback is not None:
                callback._observe(observation)

        context = observe(pass_on)
        context.__enter__()
        self._stop_observing = weakref.finalize(self, context.__exit__, None, None, None)

    def stop(self) -> None:
        """Stop measuring; call it too when training ends with an error."""
        if self._stop_observing is not None:
            self._stop_observing()
            self._stop_observing = None

    def _observe(self, observation: Observation) -> None:
        """Keep the squared norms of one attention call of a layer that trains."""
        module = observation.call.module
        name = self._names.get(module)
        if name is not None and module.training:  # not while held-out rows are measured
            self._norms.setdefault(name, []).append(squared_norms(observation))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop measuring."""
        self.stop()
        if not self._norms:
            return
        norms = self._norms
        if args.world_size > 1:
            norms = _gather_norms(norms)
        self.by_layer = {name: ratio_of(calls) for name, calls in norms.items()}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the relative norm to the log line."""
        if logs is None or "loss" not in logs or not self._norms:
            return  # this step was not measured
        values = {"relative_norm": self.mean, "relative_norm_max": max(self.by_layer.values())}
        logs.update(values)
        # The Trainer has put a copy of the line into its history before it calls this.
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
        norms = list(self.by_layer.values())
        return sum(norms) / len(norms) if norms else float("nan")


def _will_log(step: int, args: Any, state: Any) -> bool:
    """Whether the Trainer logs after this step, or may."""
    if args.logging_strategy != "steps" or step == state.max_steps:
        return True
    if step == 1 and args.logging_first_step:
        return True
    logging_steps = max(int(state.logging_steps or args.logging_steps or 1), 1)
    return step % logging_steps == 0


def _will_save(step: int, args: Any, state: Any) -> bool:
    """Whether the Trainer saves after this step because of ``save_steps``."""
    save_steps = int(state.save_steps or 0)
    return args.save_strategy == "steps" and save_steps > 0 and step % save_steps == 0


def _gather_norms(norms: NormsByLayer) -> NormsByLayer:
    """The squared norms from all processes, which each read a part of the batch.

    It is called only where there are several.
    """
    own_norms: NormsByLayer = {}
    for name, calls in norms.items():
        own_norms[name] = [
            # On the CPU, because a tensor arrives on the device that it was sent from.
            (map_norm.cpu(), attention_norm.cpu())
            for map_norm, attention_norm in calls
        ]
    all_norms: NormsByLayer = {name: [] for name in norms}
    for process_norms in all_gather(own_norms):
        for name in norms:
            all_norms[name] += process_norms[name]
    return all_norms
