"""The only file that uses transformers' attention interface, its table of attention functions.

``install`` wraps each function of the table in place (``with_parts`` in ``with_parts.py``), so
implementation names, masks and saved configs do not change.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lorada.attention.call import AttentionCall, implementation_of
from lorada.attention.hooks import is_deberta
from lorada.attention.with_parts import with_parts


def install() -> None:
    """Wrap every registered attention function that is not wrapped yet, and ``eager``."""
    for name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        function = ALL_ATTENTION_FUNCTIONS[name]
        if not hasattr(function, "adds_map"):
            AttentionInterface.register(name, with_parts(function))
    # transformers has no entry for ``eager``: each model file has its own function.
    if "eager" not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register("eager", with_parts(_eager))


Watcher = Callable[[AttentionCall, Tensor, Tensor], None]


@contextmanager
def watch(watcher: Watcher) -> Iterator[None]:
    """Call ``watcher`` after every attention call of an eager model in a ``with`` block.

    It gets the call, its output (B, T, H, D), in which the parts are, and the softmax map
    (B, H, T, K), which only eager attention returns.
    """
    install()
    eager = ALL_ATTENTION_FUNCTIONS["eager"]

    @functools.wraps(eager)
    def watched(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        found = eager(module, query, key, value, mask, **kwargs)
        watcher(AttentionCall.read(module, (query, key, value), mask, kwargs), *found)
        return found

    AttentionInterface.register("eager", watched)
    try:
        yield
    finally:
        AttentionInterface.register("eager", eager)


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Call the eager attention function of the module's own file."""
    forward = inspect.unwrap(type(module).forward)
    # Some files have several, such as one for images: take the one that the forward names.
    names = [n for n in forward.__code__.co_names if n.endswith("eager_attention_forward")]
    result: tuple[Tensor, Tensor | None] = forward.__globals__[names[0]](module, *args, **kwargs)
    return result


def dispatches(module: nn.Module) -> bool:
    """Whether a module calls its attention through the interface, so that a map reaches it."""
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(forward, "__code__", _eager.__code__).co_names


def check_installed(module: nn.Module, args: Any) -> None:
    """A forward pre-hook of attention modules that hold a part."""
    implementation = name = implementation_of(module)
    name = name if name == "paged|eager" else name.removeprefix("paged|")  # the one with an entry
    if not hasattr(ALL_ATTENTION_FUNCTIONS.get(name), "adds_map"):
        raise ValueError(
            f"attn_implementation={implementation!r} was registered after the adapter was placed "
            "and would silently ignore it: call lorada.attention.install() after registering"
        )


# Names of cross-attention modules, which get no map: Eqs. 6-17 are about self-attention.
CROSS_ATTENTION = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")


def attention_classes(model: nn.Module) -> str:
    """The class names of a model's attention modules, for an error."""
    classes = {type(module).__name__ for module in model.modules()}
    return ", ".join(sorted(name for name in classes if "ttention" in name))


def can_hold_map(module: nn.Module) -> bool:
    """Whether a map reaches the attention of this module."""
    return dispatches(module) or is_deberta(module)


def self_attentions(model: nn.Module) -> list[str]:
    """Names of all self-attention modules of a model that can hold a map."""
    return [
        name
        for name, module in model.named_modules()
        if can_hold_map(module)
        and not any(f".{cross}." in f".{name}." for cross in CROSS_ATTENTION)
    ]
