"""The layer of a part that is attached beside a module instead of wrapped around it.

An attached part is a child module of the one it adapts (``self_attn.lmam``, ``mlp.bneck``). The
base keeps its modules and names. So the paths in a LoRA file stay those of plain LoRA, a second
adapter finds the same modules as the first, and ``unload`` only has to remove the child.
"""

from typing import Any, Protocol

from torch import Tensor, nn

from lorada.tuners.base.layer import LoradaTunerLayer


class Removable(Protocol):
    """A hook on the model, or several, that can be taken off."""

    def remove(self) -> None:
        """Take the hook off."""


class AttachedLayer(LoradaTunerLayer):
    """A child of the module it adapts, its host; hooks on the model bring it into the forward."""

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__()
        # In a tuple, the host is not registered as a submodule of its own child.
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
        """Attached parts have no base weight; PEFT's property would look for one without end."""
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
        """The input: a host that is an ``nn.Sequential`` runs its children, this one included."""
        return x


def detach_all(model: nn.Module) -> None:
    """Remove every attached part and its hooks from a model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AttachedLayer):
                child.detach_from_host()
                delattr(module, name)
