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
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorada.attention.positions import Targets
from lorada.functional.precision import recomputed


@dataclass(frozen=True)
class Term:
    """The term of a map in one attention call.

    Attributes:
        compute: makes it, (B, M, H, D), of the values (B, G, K, D).
        queries: the queries that it belongs to; None for all T of them, in order.
    """

    compute: Callable[[Tensor], Tensor]
    queries: slice | Targets | None


def add_term(output: Tensor, term: Term, value: Tensor, *, in_place: bool = False) -> Tensor:
    """Attn·V (``output``, (B, T, H, D)) plus a term, rounded once, after the sum."""
    computed = recomputed(term.compute, value)
    if in_place:
        return _write_sum(output, output, computed, term.queries)
    result: Tensor = _AddAt.apply(output, computed, term.queries)
    return result


def _write_sum(
    result: Tensor, output: Tensor, term: Tensor, queries: slice | Targets | None
) -> Tensor:
    """Write the sum at the queries into ``result``, a copy of ``output`` or ``output`` itself."""
    if queries is None:
        return torch.add(output, term, out=result)
    if isinstance(queries, slice):
        result[:, queries].add_(term)
        return result
    # ``scatter_`` needs a query for every map row. Rows that are there twice write the same
    # numbers to the same query.
    rows, index = (_expanded(part, output) for part in (queries.filled, queries.slots))
    total = output.gather(1, index)
    return result.scatter_(1, index, total.add_(term.gather(1, rows)))


class _AddAt(torch.autograd.Function):
    """Adds a term to some queries. The gradient of ``output`` passes through without a copy."""

    @staticmethod
    def forward(output: Tensor, term: Tensor, queries: slice | Targets | None) -> Tensor:
        result = torch.empty_like(output) if queries is None else output.clone()
        return _write_sum(result, output, term, queries)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, term, ctx.queries = inputs
        ctx.dtype = term.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.queries is None:
            own = grad
        elif isinstance(ctx.queries, slice):
            own = grad[:, ctx.queries]
        else:
            own = grad.gather(1, _expanded(ctx.queries.index, grad))
            own = own * ctx.queries.real[..., None, None]
        return grad, own.to(ctx.dtype), None


def _expanded(index: Tensor, like: Tensor) -> Tensor:
    """An index (B or 1, M) of rows of (B, T, H, D), for ``gather`` and ``scatter_``."""
    return index[..., None, None].expand(like.shape[0], -1, *like.shape[2:])
