"""Several wrapping parts on one module, and several adapters with different parts there.

PEFT wraps: LoRA and then IA3 on one module give ``IA3(base_layer=LoRA(base_layer=Linear))``. Within
one adapter the order is that of its parts. A second adapter must find the layers of the first, and
its file must not depend on what else was loaded, so names are saved as if it were alone.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorada.support.errors import MOST
from lorada.tuners.base.attached_layer import AttachedLayer, within_layer
from lorada.tuners.base.config import refuse_no_layers

BASE = ".base_layer"


def tuner_of(part: PeftConfig) -> type[BaseTuner]:
    """The tuner that places a part."""
    tuner_cls: type[BaseTuner] = PEFT_TYPE_TO_TUNER_MAPPING[part.peft_type]
    return tuner_cls


def part_kind(tuner: BaseTuner, adapter_name: str) -> tuple[type, str | None]:
    """What two parts on one module must differ in; bottlenecks may be at two places of it."""
    config = tuner.peft_config[adapter_name]
    return tuner.tuner_layer_cls, getattr(config, "placement", None)


def layer_kind(layer: nn.Module) -> type:
    """The kind of tuner layer a layer is: the most special, as AdaLoRA's are LoRA layers too."""
    kinds = {tuner.tuner_layer_cls for tuner in PEFT_TYPE_TO_TUNER_MAPPING.values()
             if hasattr(tuner, "tuner_layer_cls")}  # fmt: skip
    return next((cls for cls in type(layer).__mro__ if cls in kinds), type(layer))


def chains(model: nn.Module) -> dict[str, list[BaseTunerLayer]]:
    """The wrapping layers of each adapted module, outermost first, by the module's name."""
    found = {}
    for name, module in model.named_modules():
        if not _wraps(module) or name.endswith(BASE):
            continue
        chain = [module]
        while _wraps(inner := chain[-1].base_layer):
            chain.append(inner)
        found[name] = chain
    return found


def _wraps(module: Any) -> bool:
    return (
        isinstance(module, BaseTunerLayer)
        and not isinstance(module, AttachedLayer)
        and hasattr(module, "base_layer")
    )


@contextmanager
def within_reach(model: nn.Module, tuner_cls: type[BaseTuner]) -> Iterator[None]:
    """Let a tuner meet its own nested layers, so that it adds to them instead of wrapping again."""
    outer = []
    for name, chain in chains(model).items():
        for layer in chain[1:]:
            if layer_kind(layer) is tuner_cls.tuner_layer_cls:
                parent = model.get_submodule(name.rpartition(".")[0])
                outer.append((parent, name.rpartition(".")[2], chain[0]))
                setattr(parent, outer[-1][1], layer)
    try:
        yield
    finally:
        for parent, child, layer in outer:
            setattr(parent, child, layer)


def check_order(model: nn.Module, adapter_name: str, parts: list[PeftConfig]) -> None:
    """Refuse an adapter whose parts are nested in another order than it would have by itself.

    Raises:
        ValueError: naming the module.
    """
    wanted = [tuner_of(part).tuner_layer_cls for part in parts]
    for name, chain in chains(model).items():
        kinds = [layer_kind(layer) for layer in reversed(chain) if holds(layer, adapter_name)]
        if kinds != sorted(kinds, key=wanted.index):
            raise ValueError(
                f"adapter {adapter_name!r} applies its parts to {name} in another order than an "
                "adapter that is loaded already: load it into a model of its own"
            )


def names_alone(model: nn.Module, adapter_name: str) -> dict[str, str]:
    """Names of an adapter's wrapping layers → the names they have where it is the only adapter."""
    names = {}
    for name, chain in chains(model).items():
        own = [depth for depth, layer in enumerate(chain) if holds(layer, adapter_name)]
        names.update({name + BASE * depth: name + BASE * i for i, depth in enumerate(own)})
    return names


def rename(state_dict: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A state dict with the keys of some modules renamed."""
    renamed = {}
    for key, value in state_dict.items():
        owner = _owner(key, names)
        renamed[names[owner] + key[len(owner) :] if owner else key] = value
    return renamed


def keys_of_others(model: nn.Module, tuner_cls: type[BaseTuner], keys: Iterable[str]) -> set[str]:
    """The keys that belong to tuner layers of another kind than those of ``tuner_cls``."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    owners = {key: _owner(key, layers) for key in keys}
    return {
        key
        for key, owner in owners.items()
        if owner and layer_kind(layers[owner]) is not tuner_cls.tuner_layer_cls
    }


def _owner(key: str, names: dict[str, Any]) -> str:
    """The longest of ``names`` that ``key`` lies under; empty if none."""
    owner = key.rpartition(".")[0]
    while owner and owner not in names:
        owner = owner.rpartition(".")[0]
    return owner


def holds(layer: BaseTunerLayer, adapter_name: str) -> bool:
    """Whether a layer has weights of an adapter."""
    return adapter_name in layer._get_available_adapters()


@contextmanager
def misfit_named(model: nn.Module, part: PeftConfig, parts: list[PeftConfig]) -> Iterator[None]:
    """Make errors of placing a part one line that names it, and what it could have been placed on.

    Raises:
        ValueError: in place of the ``ValueError`` that the part's tuner raised.
    """
    try:
        refuse_no_layers(part)
        yield
    except ValueError as error:
        text = " ".join(str(error).split())
        if isinstance(error, NoMatchingPeftModuleError):
            targets = part.target_modules
            shown = sorted(targets) if isinstance(targets, set) else targets
            layers = getattr(part, "layers_to_transform", None)
            within = "" if layers is None else f" in layers_to_transform={layers!r}"
            text = f"target_modules={shown!r}{within} matched no module"
        if re.search("target.modules", text, re.IGNORECASE) and "this model has" not in text:
            names = matrices(model)
            more = f" and {len(names) - MOST} more" if names[MOST:] else ""
            text += f"; this model has {', '.join(names[:MOST]) or 'no matrices'}{more}"
        place = next(i for i, other in enumerate(parts, 1) if other is part)
        raise ValueError(
            f"{type(part).__name__}, part {place} of {len(parts)} of the stack: {text}"
        ) from error


def matrices(model: nn.Module) -> list[str]:
    """Names, within a layer, of the matrices of a model, whether a part is on them or not."""
    names: list[str] = []
    tuner_layers: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{layer}.") for layer in tuner_layers):
            continue
        if isinstance(module, BaseTunerLayer):
            tuner_layers.append(name)
        if _wraps(module) or isinstance(module, nn.Linear | Conv1D):
            names.append(within_layer(name))
    return list(dict.fromkeys(names))
