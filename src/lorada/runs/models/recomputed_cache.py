"""A cache of keys and values for layers whose activations are computed again.

transformers takes the cache from such a layer, because the layer runs again in the backward pass
and would add its tokens once more. Here the second run gets the cache as it was before the forward
pass, so it computes what the first did.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from lorada.attention.forward_inputs import ForwardListener, listeners_of

_CACHE = object()  # stands for the cache among the arguments of a layer


def can_have_cache(model: nn.Module) -> bool:
    """Whether ``forward_with_cache`` works for the layers that are computed again, if any are.

    No gradient passes from a reentrant checkpoint through a cache, and a model's own code may
    compute layers again in its own way.
    """
    modules = _recomputed(model)
    layers = [m for m in modules if isinstance(m, GradientCheckpointingLayer)]
    settings = [getattr(m._gradient_checkpointing_func, "keywords", {}) for m in layers]
    return bool(layers) == bool(modules) and not any(s.get("use_reentrant") for s in settings)


def forward_with_cache(model: nn.Module, **inputs: Any) -> Any:
    """The outputs of a model that uses its cache, also where its layers are computed again."""
    modules = _recomputed(model) if model.training else []
    listeners = listeners_of(model) if modules else []
    start: list[Any] = []  # the cache as it was before this forward pass
    with ExitStack() as stack:
        for m in modules:
            if isinstance(m, GradientCheckpointingLayer):
                forward = partial(_forward, m, m.forward, listeners, start)
                stack.enter_context(_replaced(m, "forward", forward))
            else:  # a model, which would use no cache
                stack.enter_context(_replaced(m, "gradient_checkpointing", False))
        return model(**inputs)


def _recomputed(model: nn.Module) -> list[nn.Module]:
    """The layers that are computed again, and the models that hold them."""
    return [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]


def _forward(
    layer: Any,
    plain: Callable[..., Any],
    listeners: Sequence[ForwardListener],
    start: list[Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``plain``, the forward of a layer, which is computed again with the cache of its first run.

    It also gets the inputs of the model that it had in its first run.
    """
    cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, Cache)), None)
    if cache is None:
        return plain(*args, **kwargs)
    if not start:
        start.append(_copied(cache))
    # After its first run, a layer must not keep the cache with all that is written to it later.
    args, kwargs = _swapped(args, kwargs, cache, _CACHE)
    first = [cache]
    inputs = [listener.inputs for listener in listeners]

    def run(*args: Any) -> Any:
        given = _swapped(args, kwargs, _CACHE, first.pop() if first else _copied(start[0]))
        with ExitStack() as stack:
            stack.enter_context(_replaced(layer, "gradient_checkpointing", False))
            for listener, noted in zip(listeners, inputs, strict=True):
                stack.enter_context(_replaced(listener, "inputs", noted))
            return plain(*given[0], **given[1])

    return layer._gradient_checkpointing_func(run, *args)


def _copied(cache: Any) -> Cache:
    """A cache of the same tensors, which may be written to without changing the first one."""
    found: Cache = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    return found


def _swapped(args: Any, kwargs: Any, old: Any, new: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a function, with ``new`` in place of ``old``."""
    given = tuple(new if value is old else value for value in args)
    return given, {name: new if value is old else value for name, value in kwargs.items()}


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An object has another value of an attribute in a ``with`` block."""
    before = {name: vars(owner)[name]} if name in vars(owner) else {}
    vars(owner)[name] = value
    try:
        yield
    finally:
        del vars(owner)[name]
        vars(owner).update(before)
