"""``LoradaTunerLayer``, the base of our tuner layers."""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lorada.attention.call import head_count


class ByName:
    """Weights of one kind by adapter name.

    In a forward, call it with the name (``self.lora_A(name)``): accelerate loads an offloaded
    weight when the module that owns it is called.
    """

    if TYPE_CHECKING:

        def __call__(self, name: str) -> Any: ...  # noqa: D102
    else:
        __call__ = nn.Module.__call__  # torch forbids to call a plain ParameterDict

    def forward(self, name: str) -> Any:
        """The weight of one adapter."""
        return self[name]  # type: ignore[index]


class Entries(ByName, nn.ParameterDict):
    """Parameters, such as all ``lora_A`` of a layer."""


class FrozenEntries(ByName, BufferDict):  # type: ignore[misc]
    """Tensors that follow the model and never train; with ``persistent=True`` they are saved.

    They are buffers, so that code which unfreezes or counts parameters ignores them.
    """


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


def execution_device(module: nn.Module) -> torch.device | None:
    """The device to which accelerate brings a module's offloaded weights; None if not offloaded."""
    hook = getattr(module, "_hf_hook", None)
    targets = [getattr(part, "execution_device", None) for part in getattr(hook, "hooks", [hook])]
    return next((torch.device(target) for target in targets if target is not None), None)


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


class LoradaTunerLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A layer that holds the weights of any number of adapters, by adapter name.

    ``adapter_layer_names`` lists the attributes with trained weights and ``other_param_names`` all
    other attributes of adapters; each attribute is a dictionary by adapter name.
    """

    adapter_layer_names: tuple[str, ...]
    other_param_names: tuple[str, ...] = ("configs",)

    if TYPE_CHECKING:  # members of PEFT's base class
        active_adapters: list[str]
        merged: bool

        def _get_available_adapters(self) -> set[str]: ...
        def get_base_layer(self) -> Any: ...  # noqa: D102
        def set_adapter(self, adapter_names: list[str]) -> None: ...  # noqa: D102

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
        adapted = self.get_base_layer()
        added = adapter_parameters(adapted)
        for module in adapted.modules():
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in added:
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


# Attributes of attention modules with the width of a head; where queries and values differ in it,
# the first is that of the queries.
HEAD_WIDTHS = (
    "qk_head_dim", "head_dim", "attention_head_size", "head_size", "key_value_proj_dim",
)  # fmt: skip


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


def head_width(module: Any) -> int:
    """D, the width of a query of one head in an attention module."""
    widths = [getattr(module, name, None) for name in HEAD_WIDTHS]
    own = next((width for width in widths if isinstance(width, int)), None)
    return own or hidden_width(module) // head_count(module)


def hidden_width(module: Any) -> int:
    """The hidden width, from the config of a model or of an attention module."""
    return int(module.config.hidden_size)
