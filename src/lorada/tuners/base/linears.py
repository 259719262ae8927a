"""The linear layers of a model, and the tuner layers that PEFT wraps around modules.

PEFT wraps a module once for each kind of part: LoRA and then IA3 on one linear layer give
``IA3(base_layer=LoRA(base_layer=Linear))``.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

BASE_LAYER = ".base_layer"  # behind a wrapper's name, with the dot: the module that it wraps


def within_layer(name: str) -> str:
    """A module's name within its layer: ``model.layers.3.self_attn`` → ``self_attn``."""
    return re.sub(r"^.*\.\d+\.", "", name)


def is_wrapper(module: Any) -> TypeGuard[BaseTunerLayer]:
    """Whether a module is a tuner layer around another module."""
    return isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer")


def layer_kind(layer: nn.Module) -> type:
    """The class by which a tuner finds its layers; AdaLoRA's layers are also LoRA layers."""
    tuners = PEFT_TYPE_TO_TUNER_MAPPING.values()
    kinds = {tuner.tuner_layer_cls for tuner in tuners if hasattr(tuner, "tuner_layer_cls")}
    # The nearest class that a tuner looks for: layers of PEFT are often subclasses of it.
    for cls in type(layer).__mro__:
        if cls in kinds:
            return cls
    return type(layer)


def linear_of(module: nn.Module) -> nn.Linear | Conv1D | None:
    """The module if it is linear, or the linear layer that it wraps; None for any other module."""
    while is_wrapper(module):
        module = module.base_layer
    return module if isinstance(module, nn.Linear | Conv1D) else None


def matrix(linear: Any) -> Tensor:
    """W (out, in) of a linear layer, detached; a ``Conv1D`` stores its transpose."""
    weight: Tensor = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight


def is_plain(linear: nn.Module) -> bool:
    """Whether the weight of a linear layer is a matrix of floating point numbers, not quantised."""
    # bitsandbytes and others have subclasses of ``nn.Parameter``, or whole numbers.
    weight: Any = getattr(linear, "weight", None)
    return type(weight) is nn.Parameter and weight.dtype.is_floating_point


def plain_matrix(linear: nn.Module, wish: str) -> Tensor:
    """W, unless it is quantised; ``wish`` is its use, for the error.

    Raises:
        ValueError: if it is quantised.
    """
    if not is_plain(linear):
        raise ValueError(
            f"{type(linear).__name__} is quantised, which {wish} does not support: "
            "load the model in bfloat16 or float32"
        )
    return matrix(linear)


def linears(model: nn.Module) -> dict[str, Any]:
    """The linear layers of a model or of one module, by the name of their outermost wrapper."""
    linears_by_name: dict[str, Any] = {}
    tuner_layer = None  # the name of the last one; linear layers inside it belong to adapters
    for name, module in model.named_modules():
        if tuner_layer is not None and name.startswith(f"{tuner_layer}."):
            continue
        if isinstance(module, BaseTunerLayer):
            tuner_layer = name
        linear = linear_of(module)
        if name and linear is not None:
            linears_by_name[name] = linear
    return linears_by_name


def linear_names(model: nn.Module) -> list[str]:
    """Names of a model's linear layers; within repeated layers, without the layer's index."""
    return list(dict.fromkeys(within_layer(name) for name in linears(model)))


def layer_linear_names(model: nn.Module) -> list[str]:
    """Names, within a layer, of the linear layers of a model's repeated layers."""
    names: dict[str, None] = {}  # in order, each once
    for full_name in linears(model):
        name = within_layer(full_name)
        if name != full_name:
            names[name] = None
    return list(names)


def wrappers(model: nn.Module) -> dict[str, list[BaseTunerLayer]]:
    """The tuner layers around each wrapped module, outermost first.

    They are PEFT's or ours, around modules of any kind, by the name of the outermost of them.
    """
    chains = {}
    for name, module in model.named_modules():
        # Wrappers within another are in that one's chain.
        if not is_wrapper(module) or name.endswith(BASE_LAYER):
            continue
        chain = []
        wrapped: Any = module
        while is_wrapper(wrapped):
            chain.append(wrapped)
            wrapped = wrapped.base_layer
        chains[name] = chain
    return chains


def has_adapter(layer: BaseTunerLayer, adapter_name: str) -> bool:
    """Whether a tuner layer has weights of an adapter."""
    # Weights that all layers of a model share, as VB-LoRA's, are not a layer's own; ``r`` is.
    ranks = getattr(layer, "r", None)
    if isinstance(ranks, dict) and adapter_name not in ranks:
        return False
    return adapter_name in layer._get_available_adapters()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn PEFT's ``NotImplementedError`` for layers that cannot be merged into one line.

    Raises:
        ValueError: in place of PEFT's error.
    """
    try:
        yield
    except NotImplementedError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"this adapter cannot be merged into the weights: {text}") from error
