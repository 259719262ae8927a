"""Parts whose tuner keeps weights outside the layers, such as VeRA's projections.

PEFT keeps such weights on the tuner, in one container for all layers. In a stack they are on the
stack itself, under the names that PEFT saves.
"""

from collections.abc import Iterable
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from lorada.tuners.stack.nested_layers import layer_kind, layers_shown, owner_of, tuner_of

# What PeftModel calls the tuner, in names of weights.
TUNER = "base_model"


def shares_state(tuner_cls: type[BaseTuner]) -> bool:
    """Whether a tuner keeps weights outside the layers, or makes some before the layers."""
    makes_before = tuner_cls._pre_injection_hook is not BaseTuner._pre_injection_hook
    return bool(tuner_cls.uses_shared_state) or makes_before


def place(model: nn.Module, part: PeftConfig, adapter_name: str, **options: Any) -> BaseTuner:
    """Place a part by a new tuner, which has the shared weights of this adapter only."""
    tuner_cls = tuner_of(part)
    if not shares_state(tuner_cls):
        with layers_shown(model, tuner_cls.tuner_layer_cls):
            return tuner_cls(model, {adapter_name: part}, adapter_name, **options)

    class Placing(tuner_cls):  # type: ignore[misc, valid-type]
        def _pre_injection_hook(self, model: nn.Module, *arguments: Any) -> None:
            with layers_shown(model, innermost=True):
                super()._pre_injection_hook(model, *arguments)

    with layers_shown(model, tuner_cls.tuner_layer_cls, innermost=True):
        tuner: BaseTuner = Placing(model, {adapter_name: part}, adapter_name, **options)
    tuner.__class__ = tuner_cls
    return tuner


def refuse_second(model: nn.Module, tuner_cls: type[BaseTuner], placed: list[BaseTuner]) -> None:
    """Refuse a second part of a kind whose weights have one place in a model."""
    if not shares_state(tuner_cls):
        return
    if tuner_cls in map(type, placed):
        raise ValueError("an adapter has one such part at most: give it the modules of both")
    if any(layer_kind(layer) is tuner_cls.tuner_layer_cls for layer in model.modules()):
        raise ValueError(
            "the model has had an adapter with such a part: load this one onto a model of its own"
        )


def refuse_without_peft_model(parts: list[PeftConfig]) -> None:
    """Refuse a part with weights outside the layers where transformers itself places an adapter."""
    for part in parts:
        if tuner_of(part).uses_shared_state:
            raise ValueError(
                f"{type(part).__name__} keeps weights outside the model's layers, so only PEFT can "
                "load it: PeftModel.from_pretrained(base_model, folder)"
            )


def containers_of(tuner: BaseTuner) -> dict[str, Any]:
    """The containers of a tuner's shared weights, by name; empty for most tuners."""
    return {name: child for name, child in tuner.named_children() if name != "model"}


def adopt(stack: nn.Module, tuners: list[BaseTuner]) -> None:
    """Put the shared weights of an adapter's tuners on the stack."""
    for tuner in tuners:
        for name, container in containers_of(tuner).items():
            stack.add_module(name, container)


def forget(stack: nn.Module, tuners: list[BaseTuner]) -> None:
    """Remove the shared weights of an adapter's tuners; layers may refer to them too."""
    for tuner in tuners:
        for name, container in containers_of(tuner).items():
            delattr(stack, name)
            for module in container.modules():
                module._parameters.clear()
                module._buffers.clear()


def own_keys(model: nn.Module, tuner: BaseTuner, keys: Iterable[str]) -> set[str]:
    """The keys of a saved adapter that belong to a tuner: of its layers, and of shared weights."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    shared = tuple(f"{TUNER}.{name}." for name in containers_of(tuner))

    def owns(key: str) -> bool:
        if layer := owner_of(key, layers):
            return layer_kind(layers[layer]) is tuner.tuner_layer_cls
        return f"{key}.".startswith(shared)

    return {key for key in keys if owns(key)}
