"""``add_term``: attention's output plus the term of a map, with little kept for the backward pass.

    O = Attn·V + tile(Attn_s)·V                                           (Eq. 13)

Autograd would keep every tensor between the factors and the term, and their size grows with the
batch. Here the term is computed again in the backward pass, from the values, which attention keeps
too, and the factors: by formulas (``_AddProduct``), or where there are none by torch's checkpoint,
which takes the host five times as long.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, M tokens under the map,
D head width.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import CallShape
from lorada.attention.map_term import has_gradients, map_term, map_term_gradients
from lorada.attention.positions import Targets
from lorada.attention.under_map import UnderMap
from lorada.functional.precision import is_transformed, recomputed, wide_dtype


@dataclass(frozen=True)
class Term:
    """The term of a map in one attention call.

    Attributes:
        own: the map.
        under: where its tokens are in the call.
        shape: sizes of the call.
    """

    own: AttentionMap
    under: UnderMap
    shape: CallShape

    def compute(self, value: Tensor) -> Tensor:
        """The term (B, M, H, D) from the values (B, G, K, D)."""
        return map_term(self.own, self.under, self.shape, value)


def add_term(output: Tensor, term: Term, value: Tensor, *, in_place: bool = False) -> Tensor:
    """Attn·V (``output``, (B, T, H, D)) plus a term, rounded once, after the sum."""
    result: Tensor
    if in_place:
        return _write_sum(output, output, term.compute(value), term.under.queries)
    if not is_transformed() and has_gradients(term.own, term.under, term.shape, value):
        result = _AddProduct.apply(output, value, *term.own.factors, term)
    else:
        result = _AddAt.apply(output, recomputed(term.compute, value), term.under.queries)
    return result


def _sum(output: Tensor, term: Tensor, queries: slice | Targets | None) -> Tensor:
    """The sum at the queries, beside ``output``."""
    result = torch.empty_like(output) if queries is None else output.clone()
    return _write_sum(result, output, term, queries)


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
        return _sum(output, term, queries)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, term, ctx.queries = inputs
        ctx.dtype = term.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, _at(ctx.queries, grad, ctx.dtype), None


class _AddProduct(torch.autograd.Function):
    """Adds the term of a map, with the formulas of its gradients."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, value: Tensor, w_a: Tensor, w_b: Tensor, term: Term
    ) -> Tensor:
        ctx.save_for_backward(value, w_a, w_b)
        ctx.term = term
        return _sum(output, term.compute(value), term.under.queries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, *factors = ctx.saved_tensors
        own, under = replace(ctx.term.own, factors=tuple(factors)), ctx.term.under
        rows = _at(under.queries, grad, wide_dtype(value))
        return grad, *map_term_gradients(own, under, ctx.term.shape, value, rows), None


def _at(queries: slice | Targets | None, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of a term (B, M, H, D) from that of the sum (B, T, H, D)."""
    if queries is None:
        return grad.to(dtype)
    if isinstance(queries, slice):
        return grad[:, queries].to(dtype)
    own = grad.gather(1, _expanded(queries.index, grad))
    return own.mul_(queries.real[..., None, None]).to(dtype)


def _expanded(index: Tensor, like: Tensor) -> Tensor:
    """An index (B or 1, M) of rows of (B, T, H, D), for ``gather`` and ``scatter_``."""
    return index[..., None, None].expand(like.shape[0], -1, *like.shape[2:])
