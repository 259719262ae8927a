"""Hooks at the hook points of a layer, which read the tensor there or replace it.

A hook of PyTorch is not enough at two kinds of hook points. LoRA wraps a linear layer and removes
the wrapper when it is merged: there ``FollowingHook`` moves to the module that has the name now.
And a change of a layer's output must run within the layer's gradient checkpoint: ``LayerOutput``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorada.attention.hooks import FollowingHook
from lorada.tuners.base.attached_layer import Removable
from lorada.tuners.base.linears import linear_of

# Gets the tensor at a hook point; returns what replaces it, or None to leave it.
Change = Callable[[Tensor], Tensor | None]


def hook_at(layer: nn.Module, point: str, change: Change, *, first: bool = False) -> Removable:
    """Call ``change`` with the tensor at a hook point, in every forward.

    Args:
        layer: the layer.
        point: the hook point, such as ``mlp.out``: see ``layouts``.
        change: what to call. Not a closure, which a deep copy of the model would share.
        first: whether to call it before the changes that are already there. Has no effect at a
            linear layer.
    """
    name, _, side = point.rpartition(".")
    if not name:
        output = layer.__dict__.get(LayerOutput.key) or LayerOutput(layer)
        return output.add(change, first)
    module = layer.get_submodule(name)
    if linear_of(module) is not None:
        path, _, child = name.rpartition(".")
        parent = layer.get_submodule(path)
        hook = FollowingHook(parent, child, partial(_hook, side, change))
        hook.follow(parent)  # now and not at the first call: hooks run in the order of placement
        return hook
    return _hook(side, change, module, first)


def _hook(side: str, change: Change, module: nn.Module, first: bool = False) -> RemovableHandle:
    # Partial functions and not closures: a deep copy of the model then calls its own adapters.
    if side == "in":
        return module.register_forward_pre_hook(
            partial(_change_input, change), prepend=first, with_kwargs=True
        )
    return module.register_forward_hook(partial(_change_output, change), prepend=first)


def _change_input(
    change: Change, module: nn.Module, args: Any, kwargs: Any
) -> tuple[Any, Any] | None:
    if args:
        changed = change(args[0])
        return None if changed is None else ((changed, *args[1:]), kwargs)
    name = next(iter(kwargs))
    changed = change(kwargs[name])
    return None if changed is None else (args, {**kwargs, name: changed})


def _change_output(change: Change, module: nn.Module | None, args: Any, output: Any) -> Any:
    if not isinstance(output, tuple):
        return change(output)
    changed = change(output[0])
    return None if changed is None else (changed, *output[1:])


class LayerOutput:
    """All changes of the output of one layer, one after another.

    transformers checkpoints the ``forward`` of a layer, and the layer's own hooks run outside of
    the checkpoint. A tensor saved inside must not be used outside: it would stay in memory, or lose
    its gradient. So in a checkpointed forward, the checkpoint function makes the changes.
    """

    key = "lorada_output"  # the attribute of the layer that holds this object

    def __init__(self, layer: nn.Module) -> None:
        self.changes: list[Change] = []
        self.layer = layer
        layer.__dict__[self.key] = self
        self._handles = [
            layer.register_forward_pre_hook(self._before),
            # Before the hooks with which transformers may collect hidden states.
            layer.register_forward_hook(self._after, prepend=True),
        ]

    def add(self, change: Change, first: bool) -> "OutputChange":
        """Add a change, before or after the others, and return its handle."""
        self.changes.insert(0 if first else len(self.changes), change)
        return OutputChange(self, change)

    def drop(self, change: Change) -> None:
        """Remove a change, and with the last one the hooks."""
        self.changes.remove(change)
        if not self.changes:
            for handle in self._handles:
                handle.remove()
            del self.layer.__dict__[self.key]

    def changed(self, output: Any) -> Any:
        """The output of the layer after all changes."""
        for change in self.changes:
            changed = _change_output(change, None, (), output)
            output = output if changed is None else changed
        return output

    def _before(self, layer: Any, args: Any) -> None:
        if getattr(layer, "gradient_checkpointing", False):
            plain = layer._gradient_checkpointing_func
            plain = getattr(plain, "plain", plain)  # a forward that failed left a ``_Checkpoint``
            layer._gradient_checkpointing_func = _Checkpoint(plain, self)

    def _after(self, layer: Any, args: Any, output: Any) -> Any:
        if getattr(layer, "gradient_checkpointing", False):
            checkpoint = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = checkpoint.plain
            if checkpoint.ran:  # False in eval mode and without gradients
                return None
        return self.changed(output)


class OutputChange:
    """The handle of one change of a layer's output."""

    def __init__(self, output: LayerOutput, change: Change) -> None:
        self._output, self._change = output, change

    def remove(self) -> None:
        """Remove the change."""
        self._output.drop(self._change)


class _Checkpoint:
    """The checkpoint function of a layer for one forward, which changes the output inside."""

    def __init__(self, plain: Any, output: LayerOutput) -> None:
        self.plain, self.ran, self._output = plain, False, output

    def __call__(self, run: Callable[..., Any], *args: Any) -> Any:
        self.ran = True
        return self.plain(partial(self._run, run), *args)

    def _run(self, run: Callable[..., Any], *args: Any) -> Any:
        return self._output.changed(run(*args))
