"""``FormMap``: the map of one layer and call in a form other than the paper's.

The subclasses are ``DistanceMap`` (``distance_map.py``), ``ContentMap`` and ``BilinearMap``
(``content_map.py``). They reach every visible pair of query and key, however long the sequence is,
so they have a term for every query of a call.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, C width of a query and
key, D width of a value.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lorada.attention.attention_map import for_samples
from lorada.attention.call import AttentionCall
from lorada.attention.visible import VisiblePairs
from lorada.functional.causal import Matmul
from lorada.functional.precision import no_autocast, wide


@dataclass(frozen=True)
class FormMap:
    """The parameters of one map, and its sums over the keys of a call.

    Everything is computed in fp32, or in fp64 where the factors are.

    Attributes:
        factors: the parameters; each subclass says which. The methods need them in fp32 or fp64.
        inverse_scale: the map is divided by it.
        samples: (B,) booleans, the samples of a mixed batch that use this map; None for all.
        reads: the tensors of a call that the map is computed from. All methods get them in this
            order: ``value`` (B, G, K, D), ``key`` (B, G, K, C) and ``query`` (B, H, T, C), the last
            two as attention gets them, rotated where the model rotates.
        ablation: None; the ablations of Table 9 are about the paper's map.
    """

    factors: tuple[Tensor, ...]
    inverse_scale: float
    samples: Tensor | None = None

    reads: ClassVar[tuple[str, ...]] = ("value",)
    ablation: ClassVar[None] = None

    def weights(self, pairs: VisiblePairs, *tensors: Tensor) -> Tensor:
        """The whole map, (B or 1, H, T, K), with zeros for pairs that are not visible."""
        raise NotImplementedError

    def product(self, pairs: VisiblePairs, matmul: Matmul, *tensors: Tensor) -> Tensor:
        """tile(map)·V of all queries, (B, H, T, D); ``matmul`` computes the last product."""
        raise NotImplementedError

    def tensors(self, call: AttentionCall) -> tuple[Tensor, ...]:
        """The tensors of a call that the map reads."""
        return tuple(getattr(call, name) for name in self.reads)


@dataclass(frozen=True)
class FormTerm:
    """The term of a map as a function of the tensors that it is computed from.

    Attributes:
        bare: the map without its factors.
        pairs: the visible pairs of the call.
    """

    bare: FormMap
    pairs: VisiblePairs

    def __call__(self, matmul: Matmul, *tensors: Tensor) -> Tensor:
        """The term (B, T, H, D) in fp32, from the tensors that the map reads and its factors."""
        count, device = len(self.bare.reads), tensors[0].device
        with no_autocast(device):
            own = replace(self.bare, factors=tuple(map(wide, tensors[count:])))
            term = own.product(self.pairs, matmul, *tensors[:count]).transpose(1, 2)
            return for_samples(term, self.bare.samples, term.shape[0])


def form_weights(form_map: FormMap, pairs: VisiblePairs, call: AttentionCall) -> Tensor:
    """tile(map) in the shape of the attention map, (B or 1, H, T, K), for ``explain``."""
    with no_autocast(call.value.device):
        own = replace(form_map, factors=tuple(map(wide, form_map.factors)))
        found = own.weights(pairs, *own.tensors(call))
        return for_samples(found, form_map.samples, len(call.value))
