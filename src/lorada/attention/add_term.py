"""``add_term``: attention's output plus the term of a map, with little kept for the backward pass.

    O = Attn·V + tile(Attn_s)·V                                           (Eq. 13)

Autograd would keep every tensor between the factors and the term, and their size grows with the
batch. Here the term is computed again in the backward pass, from the values, which attention keeps
too, and the factors.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, M tokens under the map,
D head width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorada.attention.positions import Slots
from lorada.functional.precision import recomputed


@dataclass(frozen=True)
class Term:
    """The term of a map in one attention call.

    Attributes:
        compute: makes it, (B, M, H, D), of the values (B, G, K, D).
        queries: the queries that it belongs to; None for all T of them, in order.
    """

    compute: Callable[[Tensor], Tensor]
    queries: slice | Slots | None


def add_term(output: Tensor, term: Term, value: Tensor) -> Tensor:
    """Attn·V (``output``, (B, T, H, D)) plus a term, rounded once, after the sum."""
    computed, queries = recomputed(term.compute, value), term.queries
    if isinstance(queries, Slots):
        # Rows without a token are zero and go to the first query.
        computed = computed * queries.real[..., None, None]
        index = queries.index[..., None, None].expand_as(computed)
        total = output.to(computed.dtype).scatter_add(1, index, computed)
        return total.to(output.dtype)
    if queries is not None:
        behind = output.shape[1] - queries.stop
        computed = F.pad(computed, (0, 0, 0, 0, queries.start, behind))
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return (output + computed).to(output.dtype)
    return torch.add(output, computed, out=torch.empty_like(output))  # one kernel for a token
