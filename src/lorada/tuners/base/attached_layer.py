"""The base of layers that are attached to a module instead of wrapped around it.

An attached part is a child of the module that it adapts (``self_attn.lmam``, ``mlp.bneck``). The
modules of the base keep their names. So the paths in a LoRA file are those of plain LoRA, a second
adapter finds the same modules as the first, and ``unload`` only has to remove the child.
"""

from typing import Any, Protocol

from torch import Tensor, nn

from lorada.attention.call import head_count
from lorada.tuners.base.layer import LoradaTunerLayer

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
