"""``observe``: be called with the term of each map while a model runs.

``explain`` and the relative norm in the logs of a training use it. Without an observer nothing is
computed for it.

Shapes: B batch, H query heads, T queries, D head width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lorada.attention.call import AttentionCall
from lorada.attention.learned_map import LearnedMap
from lorada.attention.positions import TokenTable, table_in_map
from lorada.functional.precision import wide


@dataclass(frozen=True)
class Observation:
    """The result of one attention call for one of its maps."""

    call: AttentionCall
    learned_map: LearnedMap
    output: Tensor  # Attn·V without any map, (B, T, H, D)
    term: Tensor  # tile(Attn_s)·V, likewise; for ¬N the change by all maps of the call

    @property
    def positions(self) -> TokenTable:
        """Where the tokens of the call lie in the map."""
        return table_in_map(self.call, self.learned_map.length, self.learned_map.align)


observers: list[Callable[[Observation], None]] = []


@contextmanager
def observe(observer: Callable[[Observation], None]) -> Iterator[None]:
    """Call ``observer`` after every attention call that added a map, while the context lasts."""
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)


def report(seen: Observation) -> None:
    """Call all observers."""
    for observer in observers:
        observer(seen)


def squared_norms(seen: Observation) -> tuple[Tensor, Tensor]:
    """‖tile(Attn_s) V‖² and ‖Attn V‖² of one attention call, over its real tokens."""
    real = seen.positions.real_queries()[..., None, None]
    return (seen.term * real).square().sum(), (wide(seen.output) * real).square().sum()


def ratio_of(squares: list[tuple[Tensor, Tensor]]) -> float:
    """The relative norm from the squared norms of all calls."""
    term, output = (torch.stack(norms).sum().sqrt() for norms in zip(*squares, strict=True))
    return float(term / output.clamp(min=1e-12))
