"""The layer of a part that is attached beside a module instead of wrapped around it.

An attached part is a child module of the one it adapts (``self_attn.lmam``, ``mlp.bneck``). The
base keeps its modules and names, so LoRA paths stay what they are in a plain LoRA file, a second
adapter finds the same modules as the first, and ``unload`` only has to remove the child.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorada.attention.deberta_prefix import ReplacedForward
from lorada.attention.forward_inputs import ForwardListener
from lorada.attention.hooks import HookPair
from lorada.tuners.base.entries import Entries, FrozenEntries, used_on
from lorada.tuners.bottleneck.sites import AtEnd, Follower


def within_layer(name: str) -> str:
    """A module name behind its layer index: ``model.layers.3.self_attn`` → ``self_attn``."""
    return re.sub(r"^.*\.\d+\.", "", name)


class Scaled:
    """A tuner layer whose adapters can be turned up or down for a while, as IST does."""

    # By adapter name, what its term is multiplied by; empty for as it is.
    scaling: dict[str, float]

    def scaled(self, name: str, term: Tensor) -> Tensor:
        """What an adapter adds, turned up or down by its ``scaling``."""
        return term * self.scaling[name] if name in self.scaling else term


class AttachedLayer(Scaled, nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A child module that holds one part's parameters for any number of adapters."""

    if TYPE_CHECKING:  # what PEFT's base class has
        adapter_layer_names: tuple[str, ...]
        active_adapters: list[str]

        def _get_available_adapters(self) -> set[str]: ...

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__()
        # In a tuple, the host is not registered as a submodule of its own child.
        self._host = (host,)
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self.scaling = {}
        self._mixed: list[str] | None = None
        self._handles: list[
            RemovableHandle | HookPair | ReplacedForward | Follower | AtEnd | ForwardListener
        ] = []

    @property
    def host(self) -> nn.Module:
        """The module this part adapts."""
        return self._host[0]

    @property
    def weight(self) -> Tensor:
        """Attached parts have no base weight; PEFT's property would look for one without end."""
        raise AttributeError("an attached part has no weight of its own")

    @property
    def bias(self) -> Tensor:
        """Nor a base bias."""
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
        """The input: a host that is an ``nn.Sequential`` runs its children, this one included."""
        return x

    def host_device(self, model: nn.Module | None = None) -> torch.device:
        """The device that new parameters belong on: where the host's own weights are used.

        Args:
            model: names the host in the error.

        Raises:
            ValueError: if the host is split over devices.
        """
        devices = sorted({str(device) for device in used_on(self.host)})
        if len(devices) > 1:
            names = [name for name, module in (model or self.host).named_modules()
                     if module is self.host]  # fmt: skip
            raise ValueError(
                f"{names[0] or type(self.host).__name__} is split over {', '.join(devices)}: "
                "choose a device_map that keeps each module that holds a part on one device"
            )
        return torch.device(devices[0] if devices else "cpu")

    def shares(self) -> list[tuple[str, list[bool] | None]]:
        """The adapters at work in this call, each with the samples it serves (None: all)."""
        if self._disable_adapters:
            return []
        present = self._get_available_adapters()
        if self._mixed is None:
            return [(name, None) for name in self.active_adapters if name in present]
        names = [name for name in dict.fromkeys(self._mixed) if name in present]
        return [(name, [name == mixed for mixed in self._mixed]) for name in names]

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        target = device or self.host_device()
        for container in self.adapter_layer_names:
            entries = getattr(self, container)
            if adapter_name in entries and entries[adapter_name].device.type != "meta":
                entries[adapter_name] = nn.Parameter(
                    entries[adapter_name].detach().to(target),
                    requires_grad=entries[adapter_name].requires_grad,
                )

    def extra_repr(self) -> str:
        """The adapters this part holds."""
        return f"adapters={sorted(self._get_available_adapters())}"


def detach_all(model: nn.Module) -> None:
    """Remove every attached part, hooks included."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AttachedLayer):
                child.detach_from_host()
                delattr(module, name)


def cast_entries(layer: BaseTunerLayer, adapter_name: str, dtype: torch.dtype) -> None:
    """Give the weights of an adapter in one tuner layer a dtype."""
    for tensor in weights_of(layer, adapter_name):
        tensor.data = tensor.data.to(dtype)


def weights_of(layer: BaseTunerLayer, adapter_name: str) -> Iterator[Tensor]:
    """The weights of an adapter in one tuner layer, frozen ones included."""
    for container in (*layer.adapter_layer_names, *layer.other_param_names):
        entries = getattr(layer, container)
        if isinstance(entries, Entries | FrozenEntries) and adapter_name in entries:
            yield entries[adapter_name]


def cast_to_host(model: nn.Module, adapter_name: str) -> None:
    """Give an adapter's attached parameters the dtype of the modules they are attached to."""
    for layer in model.modules():
        if isinstance(layer, AttachedLayer):
            dtypes = [p.dtype for p in layer.host.parameters() if p.dtype.is_floating_point]
            cast_entries(layer, adapter_name, dtypes[0])
