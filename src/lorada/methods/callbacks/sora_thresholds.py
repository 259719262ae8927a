"""SoRA's schedule: applies a threshold to the gates after each step.

    g ← T( optimizer step on g )

T is the soft threshold of the publication, at a constant ξ as in the released code, which
also adds a penalty λ · mean|g| to the loss. Here each step starts the gates' gradients at the
gradient of that penalty, so that it is accumulated, clipped and scaled with the loss's.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from transformers import TrainerCallback

from lorada.tuners.base.part_config import check_values
from lorada.tuners.sora import SoraLayer, soft_threshold


@dataclass(eq=False)
class SoraCallback(TrainerCallback):  # type: ignore[misc]
    """Thresholds the gates after each optimizer step, and exempts them from weight decay.

    The penalty on the gates is an option of ``SoraConfig``. The number of the step decides what the
    callback does, so runs resume exactly without anything from a checkpoint.
    """

    xi: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3e-4  # the threshold ξ
    _before: list[torch.Tensor] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        check_values(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that gates train, and that a penalty can be added."""
        gates = gates_of(kwargs["model"])
        if not gates:
            raise ValueError("no SoRA gates train here: add a SoraConfig to the model's adapter")
        if getattr(args, "deepspeed", None) and any(gates.values()):
            raise ValueError(
                "sora.penalty is added to the gradients before each step, and DeepSpeed gives no "
                "access to them: use penalty=0, DDP or FSDP"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the gates' gradients to the penalty's: λ · sign(g) / number of gates."""
        gates = gates_of(kwargs["model"])
        number = sum(gate.numel() for gate in gates)
        # fp16 scales the loss, and with it every gradient.
        scaler = getattr(kwargs["optimizer"], "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        for gate, penalty in gates.items():
            if penalty:
                gate.grad = gate.detach().sign() * (penalty / number * scale)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Undo in advance the weight decay that AdamW is about to apply to the gates.

        The Trainer puts them into the group with weight decay, but SoRA's gates do not decay.
        """
        gates = gates_of(kwargs["model"])
        groups = _group_by_parameter(kwargs["optimizer"])
        self._before = [gate.detach().clone() for gate in gates]
        for gate in gates:
            if gate.grad is not None:
                gate.data.div_(1 - _decay(kwargs["optimizer"], groups[gate]))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Threshold the gates."""
        gates = gates_of(kwargs["model"])
        if getattr(kwargs["optimizer"], "step_was_skipped", False):  # fp16 gradients overflowed
            for gate, before in zip(gates, self._before, strict=True):
                gate.data.copy_(before)
            return
        for gate in gates:
            gate.data.copy_(soft_threshold(gate.detach(), self.xi))


def gates_of(model: nn.Module) -> dict[nn.Parameter, float]:
    """The gates that train, each with the λ of its config."""
    gates = {}
    for layer in model.modules():
        if isinstance(layer, SoraLayer):
            for name, gate in layer.lora_gate.items():
                if gate.requires_grad:
                    gates[gate] = layer.configs[name].penalty
    return gates


def _group_by_parameter(optimizer: Any) -> dict[nn.Parameter, dict[str, Any]]:
    """The parameter group of each parameter of an optimizer."""
    groups: dict[nn.Parameter, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        groups |= dict.fromkeys(group["params"], group)
    return groups


def _decay(optimizer: Any, group: dict[str, Any]) -> float:
    """The share of a parameter that AdamW's weight decay is about to subtract."""
    if not group.get("weight_decay"):
        return 0.0
    name = type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate wraps it
    if "adamw" not in name.lower():
        raise ValueError(
            f"weight_decay={group['weight_decay']} of {name} would decay SoRA's gates: "
            "use optim='adamw_torch' or weight_decay=0"
        )
    return float(group["lr"] * group["weight_decay"])
