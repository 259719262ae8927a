"""Switches the parts of an adapter off and on, to see what each does alone."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
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
            package = type(module).__module__.partition(".tuners.")[2].partition(".")[0]
            found.setdefault(CALLED.get(package, package), []).append(module)
    return found


def has_trained_copies(model: nn.Module) -> bool:
    """Whether the active adapters have trained copies of modules, such as a head."""
    return any(
        isinstance(module, ModulesToSaveWrapper)
        and not module.disable_adapters
        and set(module.active_adapters) & set(module.modules_to_save)
        for module in model.modules()
    )


@contextmanager
def switched_off(layers: Iterable[Any]) -> Iterator[None]:
    """Switch layers off in a ``with`` block; what trains stays as it is."""
    # Not by ``enable_adapters``: it makes every adapter trainable that it switches on.
    layers = list(layers)
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def without_parts(parts: Parts, names: Iterable[str]) -> AbstractContextManager[None]:
    """Switch some parts off in a ``with`` block; trained copies of modules, as a head, stay."""
    return switched_off(layer for name in names for layer in parts[name])


def without_adapter(model: nn.Module) -> AbstractContextManager[None]:
    """Switch everything off in a ``with`` block that the active adapters change."""
    kinds = BaseTunerLayer | AuxiliaryTrainingWrapper
    return switched_off(
        m for m in model.modules() if isinstance(m, kinds) and not m.disable_adapters
    )
