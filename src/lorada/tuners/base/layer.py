"""``LoradaTunerLayer``, the base of our tuner layers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lorada.tuners.base.entries import Entries, used_on


class LoradaTunerLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A layer that holds the weights of any number of adapters, by adapter name.

    ``adapter_layer_names`` lists the attributes with trained weights and ``other_param_names`` all
    other attributes of adapters; each attribute is a dictionary by adapter name.

    Attributes:
        configs: the config of each adapter.
        scaling: a factor on the term of an adapter, set while IST measures layers.
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
        self.scaling: dict[str, float] = {}
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
        """The device for new weights: the one on which the adapted module runs.

        ``model`` is searched for the module's name, for the error.
        """
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

    def extra_repr(self) -> str:
        """The adapters of this layer, for ``repr``."""
        return f"adapters={sorted(self._get_available_adapters())}"
