"""``watch``: be called after every attention call while a model runs, with a part or without."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lorada.attention.attend import PREFIX_CHILD
from lorada.attention.call import AttentionCall
from lorada.attention.interface import wrapped_by

Watcher = Callable[[AttentionCall, Tensor], None]


def watch(watcher: Watcher) -> AbstractContextManager[None]:
    """Call ``watcher`` after every attention call in a ``with`` block, with a part or without.

    It gets the call and its output (B, T, H, D), in which the parts are.
    """
    return wrapped_by(partial(_watched, watcher=watcher))


def _watched(function: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
    @functools.wraps(function)
    def watched(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        found = function(module, query, key, value, mask, **kwargs)
        before: Any = module._modules.get(PREFIX_CHILD)
        prefixes = before.prefixes() if before is not None else []
        call = AttentionCall.read(module, query, key, value, mask, kwargs, prefixes=prefixes)
        watcher(call, found[0])
        return found

    return watched
