"""Containers for the weights of adapters by name, and helpers for their dtype and device."""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


class Entries(nn.ParameterDict):
    """Parameters of one kind by adapter name, such as all ``lora_A`` of a layer.

    In a forward, call it with the name (``self.lora_A(name)``): accelerate loads an offloaded
    weight when the module that owns it is called.
    """

    if TYPE_CHECKING:

        def __call__(self, name: str) -> nn.Parameter: ...  # noqa: D102
    else:
        __call__ = nn.Module.__call__  # torch forbids to call a plain ParameterDict

    def forward(self, name: str) -> nn.Parameter:
        """The parameter of one adapter."""
        parameter: nn.Parameter = self[name]
        return parameter


class FrozenEntries(BufferDict):  # type: ignore[misc]
    """Tensors of one kind by adapter name that are saved with the adapter and never train.

    They are buffers, so that code which unfreezes or counts parameters ignores them. Those that
    are not ``persistent`` follow the model from device to device, but are not saved.
    """

    if TYPE_CHECKING:

        def __call__(self, name: str) -> Tensor: ...  # noqa: D102
    else:
        __call__ = nn.Module.__call__

    def __init__(self, persistent: bool = True) -> None:
        super().__init__(persistent=persistent)

    def forward(self, name: str) -> Tensor:
        """The tensor of one adapter."""
        tensor: Tensor = self[name]
        return tensor


def adapter_parameters(model: nn.Module) -> set[int]:
    """The parameters of all adapters in a model, by ``id``."""
    return {
        id(parameter)
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for name in (*layer.adapter_layer_names, *layer.other_param_names)
        if isinstance(container := getattr(layer, name, None), nn.Module)
        for parameter in container.parameters()
    }


def used_on(host: nn.Module) -> Iterator[torch.device]:
    """The devices on which a module's own weights are used, without those of its adapters."""
    added = adapter_parameters(host)
    for module in host.modules():
        target = execution_device(module)
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in added:
                yield target or parameter.device


def execution_device(module: nn.Module) -> torch.device | None:
    """The device to which accelerate brings a module's offloaded weights; None if not offloaded."""
    hook = getattr(module, "_hf_hook", None)
    targets = [getattr(part, "execution_device", None) for part in getattr(hook, "hooks", [hook])]
    return next((torch.device(target) for target in targets if target is not None), None)


def refuse_offloaded(model: nn.Module, kind: str) -> None:
    """Refuse to wrap weights that accelerate offloads: the adapter's would never get values.

    A model with a ``hf_device_map`` is fine: PEFT offloads it again together with the adapter.
    """
    if getattr(model, "hf_device_map", None) is not None:
        return
    for name, module in model.named_modules():
        away = any(parameter.is_meta for parameter in module.parameters(recurse=False))
        if away and execution_device(module) is not None:
            raise ValueError(
                f"{name} is offloaded, where PEFT leaves {kind} weights without values: "
                "add or load the adapter first, then offload"
            )


def warn_of_rounding(*factors: Tensor) -> None:
    """Warn once if the factors of a map train in half precision, as TRL casts them."""
    for factor in factors:
        if factor.requires_grad and factor.dtype.itemsize < 4:
            warn_of_dtype(factor.dtype)


@cache  # every layer asks in every step of training
def warn_of_dtype(dtype: torch.dtype) -> None:
    """Warn of factors of this dtype; see ``warn_of_rounding``."""
    warnings.warn(
        f"the factors of a map are {dtype}, which rounds most of their steps to nothing, as they "
        "start near -1: before training, cast each parameter with 'lora_w_' in its name to float32 "
        "(docs/guides/trl.md)",
        stacklevel=2,
    )
