"""Parts whose tuner keeps weights outside the layers, such as VeRA's projections.

PEFT keeps such weights on the tuner, in one container for all layers and all adapters, whose keys
are the adapters' names. In a stack they are on the stack itself, under the names that PEFT saves.
"""

from collections.abc import Iterable
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from lorada.tuners.stack.nesting import layer_kind, layers_shown, owner_of, tuner_of

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


def refuse_second(tuner_cls: type[BaseTuner], placed: list[BaseTuner]) -> None:
    """Refuse a second part of a kind whose weights have one place in an adapter.

    Raises:
        ValueError: with the remedy.
    """
    if shares_state(tuner_cls) and tuner_cls in map(type, placed):
        raise ValueError("an adapter has one such part at most: give it the modules of both")


def refuse_without_peft_model(parts: list[PeftConfig]) -> None:
    """Refuse a part with weights outside the layers where transformers itself places an adapter.

    Raises:
        ValueError: with the way to load it.
    """
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
    """Put the shared weights of an adapter's tuners beside those of earlier adapters."""
    joined: dict[int, nn.Module] = {}
    for tuner in tuners:
        for name, container in containers_of(tuner).items():
            if name in stack._modules:
                _join(stack._modules[name], container, joined)
            else:
                stack.add_module(name, container)
    for module in [*stack.modules(), *tuners] if joined else []:
        # FRoD's layers have their containers as plain attributes, which are no submodules.
        for attributes in (module._modules, vars(module)):
            for name, value in attributes.items():
                if id(value) in joined:
                    attributes[name] = joined[id(value)]


def _join(here: Any, new: Any, joined: dict[int, nn.Module]) -> None:
    """Move the weights of a container into that of earlier adapters; note which replaces which."""
    joined[id(new)] = here
    if hasattr(new, "persistent"):  # whether its buffers are saved
        here.persistent = new.persistent
    for key, value in new.items():
        if _is_container(value) and key in here:
            _join(here[key], value, joined)
        else:
            here[key] = value


def _is_container(value: Any) -> bool:
    """Whether an entry of a container is itself one, as FRoD's for each kind of matrix are."""
    return hasattr(value, "persistent")


def forget(stack: nn.Module, adapter_name: str) -> None:
    """Delete the shared weights of an adapter."""
    for name, container in stack.named_children():
        if name != "model":
            _drop(container, adapter_name)


def _drop(container: Any, adapter_name: str) -> None:
    if adapter_name in container and not _is_container(container[adapter_name]):
        del container[adapter_name]
    for entry in container.children():
        if _is_container(entry):
            _drop(entry, adapter_name)


def own_keys(model: nn.Module, tuner: BaseTuner, keys: Iterable[str]) -> set[str]:
    """The keys of a saved adapter that belong to a tuner: of its layers, and of shared weights."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    shared = tuple(f"{TUNER}.{name}." for name in containers_of(tuner))

    def owns(key: str) -> bool:
        if layer := owner_of(key, layers):
            return layer_kind(layers[layer]) is tuner.tuner_layer_cls
        return f"{key}.".startswith(shared)

    return {key for key in keys if owns(key)}
