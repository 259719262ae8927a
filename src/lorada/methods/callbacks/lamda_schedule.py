"""LaMDA's schedule: freezes the columns of B one after another.

    columns frozen after t of T steps = min(r, ⌊r · t / (η T)⌋)

η is the share of the steps after which all of B is frozen.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from lorada.tuners.base.part_config import check_values
from lorada.tuners.lamda import LamdaLayer


@dataclass(eq=False)
class LamdaCallback(TrainerCallback):  # type: ignore[misc]
    """Freezes the columns of B in order, the leading singular directions first.

    A frozen column keeps its value exactly. Its gradient is set to 0, so that it does not count
    when gradients are clipped by norm. The optimizer would still change it through its moments and
    weight decay, so its value is restored after each step. The number of the step decides what is
    frozen, so runs resume exactly without anything from a checkpoint.
    """

    # η, the share of the steps over which B is frozen.
    eta: Annotated[float, Field(gt=0, le=1)] = 0.3
    _share: float = field(default=0.0, init=False)
    _handles: list[RemovableHandle] = field(default_factory=list, init=False)
    _saved: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        check_values(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Register hooks that set the gradients of frozen columns to 0."""
        matrices = matrices_of(kwargs["model"])
        if not matrices:
            raise ValueError("no LaMDA matrices train here: add a LamdaConfig to the adapter")
        self._handles = [matrix.register_hook(self._without_frozen) for matrix in matrices]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compute the share of the columns that is frozen in this step."""
        self._share = min(1.0, float(state.global_step) / (self.eta * float(state.max_steps)))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the values of the frozen columns."""
        self._saved = []
        for matrix in matrices_of(kwargs["model"]):
            frozen = self._frozen(matrix)
            if frozen:
                self._saved.append((matrix, matrix.detach()[:, :frozen].clone()))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the values of the frozen columns."""
        for matrix, columns in self._saved:
            matrix.data[:, : columns.shape[1]] = columns
        self._saved = []

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _frozen(self, matrix: Tensor) -> int:
        """How many columns of a matrix are frozen in this step."""
        # Without the 1e-9, rounding could leave a whole number such as 3/10 · 10 just below 3.
        return math.floor(self._share * matrix.shape[1] + 1e-9)

    def _without_frozen(self, gradient: Tensor) -> Tensor:
        """The gradient of a matrix, 0 for its frozen columns."""
        frozen = self._frozen(gradient)
        return torch.cat([torch.zeros_like(gradient[:, :frozen]), gradient[:, frozen:]], dim=1)


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """The matrices B that train."""
    matrices: list[nn.Parameter] = []
    for layer in model.modules():
        if isinstance(layer, LamdaLayer):
            matrices += [matrix for matrix in layer.lora_B.values() if matrix.requires_grad]
    return matrices
