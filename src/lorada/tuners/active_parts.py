"""Switches the parts of an adapter off and on, to see what each does alone."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

# The package of a tuner layer → what its part is called; others go by the package's own name.
CALLED = {"lmam": "map", "lora": "LoRA", "adalora": "AdaLoRA", "quanta": "QuanTA"}
Parts = dict[str, list[BaseTunerLayer]]


def active_parts(model: nn.Module) -> Parts:
    """The layers of each part of the active adapters, by the part's name, in order of the model."""
    found: Parts = {}
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer) or module.disable_adapters:
            continue
        if set(module.active_adapters) & set(module._get_available_adapters()):
            found.setdefault(part_name(module), []).append(module)
    return found


def has_trained_copies(model: nn.Module) -> bool:
    """Whether the active adapters have trained copies of modules, such as a head."""
    return any(
        isinstance(module, ModulesToSaveWrapper)
        and not module.disable_adapters
        and set(module.active_adapters) & set(module.modules_to_save)
        for module in model.modules()
    )


def part_name(layer: BaseTunerLayer) -> str:
    """What the part that a layer belongs to is called."""
    package = type(layer).__module__.partition(".tuners.")[2].partition(".")[0]
    return CALLED.get(package, package)


@contextmanager
def trains_as_before(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Restore at the end what trains: PEFT makes every adapter trainable that it switches on."""
    before = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad = requires_grad


@contextmanager
def switched_off(layers: Sequence[Any]) -> Iterator[None]:
    """Switch layers off in a ``with`` block; trained copies of modules, such as a head, stay."""
    with trains_as_before(layers):
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)


@contextmanager
def without_parts(parts: Parts, names: Iterable[str]) -> Iterator[None]:
    """Switch some parts off in a ``with`` block."""
    with switched_off([layer for name in names for layer in parts[name]]):
        yield


@contextmanager
def without_adapter(model: nn.Module, parts: Parts) -> Iterator[None]:
    """Switch everything off in a ``with`` block that the active adapters change."""
    with ExitStack() as stack:
        if isinstance(model, PeftModel):  # it has trained copies of modules too, such as a head
            stack.enter_context(trains_as_before([model]))
            stack.enter_context(model.disable_adapter())
        else:
            stack.enter_context(without_parts(parts, parts))
        yield
