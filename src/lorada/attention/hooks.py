"""Hooks for DeBERTa, which computes attention itself.

It does not call transformers' attention interface, so no wrapped function sees its values. Here a
first hook keeps the values that enter attention, and a second one adds tile(Attn_s)·V to Attn·V
before the output projection.

Shapes: B batch, H heads, T tokens, D head width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorada.attention.call import AttentionCall, CallShape, head_count
from lorada.attention.with_parts import MapSource, add_maps


class FollowingHook:
    """A hook on a child of a module, which moves to the module that has the child's name now.

    LoRA may wrap the child, or remove the wrapper. The first call puts the hook there, so it runs
    after those of other parts. ``before`` is the module before whose calls it moves, if that is not
    the parent.
    """

    def __init__(
        self,
        parent: nn.Module,
        name: str,
        register: Callable[[nn.Module], RemovableHandle],
        before: nn.Module | None = None,
    ) -> None:
        """Follow ``parent.name``: ``register`` puts a hook on the module that is there now."""
        # ``register`` is a partial function and not a closure: a copy of the model copies it too.
        self._name, self._register = name, register
        self._parent = None if before is None else parent
        self._module: nn.Module | None = None
        self._handle: RemovableHandle | None = None
        self._parent_handle = (before or parent).register_forward_pre_hook(self.follow)

    def follow(self, called: nn.Module, args: Any = ()) -> None:
        """Move the hook if the child is another module than before."""
        module = getattr(called if self._parent is None else self._parent, self._name)
        if module is not self._module:
            if self._handle is not None:
                self._handle.remove()
            self._module, self._handle = module, self._register(module)

    def remove(self) -> None:
        """Remove both hooks."""
        self._parent_handle.remove()
        if self._handle is not None:
            self._handle.remove()


class DebertaHooks:
    """DeBERTa, all versions: a projection returns the values, and the module returns Attn·V."""

    def __init__(self, module: nn.Module, source: MapSource) -> None:
        self._map_source = source
        # Within a call of the module: ``_before`` sets the mask, ``_keep`` the values, and
        # ``_after_attention`` reads both.
        self._value: Tensor | None = None  # (B, H, T, D)
        self._mask: Any = None
        projection = "in_proj" if hasattr(module, "in_proj") else "value_proj"
        keep = partial(nn.Module.register_forward_hook, hook=partial(self._keep, module))
        self._handles: list[RemovableHandle | FollowingHook] = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            FollowingHook(module, projection, keep),
            module.register_forward_hook(self._after_attention),
        ]

    def remove(self) -> None:
        """Take every hook off the model."""
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else args[1]
        if mask.dtype != torch.bool:  # the model reads ones and zeros, of any dtype
            # ``forward_inputs`` keeps results for a whole forward: all layers get one tensor, by
            # which they share what is computed from it.
            mask = self._map_source.forward_inputs.once(mask.bool, [mask], "booleans")
        self._mask = mask

    def _keep(self, module: Any, projection: nn.Module, args: Any, output: Tensor) -> None:
        values = output.view(*output.shape[:-1], head_count(module), -1).transpose(1, 2)
        if hasattr(module, "in_proj"):
            # DeBERTa's first version: query, key and value side by side in each head.
            values = values.chunk(3, dim=-1)[2]
            values = values + module.v_bias.view(1, values.shape[1], 1, -1)
        self._value = values

    def _after_attention(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Add the terms of all active maps to the Attn·V (B, T, H·D) that the module returned.

        Its other outputs stay as they are.
        """
        value, mask = self._value, self._mask
        # Released here, so that no tensor of a batch lives longer than its forward.
        self._value = self._mask = None
        maps = self._map_source.maps()
        if not maps:
            return output
        assert value is not None  # the projection ran within this call
        attended, *others = output
        _, heads, tokens, _ = value.shape
        shape = CallShape(queries=tokens, keys=tokens, heads=heads, causal=False)
        call = AttentionCall(module, shape, value, mask, self._map_source.forward_inputs)
        with_maps = add_maps(call, maps, attended.unflatten(2, (heads, -1)))
        return (with_maps.reshape(attended.shape), *others)


def is_deberta(module: nn.Module) -> bool:
    """Whether a module is the attention of DeBERTa, of any version."""
    return any(
        cls.__name__ == "DisentangledSelfAttention" and "modeling_deberta" in cls.__module__
        for cls in type(module).__mro__
    )
