"""``LoradaTunerLayer``, the base of our tuner layers."""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lorada.attention.call import head_count


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

    @property
    def adapted(self) -> nn.Module:
        """The module of the base model that this layer adapts."""
        raise NotImplementedError

    def detach_from_host(self) -> None:
        """Remove every hook that this part has put on the model; most parts put none."""

    def active_here(self) -> list[str]:
        """The active adapters that have weights in this layer; none while they are disabled."""
        active = [] if self._disable_adapters else self.active_adapters
        return [name for name in active if name in self.configs]

    def scaled(self, name: str, term: Tensor) -> Tensor:
        """The term of an adapter times its ``scaling``, if it has one."""
        return term * self.scaling[name] if name in self.scaling else term

    def device_for_weights(self, model: nn.Module | None = None) -> torch.device:
        """The device for new weights: the one on which the adapted module of a model runs."""
        devices = sorted({str(device) for device in used_on(self.adapted)})
        if len(devices) > 1:
            modules = (model or self.adapted).named_modules()
            name = next((name for name, module in modules if module is self.adapted), "")
            raise ValueError(
                f"{name or type(self.adapted).__name__} is split over {', '.join(devices)}: "
                "choose a device_map that keeps each module that holds a part on one device"
            )
        return torch.device(devices[0] if devices else "cpu")

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
        dtypes = (parameter.dtype for parameter in self.adapted.parameters())
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


class Removable(Protocol):
    """One or more hooks on the model that can be removed."""

    def remove(self) -> None:
        """Remove the hooks."""


class AttachedLayer(LoradaTunerLayer):
    """A child of the module that it adapts, its host; hooks on the model call it in the forward."""

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that PyTorch does not register the host under its own child.
        self._host = (host,)
        self._handles: list[Removable] = []

    @property
    def host(self) -> nn.Module:
        """The module that this part adapts."""
        return self._host[0]

    @property
    def adapted(self) -> nn.Module:
        """The host."""
        return self.host

    @property
    def weight(self) -> Tensor:
        """Attached parts have no base weight; PEFT's property would recurse without end."""
        raise AttributeError("an attached part has no weight of its own")

    @property
    def bias(self) -> Tensor:
        """Attached parts have no base bias either."""
        raise AttributeError("an attached part has no bias of its own")

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
    """Remove every attached part from a model, and the hooks of every part."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoradaTunerLayer):
                child.detach_from_host()
            if isinstance(child, AttachedLayer):
                delattr(module, name)


def head_width(module: Any) -> int:
    """D, the width of a query of one head in an attention module."""
    widths = [getattr(module, name, None) for name in HEAD_WIDTHS]
    own = next((width for width in widths if isinstance(width, int)), None)
    return own or hidden_width(module) // head_count(module)


def hidden_width(module: Any) -> int:
    """The hidden width, from the config of a model or of an attention module."""
    return int(module.config.hidden_size)
