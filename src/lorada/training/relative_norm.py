"""A Trainer callback that measures the relative norm of a model's maps while it trains.

It is not beside ``lorada.explain``, because it imports transformers' callbacks, and ``import
lorada`` must not: see ``lorada/__init__.py``.
"""

import logging
import weakref
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from lorada.attention.observation import Observation, observe, ratio_of, squared_norms
from lorada.support.processes import gather_values

logger = logging.getLogger(__name__)

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
    shares = gather_values({name: [(a.cpu(), b.cpu()) for a, b in sums[name]] for name in sums})
    return {name: [call for share in shares for call in share[name]] for name in sums}
