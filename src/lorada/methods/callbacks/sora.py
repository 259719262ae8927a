"""SoRA's schedule: applies a threshold to the gates after each step, and sweeps thresholds.

    g ← T( optimizer step on g )

T is the soft threshold, at ξ = ηλ (publication) or at a constant ξ (released code). The released
code also adds a penalty λ · mean|g| to the loss. Here each step starts the gates' gradients at the
gradient of that penalty, so that it is accumulated, clipped and scaled with the loss's.
The sweep is Algorithm 1: training continues with one threshold after another.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerState

from lorada.methods.callbacks.layers import trained
from lorada.tuners.sora import THRESHOLDS, SoraLayer, sora_count


class SoraCallback(TrainerCallback):  # type: ignore[misc]
    """Thresholds the gates after each optimizer step, and exempts them from weight decay.

    The penalty on the gates is an option of ``SoraConfig``. The number of the step decides what the
    callback does, so runs resume exactly without anything from a checkpoint.

    Args:
        xi: the threshold ξ; with a sweep, the first one.
        threshold: ``soft`` (publication) or ``released`` (the code, which zeroes up to 2ξ).
        times_learning_rate: whether to multiply ξ by the learning rate of the step, as in the
            publication's ηλ.
        sweep: further thresholds, each for ``sweep_epochs`` at the end of training. The adapter
            of each is saved as ``output_dir/xi-VALUE``.
        sweep_epochs: epochs of each threshold of the sweep.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        xi: float = 3e-4,
        threshold: str = "soft",
        times_learning_rate: bool = False,
        sweep: tuple[float, ...] | list[float] = (),
        sweep_epochs: float = 15.0,
    ) -> None:
        for name, value in (("xi", xi), *(("sweep", value) for value in sweep)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} must be a number from 0 on")
        if threshold not in THRESHOLDS:
            listed = ", ".join(repr(name) for name in THRESHOLDS)
            raise ValueError(f"threshold={threshold!r} is not one of {listed}")
        if not 0 < sweep_epochs < math.inf:
            raise ValueError(f"sweep_epochs={sweep_epochs!r} must be a number above 0")
        self.xi, self.threshold = xi, THRESHOLDS[threshold]
        self.times_learning_rate = times_learning_rate
        self.sweep, self.sweep_epochs = tuple(sweep), sweep_epochs
        self._before: list[torch.Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that gates train, that a penalty can be added, and that the sweep has time.

        Raises:
            ValueError: if a check fails.
        """
        if not gates_of(kwargs["model"]):
            raise ValueError("no SoRA gates train here: add a SoraConfig to the model's adapter")
        if getattr(args, "deepspeed", None) and any(_penalties(kwargs["model"]).values()):
            raise ValueError(
                "sora.penalty is added to the gradients before each step, and DeepSpeed gives no "
                "access to them: use penalty=0, DDP or FSDP"
            )
        if self.sweep and self._sweep_start(state) <= 0:
            raise ValueError(
                f"{len(self.sweep)} thresholds of {self.sweep_epochs:g} epochs each leave none of "
                f"num_train_epochs={args.num_train_epochs:g} for training before the sweep"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the gates' gradients to the penalty's: λ · sign(g) / number of gates."""
        penalties = _penalties(kwargs["model"])
        number = sum(gate.numel() for gate in penalties)
        # fp16 scales the loss, and with it every gradient.
        scaler = getattr(kwargs["optimizer"], "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        for gate, penalty in penalties.items():
            if penalty:
                gate.grad = gate.detach().sign() * (penalty / number * scale)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Undo in advance the weight decay that AdamW is about to apply to the gates.

        The Trainer puts them into the group with weight decay, but SoRA's gates do not decay.
        """
        gates = gates_of(kwargs["model"])
        groups = _groups(kwargs["optimizer"])
        self._before = [gate.detach().clone() for gate in gates]
        for gate in gates:
            if gate.grad is None:
                continue
            if decay := _decay(kwargs["optimizer"], groups[gate]):
                gate.data.div_(1 - decay)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Threshold the gates."""
        gates = gates_of(kwargs["model"])
        if getattr(kwargs["optimizer"], "step_was_skipped", False):  # fp16 gradients overflowed
            for gate, before in zip(gates, self._before, strict=True):
                gate.data.copy_(before)
            return
        groups, xi = _groups(kwargs["optimizer"]), self.xi_at(state)
        for gate in gates:
            rate = groups[gate]["lr"] if self.times_learning_rate else 1.0
            gate.data.copy_(self.threshold(gate.detach(), xi * rate))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the adapter when a threshold of the sweep has had its epochs."""
        if not self.sweep:
            return
        ends = [self._sweep_start(state) + self._stage(state) * i for i in range(len(self.sweep))]
        values = dict(zip([*ends, state.max_steps], (self.xi, *self.sweep), strict=True))
        if state.global_step in values:
            value = values[state.global_step]
            self._report(state, kwargs["model"], value)
            if state.is_world_process_zero:
                kwargs["model"].save_pretrained(str(Path(args.output_dir) / f"xi-{value:g}"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log how many gates are 0 and how many parameters are left."""
        if not self.sweep:
            self._report(state, kwargs["model"], self.xi)

    def xi_at(self, state: TrainerState) -> float:
        """The threshold of the step that follows the steps done so far."""
        late = int(state.global_step) - self._sweep_start(state)
        if not self.sweep or late < 0:
            return self.xi
        return self.sweep[min(late // self._stage(state), len(self.sweep) - 1)]

    def _stage(self, state: TrainerState) -> int:
        """Steps of each threshold of the sweep."""
        per_epoch = float(state.max_steps) / float(state.num_train_epochs)
        return max(1, round(self.sweep_epochs * per_epoch))

    def _sweep_start(self, state: TrainerState) -> int:
        return int(state.max_steps) - len(self.sweep) * self._stage(state)

    def _report(self, state: TrainerState, model: nn.Module, xi: float) -> None:
        for name in dict.fromkeys(name for name, _ in trained(model, SoraLayer, "lora_gate")):
            count = sora_count(model, name)
            state.log_history.append(
                {
                    "step": state.global_step,
                    "sora_adapter": name,
                    "sora_xi": xi,
                    "sora_zero_gates": count.zero_gates,
                    "sora_parameters": count.remaining,
                }
            )


def sweep_values(
    largest: float = 7e-4, number: int = 7, first: float = 0.0, spacing: str = "linear"
) -> list[float]:
    """Evenly spaced thresholds for ``SoraCallback(sweep=…)``, from the first to the largest.

    Args:
        largest: the last threshold.
        number: of thresholds, the first included.
        first: the threshold before the sweep, which is not returned.
        spacing: what is spaced evenly: the thresholds (``linear``), their exponentials
            (``log_linear``) or their logarithms (``exp_linear``, for a first one above 0).

    Raises:
        ValueError: for values that make no rising sweep.
    """
    if spacing not in SPACINGS:
        listed = ", ".join(repr(name) for name in SPACINGS)
        raise ValueError(f"spacing={spacing!r} is not one of {listed}")
    if number < 2 or not 0 <= first < largest:
        raise ValueError(f"number={number}, first={first}, largest={largest} is no rising sweep")
    if spacing == "exp_linear" and first == 0:
        raise ValueError("spacing='exp_linear' needs first above 0, as 0 has no logarithm")
    there, back = SPACINGS[spacing]
    low, high = there(first), there(largest)
    inner = [back(low + (high - low) * i / (number - 1)) for i in range(1, number - 1)]
    return [*inner, largest]


# expm1 and log1p, because exp and log would round such small numbers away.
SPACINGS = {
    "linear": (float, float),
    "log_linear": (math.expm1, math.log1p),
    "exp_linear": (math.log, math.exp),
}


def gates_of(model: nn.Module) -> list[nn.Parameter]:
    """The gates that train."""
    return [gate for _, gate in trained(model, SoraLayer, "lora_gate")]


def _penalties(model: nn.Module) -> dict[nn.Parameter, float]:
    """The gates that train, each with the λ of its config."""
    return {
        gate: layer.configs[name].penalty
        for layer in model.modules()
        if isinstance(layer, SoraLayer)
        for name, gate in layer.lora_gate.items()
        if gate.requires_grad
    }


def _groups(optimizer: Any) -> dict[nn.Parameter, dict[str, Any]]:
    """The parameter group of each parameter of an optimizer."""
    return {p: group for group in optimizer.param_groups for p in group["params"]}


def _decay(optimizer: Any, group: dict[str, Any]) -> float:
    """The share of a parameter that AdamW's weight decay is about to subtract.

    Raises:
        ValueError: for an optimizer other than AdamW with weight decay.
    """
    if not group.get("weight_decay"):
        return 0.0
    name = type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate wraps it
    if "adamw" not in name.lower():
        raise ValueError(
            f"weight_decay={group['weight_decay']} of {name} would decay SoRA's gates: "
            "use optim='adamw_torch' or weight_decay=0"
        )
    return float(group["lr"] * group["weight_decay"])
