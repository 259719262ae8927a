"""Hooks for models that compute attention themselves: DeBERTa, Falcon, Bloom.

They do not call transformers' attention interface, so no wrapped function sees their values. Here a
first hook keeps the values that enter attention, and a second one adds tile(Attn_s)·V to Attn·V
before the output projection.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, D head width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorada.attention.attend import MapSource, add_maps
from lorada.attention.call import AttentionCall, CallShape, head_count


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


class HookPair:
    """The hooks on one attention module; a subclass knows where the values and the output are."""

    causal: bool

    def __init__(self, module: nn.Module, source: MapSource) -> None:
        self._source = source
        self._value: Tensor | None = None
        self._kwargs: dict[str, Any] = {}
        self._mask: Any = None
        self._handles: list[RemovableHandle | FollowingHook] = [
            module.register_forward_pre_hook(self._before, with_kwargs=True)
        ]

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError

    def remove(self) -> None:
        """Take every hook off the model."""
        for handle in self._handles:
            handle.remove()

    def _with_maps(self, module: nn.Module, attended: Tensor) -> Tensor:
        """Attn·V plus the terms of all active maps, both (B, T, H·D)."""
        value, mask, kwargs = self._value, self._mask, self._kwargs
        # Released here, so that no tensor of a batch lives longer than its forward.
        self._value = self._mask = None
        self._kwargs = {}
        maps = self._source.maps()
        if not maps or value is None:
            return attended
        batch, queries, _ = attended.shape
        heads = head_count(module)
        shape = CallShape(queries, value.shape[2], heads, self.causal)
        inputs = self._source.forward_inputs
        call = AttentionCall(module, shape, value, mask, inputs, kwargs)
        output = attended.view(batch, queries, heads, -1)
        return add_maps(call, maps, output).reshape(attended.shape)


class DebertaHooks(HookPair):
    """DeBERTa, all versions: a projection returns the values, and the module returns Attn·V."""

    causal = False

    def __init__(self, module: nn.Module, source: MapSource) -> None:
        super().__init__(module, source)
        projection = "in_proj" if hasattr(module, "in_proj") else "value_proj"
        keep = partial(nn.Module.register_forward_hook, hook=partial(self._keep, module))
        self._handles.append(FollowingHook(module, projection, keep))
        self._handles.append(module.register_forward_hook(self._after))

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else args[1]
        if mask.dtype != torch.bool:  # the model reads ones and zeros, of any dtype
            # One tensor for all layers, by which they share what is computed from it.
            mask = self._source.forward_inputs.once(mask.bool, [mask], "booleans")
        self._mask = mask

    def _keep(self, module: Any, projection: nn.Module, args: Any, output: Tensor) -> None:
        values = output.view(*output.shape[:-1], head_count(module), -1).transpose(1, 2)
        if hasattr(module, "in_proj"):
            # DeBERTa's first version: query, key and value side by side in each head.
            values = values.chunk(3, dim=-1)[2]
            values = values + module.v_bias.view(1, values.shape[1], 1, -1)
        self._value = values

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        return (self._with_maps(module, output[0]), *output[1:])


class FalconHooks(HookPair):
    """Falcon and Bloom: the cache returns the values, and Attn·V is the input of ``dense``."""

    causal = True

    def __init__(self, module: nn.Module, source: MapSource) -> None:
        super().__init__(module, source)
        add = partial(nn.Module.register_forward_pre_hook, hook=partial(self._add, module))
        self._handles.append(FollowingHook(module, "dense", add))

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._mask = kwargs["attention_mask"]
        self._kwargs = {"position_ids": kwargs.get("position_ids")}
        return args, {**kwargs, "layer_past": _ValueRecorder(self, kwargs.get("layer_past"))}

    def _add(self, module: nn.Module, projection: nn.Module, args: Any) -> tuple[Tensor]:
        return (self._with_maps(module, args[0]),)

    def keep(self, value: Tensor) -> None:
        """Keep the values (B, G, K, D) of this call."""
        self._value = value


class _ValueRecorder:
    """Stands in for a layer's cache, which may be None, and gives the hooks the values it returns.

    The stored values would not do: a cache may store them quantised or in pages.
    """

    def __init__(self, pair: FalconHooks, cache: Any) -> None:
        self._pair = pair
        self._cache = cache

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._cache is not None:
            key, value = self._cache.update(key, value, *args, **kwargs)
        self._pair.keep(value)
        return key, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


# By file and class name, since the classes of both DeBERTa files have the same name.
HOOKS: dict[str, type[HookPair]] = {
    "modeling_deberta.DisentangledSelfAttention": DebertaHooks,
    "modeling_deberta_v2.DisentangledSelfAttention": DebertaHooks,
    "modeling_falcon.FalconAttention": FalconHooks,
    "modeling_bloom.BloomAttention": FalconHooks,
}


def hooks_for(module: nn.Module) -> type[HookPair] | None:
    """The hooks for this attention module; None if it has no entry in ``HOOKS``."""
    for cls in type(module).__mro__:
        name = f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
        if name in HOOKS:
            return HOOKS[name]
    return None
