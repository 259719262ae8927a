"""Switches the parts of an adapter off and on, to see what each does alone."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

# The package of a tuner layer → what its part is called; others go by the package's own name.
PART_NAMES = {"lmam": "map", "lora": "LoRA", "adalora": "AdaLoRA", "quanta": "QuanTA"}
Parts = dict[str, list[BaseTunerLayer]]


def active_parts(model: nn.Module) -> Parts:
    """The layers of each part of the active adapters, by the part's name, in order of the model."""
    parts: Parts = {}
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer) or module.disable_adapters:
            continue
        if set(module.active_adapters) & set(module._get_available_adapters()):
            # The module of a layer is peft.tuners.lora.layer or lorada.tuners.lmam, for two.
            package = type(module).__module__.partition(".tuners.")[2].partition(".")[0]
            parts.setdefault(PART_NAMES.get(package, package), []).append(module)
    return parts


def has_trained_copies(model: nn.Module) -> bool:
    """Whether the active adapters have trained copies of modules, such as a head."""
    for module in model.modules():
        if not isinstance(module, ModulesToSaveWrapper) or module.disable_adapters:
            continue
        if set(module.active_adapters) & set(module.modules_to_save):
            return True
    return False


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
    layers: list[BaseTunerLayer] = []
    for name in names:
        layers += parts[name]
    return switched_off(layers)


def without_adapter(model: nn.Module) -> AbstractContextManager[None]:
    """Switch everything off in a ``with`` block that the active adapters change."""
    kinds = BaseTunerLayer | AuxiliaryTrainingWrapper
    adapted = [module for module in model.modules() if isinstance(module, kinds)]
    # One that is off already stays off behind the block.
    return switched_off(module for module in adapted if not module.disable_adapters)
