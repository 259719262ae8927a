"""``observe``: look at what the maps of a model do while it runs.

``explain`` and the effect size in the logs of a training are made of such looks. Nothing is
computed for them while nobody observes.

Shapes: B batch, H query heads, T queries, D head width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import AttentionCall
from lorada.attention.positions import TokenPositions


@dataclass(frozen=True)
class Observation:
    """What one attention call computed with one of its maps.

    Attributes:
        call: the call.
        attention_map: the map.
        positions: where the tokens of the call lie in the map.
        output: Attn·V without any map, (B, T, H, D).
        term: tile(Attn_s)·V, (B, T, H, D); for ¬N what its maps changed in the output.
    """

    call: AttentionCall
    attention_map: AttentionMap
    positions: TokenPositions
    output: Tensor
    term: Tensor


observers: list[Callable[[Observation], None]] = []


@contextmanager
def observe(observer: Callable[[Observation], None]) -> Iterator[None]:
    """Call ``observer`` after every attention call that added a map, while the context lasts."""
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)


def report(
    call: AttentionCall,
    attention_map: AttentionMap,
    positions: TokenPositions,
    output: Tensor,
    term: Tensor,
) -> None:
    """Tell all observers what a call computed with a map."""
    seen = Observation(call, attention_map, positions, output.detach(), term.detach())
    for observer in observers:
        observer(seen)
