"""PEFT's LN tuning beside adapters without it: its layer knows only adapters that it has."""

from peft.tuners.ln_tuning.layer import LNTuningLayer
from torch import nn


class OwnNorm(LNTuningLayer):  # type: ignore[misc]
    """A norm and the trained copies of any number of adapters."""

    @property
    def active_adapters(self) -> list[str]:
        """The active adapters that have a copy; PEFT's layer would look for one of each."""
        return [name for name in super().active_adapters if name in self.ln_tuning_layers]


def let_stand_beside_others(model: nn.Module) -> None:
    """Let the norms that LN tuning has placed in a model stand aside for adapters without it."""
    for module in model.modules():
        if type(module) is LNTuningLayer:
            module.__class__ = OwnNorm
