"""``peft.helpers.rescale_adapter_scale``, which scales LoRA alone and would leave a map as it is.

That function asks each module of a model, from the outside in, whether it is a ``LoraLayer``. So
the stack, which comes before its layers, can refuse before anything is changed.
"""

from typing import Any

from peft import helpers
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner

from lorada.tuners.stack.nesting import tuner_of


class _AllLora(type):
    """The class of ``Scaled``, which answers for ``isinstance``."""

    def __instancecheck__(cls, module: Any) -> bool:
        if isinstance(module, BaseTuner):
            parts = [part for name in module.active_adapters
                     for part in getattr(module.peft_config[name], "parts", [])]  # fmt: skip
            other = [p for p in parts if not issubclass(tuner_of(p).tuner_layer_cls, LoraLayer)]
            if other:
                kinds = sorted({type(part).__name__ for part in other})
                raise ValueError(
                    f"rescale_adapter_scale scales LoRA alone and would leave {', '.join(kinds)} "
                    "as before: activate an adapter that is LoRA alone"
                )
        return isinstance(module, LoraLayer)


class Scaled(metaclass=_AllLora):
    """Layers that ``rescale_adapter_scale`` scales."""


def register() -> None:
    """Let ``rescale_adapter_scale`` ask for ``Scaled``, wherever it was imported before."""
    helpers.LoraLayer = Scaled  # type: ignore[misc, assignment]
