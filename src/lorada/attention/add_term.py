"""``add_term``: attention's output plus the term of a map, with little kept for the backward pass.

    O = Attn·V + tile(Attn_s)·V                                           (Eq. 13)

Autograd would keep every tensor between the factors and the term, and their size grows with the
batch. ``_AddTerm`` keeps only the values and the factors, and computes the rest again.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, N map length, D head
width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorada.attention.attention_map import AttentionMap, for_samples
from lorada.attention.call import CallShape
from lorada.attention.form_map import FormMap, FormTerm
from lorada.attention.map_term import (
    fits_in_place,
    lies_past,
    map_term,
    reached_queries,
    term_in_map_order,
    term_of_reached,
)
from lorada.attention.positions import TokenPositions, TokenTable
from lorada.attention.visible import VisiblePairs
from lorada.functional.causal import Matmul
from lorada.functional.precision import no_autocast

# The queries that have a term: a range that all samples share, or the query of every map row (B, N)
# with booleans (B, N) that are False for a map row without a query.
Reached = slice | tuple[Tensor, Tensor]
# Computes a term from a function for its last product and the tensors that it depends on.
Compute = Callable[..., tuple[Tensor, Reached]]


def add_term(
    output: Tensor,
    attention_map: AttentionMap,
    positions: TokenPositions,
    shape: CallShape,
    value: Tensor,
) -> Tensor:
    """Attn·V (``output``, (B, T, H, D)) plus tile(Attn_s)·V, rounded once, after the sum."""
    if torch.compiler.is_compiling():  # the compiler decides itself which tensors to keep
        return (output + term_of_reached(attention_map, positions, shape, value)).to(output.dtype)
    length = attention_map.length
    if reached_queries(length, positions, shape) is None or lies_past(length, positions):
        return output
    if torch._C._are_functorch_transforms_active():  # they do not support ``_AddTerm``
        term = map_term(attention_map, positions, shape, value)
        return output if term is None else (output + term).to(output.dtype)
    if not torch.is_grad_enabled():
        return _add(output, *_term(attention_map, positions, shape, value))
    # Autograd tracks tensors that are arguments, not tensors inside a record.
    bare = replace(attention_map, factors=())
    compute = _PositionTerm(bare, positions, shape)
    result: Tensor = _AddTerm.apply(output, compute, value, *attention_map.factors)
    return result


def add_form_term(
    output: Tensor, form_map: FormMap, pairs: VisiblePairs, tensors: tuple[Tensor, ...]
) -> Tensor:
    """``add_term`` of a map in another form, from the tensors that it reads."""
    term = FormTerm(replace(form_map, factors=()), pairs)
    tensors = (*tensors, *form_map.factors)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return (output + term(torch.matmul, *tensors)).to(output.dtype)
    result: Tensor = _AddTerm.apply(output, _EveryQuery(term), *tensors)
    return result


class _AddTerm(torch.autograd.Function):
    """Adds a term; keeps only the tensors that it is computed from, which attention keeps too."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, compute: Compute, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.rest = compute
        return _add(output, *compute(torch.matmul, *tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        # The term is computed again, with a graph that ends at detached tensors.
        with torch.enable_grad():
            tensors = [
                tensor.detach().requires_grad_(needs)
                for tensor, needs in zip(ctx.saved_tensors, needed, strict=True)
            ]
            # The last product is the largest, and only its gradients are needed.
            term, reached = ctx.rest(_GradientOnlyMatmul.apply, *tensors)
        leaves = [leaf for leaf in tensors if leaf.requires_grad]
        found: list[Tensor | None] = [None] * len(leaves)
        if term.requires_grad:  # False if all of the tensors are frozen
            own = _rows_of_gradient(grad, reached).to(term.dtype)
            found = list(torch.autograd.grad(term, leaves, own, allow_unused=True))
        # The gradient of a sum by ``output`` is ``grad`` unchanged.
        given = [found.pop(0) if needs else None for needs in needed]
        return (grad, None, *given)


@dataclass(frozen=True)
class _PositionTerm:
    """The term of the paper's map, from the values and the factors; ``bare`` has none."""

    bare: AttentionMap
    positions: TokenPositions
    shape: CallShape

    def __call__(self, matmul: Matmul, value: Tensor, *factors: Tensor) -> tuple[Tensor, Reached]:
        shape = replace(self.shape, matmul=matmul)
        return _term(replace(self.bare, factors=factors), self.positions, shape, value)


@dataclass(frozen=True)
class _EveryQuery:
    """The term of a map in another form, which reaches every query."""

    term: FormTerm

    def __call__(self, matmul: Matmul, *tensors: Tensor) -> tuple[Tensor, Reached]:
        term = self.term(matmul, *tensors)
        return term, slice(0, term.shape[1])


class _GradientOnlyMatmul(torch.autograd.Function):
    """Matmul whose forward value is unused; only its gradient is computed."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        # A zero that is expanded to the shape of the product takes no memory.
        return left.new_zeros(()).expand(*left.shape[:-1], right.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        grad = grad.contiguous()  # here, since each of the products below would copy it
        by_left, by_right = ctx.needs_input_grad
        return grad @ right.mT if by_left else None, left.mT @ grad if by_right else None


def _term(
    attention_map: AttentionMap, positions: TokenPositions, shape: CallShape, value: Tensor
) -> tuple[Tensor, Reached]:
    """tile(Attn_s)·V in fp32 of the queries that a map may reach, and which queries these are."""
    if isinstance(positions, TokenTable) and _is_longer(attention_map, positions, shape):
        # The term stays in the order of the map rows, beside the query of each row: in the order of
        # the queries it would take as much memory as the whole output.
        slots, real = positions.key_slots(attention_map.length)
        batch = value.shape[0]
        with no_autocast(value.device):
            term = term_in_map_order(attention_map, positions, shape, value)
            term = for_samples(term, attention_map.samples, batch)
        return term, (slots.expand(batch, -1), real.expand(batch, -1))
    reached = reached_queries(attention_map.length, positions, shape)
    assert reached is not None
    return term_of_reached(attention_map, positions, shape, value), reached


def _is_longer(attention_map: AttentionMap, table: TokenTable, shape: CallShape) -> bool:
    """Whether these are whole sequences longer than the map, so that some queries get no term."""
    whole = table.rows is table.columns and table.sequences == 1
    whole = whole and shape.keys > attention_map.length
    return whole and not fits_in_place(attention_map, table, shape)


def plus_term(output: Tensor, term: Tensor) -> Tensor:
    """``output`` (B, T, H, D) plus a term of every query, rounded once.

    The sum may be written over the term, which saves a third tensor.
    """
    if term.dtype == output.dtype and term.is_contiguous():
        # Detached, since autograd forbids in-place changes of a view made in such a function.
        return term.add_(output).detach()
    return (output + term).to(output.dtype)


def _add(output: Tensor, term: Tensor, reached: Reached) -> Tensor:
    """``output`` (B, T, H, D) plus a term at its queries; the term may be overwritten."""
    if reached == slice(0, output.shape[1]):
        return plus_term(output, term)
    result = output.clone()
    if isinstance(reached, slice):
        result[:, reached] += term
        return result
    slots, real = reached
    # ``scatter_`` needs a query for every map row. A row without a token repeats a row that has
    # one, so both write the same numbers to the same query.
    rows = torch.arange(real.shape[1], device=real.device)
    chosen = torch.where(real, rows, real.to(torch.uint8).argmax(1, keepdim=True))
    index = _expanded(slots.gather(1, chosen), output)
    total = output.gather(1, index) + term.gather(1, _expanded(chosen, term))
    return result.scatter_(1, index, total.to(output.dtype))


def _rows_of_gradient(grad: Tensor, reached: Reached) -> Tensor:
    """The part of an output's gradient (B, T, H, D) that belongs to the term."""
    if isinstance(reached, slice):
        return grad[:, reached]
    slots, real = reached
    return grad.gather(1, _expanded(slots, grad)) * real[..., None, None]


def _expanded(index: Tensor, like: Tensor) -> Tensor:
    """An index (B, N) of rows of (B, T, H, D), for ``gather`` and ``scatter``."""
    return index[..., None, None].expand(-1, -1, *like.shape[2:])
