"""``peft.helpers.rescale_adapter_scale``, which scales LoRA alone and would leave a map as it is.

That function asks each module of a model, from the outside in, whether it is a ``LoraLayer``. So
the stack, which comes before its layers, can refuse before anything is changed.
"""

from typing import Any

from peft import helpers
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner

from lorada.tuners.stack.nested_layers import tuner_of


class _LoraAlone(type):
    def __instancecheck__(cls, module: Any) -> bool:
        for name in module.active_adapters if isinstance(module, BaseTuner) else ():
            for part in getattr(module.peft_config[name], "parts", []):
                if not issubclass(tuner_of(part).tuner_layer_cls, LoraLayer):
                    raise ValueError(
                        "rescale_adapter_scale scales LoRA alone and would leave "
                        f"{type(part).__name__} as before: activate an adapter that is LoRA alone"
                    )
        return isinstance(module, LoraLayer)


class Scaled(metaclass=_LoraAlone):
    """The layers that ``rescale_adapter_scale`` scales."""


def register() -> None:
    """Let ``rescale_adapter_scale`` ask for ``Scaled``, wherever it was imported before."""
    helpers.LoraLayer = Scaled  # type: ignore[misc, assignment]
