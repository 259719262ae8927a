"""``QueryListener``: gives a part the queries of an attention module.

Shapes: B batch, H query heads, T queries, D width of a query.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from lorada.attention import interface
from lorada.attention.attend import READER
from lorada.attention.call import head_count
from lorada.attention.hooks import FollowingHook

ReadQuery = Callable[[Tensor], None]


class QueryListener:
    """Calls ``read`` with the queries (B, H, T, D) of every attention call of a module.

    They are those that the attention function gets, after a rotary embedding; of DeBERTa-v2 and v3,
    which compute attention themselves, the output of the query projection.

    Raises:
        ValueError: for a module whose queries cannot be reached.
    """

    def __init__(self, module: nn.Module, read: ReadQuery) -> None:
        self._module = (module,)  # in a tuple: the owner is a module and must not register it
        self._read = read
        self._expected = False  # whether DeBERTa's projection has yet to return the queries
        self._handles: list[Any] = []
        if interface.dispatches(module):
            interface.install()
            module.__dict__[READER] = read
            self._handles.append(module.register_forward_pre_hook(interface.check_installed))
        elif hasattr(module, "query_proj"):
            self._handles.append(module.register_forward_pre_hook(self._expect))
            hook = partial(nn.Module.register_forward_hook, hook=self._read_output)
            self._handles.append(FollowingHook(module, "query_proj", hook))
        else:
            raise ValueError(
                f"form='query' reads the queries, and {type(module).__name__} computes attention "
                "itself without giving them out: use form='constant'"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a new process, which unpickles a model, the attention functions are not wrapped yet.
        self.__dict__.update(state)
        interface.install()

    def _expect(self, module: nn.Module, args: Any) -> None:
        self._expected = True

    def _read_output(self, projection: nn.Module, args: Any, output: Tensor) -> None:
        if not self._expected:
            return  # after the queries, DeBERTa projects its embeddings of distances
        self._expected = False
        heads = head_count(self._module[0])
        self._read(output.unflatten(-1, (heads, -1)).transpose(1, 2))

    def remove(self) -> None:
        """Stop listening."""
        self._module[0].__dict__.pop(READER, None)
        for handle in self._handles:
            handle.remove()
