"""``LoradaTunerLayer``, the base of our tuner layers."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


class ByName:
    """Weights of one kind by adapter name.

    In a forward, call it with the name (``self.lora_A(name)``): accelerate loads an offloaded
    weight when the module that owns it is called.
    """

    __call__: Callable[..., Any] = nn.Module.__call__  # torch forbids to call a ParameterDict

    def forward(self, name: str) -> Any:
        """The weight of one adapter."""
        return self[name]  # type: ignore[index]


class Entries(ByName, nn.ParameterDict):
    """Parameters, such as all ``lora_A`` of a layer."""


class FrozenEntries(ByName, BufferDict):  # type: ignore[misc]
    """Tensors that follow the model and never train; with ``persistent=True`` they are saved.

    They are buffers, so that code which unfreezes or counts parameters ignores them.
    """


def execution_device(module: nn.Module) -> torch.device | None:
    """The device to which accelerate brings a module's offloaded weights; None if not offloaded."""
    hook = getattr(module, "_hf_hook", None)
    targets = [getattr(part, "execution_device", None) for part in getattr(hook, "hooks", [hook])]
    return next((torch.device(target) for target in targets if target is not None), None)


class LoradaTunerLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A layer that holds the weights of any number of adapters, by adapter name.

    ``adapter_layer_names`` lists the attributes with trained weights and ``other_param_names`` all
    other attributes of adapters; each attribute is a dictionary by adapter name.
    """

    adapter_layer_names: tuple[str, ...]
    other_param_names: tuple[str, ...] = ("configs",)

    # Members of PEFT's base class.
    active_adapters: list[str]
    merged: bool
    get_base_layer: Any
    set_adapter: Any

    def __init__(self) -> None:
        super().__init__()
        for name in self.adapter_layer_names:
            setattr(self, name, Entries())
        self.configs: dict[str, Any] = {}
        self.scaling: dict[str, float] = {}  # factors on the terms while IST measures layers
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []

    def active_here(self) -> list[str]:
        """The active adapters that have weights in this layer; none while they are disabled."""
        active = [] if self._disable_adapters else self.active_adapters
        return [name for name in active if name in self.configs]

    def scaled(self, name: str, term: Tensor) -> Tensor:
        """The term of an adapter times its ``scaling``, if it has one."""
        return term * self.scaling[name] if name in self.scaling else term

    def device_for_weights(self) -> torch.device:
        """The device for new weights: the one on which the adapted module is used."""
        # Its own parameters come before those of adapters in it, which are its last children.
        for module in self.get_base_layer().modules():
            for parameter in module.parameters(recurse=False):
                return execution_device(module) or parameter.device
        return torch.device("cpu")

    def new_weight(self, *shape: int) -> nn.Parameter:
        """Zeros of a shape, in float32, on the device of the adapted module."""
        device = self.device_for_weights()
        return nn.Parameter(torch.zeros(shape, device=device, dtype=torch.float32))

    def weights_of(self, adapter_name: str) -> Iterator[Tensor]:
        """The weights of an adapter in this layer, also frozen ones."""
        for container in (*self.adapter_layer_names, *self.other_param_names):
            by_name: Any = getattr(self, container)
            if isinstance(by_name, nn.Module) and adapter_name in by_name:  # type: ignore[operator]
                weights = by_name[adapter_name]  # type: ignore[index]
                if isinstance(weights, Tensor):
                    yield weights
                else:
                    yield from (*weights.parameters(), *weights.buffers())

    def cast_to_base(self, adapter_name: str) -> None:
        """Give the weights of an adapter the adapted module's dtype, unless that is quantised."""
        dtypes = (parameter.dtype for parameter in self.get_base_layer().parameters())
        dtype = next((dtype for dtype in dtypes if dtype.is_floating_point), None)
        for tensor in self.weights_of(adapter_name) if dtype is not None else ():
            tensor.data = tensor.data.to(dtype)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's method would also cast to the base's dtype, and ignore ``autocast_adapter_dtype``.
        target = device or self.device_for_weights()
        for tensor in self.weights_of(adapter_name):
            if not tensor.is_meta:
                tensor.data = tensor.data.to(target)


class AttachedLayer(LoradaTunerLayer):
    """A child of the module that it adapts, its host; hooks on the model call it in the forward."""

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that PyTorch does not register the host under its own child.
        self._host = (host,)
        self._handles: list[Any] = []  # of hooks on the model, each with ``remove()``

    @property
    def host(self) -> nn.Module:
        """The module that this part adapts."""
        return self._host[0]

    def get_base_layer(self) -> nn.Module:
        """The host."""
        return self.host

    def update_layer(self, adapter_name: str, config: Any, model: nn.Module) -> None:
        """Create the parameters of an adapter."""
        raise NotImplementedError

    def detach_from_host(self) -> None:
        """Remove every hook that this part has put on the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def forward(self, x: Any) -> Any:
        """Return the input: a host that is an ``nn.Sequential`` also calls this child."""
        return x


def detach_all(model: nn.Module) -> None:
    """Remove every attached part from a model, with its hooks."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AttachedLayer):
                child.detach_from_host()
                delattr(module, name)
