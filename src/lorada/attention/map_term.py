"""What a map adds to one attention call: the maths of ``functional`` where ``positions`` puts it.

Three routes to the same term. Where one set of numbers places the whole batch, the tokens under the
map are a slice of the values. Where every token is its own query, the factors go to the tokens if
few lie beyond the map. In all other cases the values go to the map (``gathered``), and of whole
sequences only the queries that it reaches are touched.

Shapes: B batch, P sequences packed into a row, H query heads, G key/value heads, S map heads,
T queries, K key slots, N map length, R rank, D head width.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorada.attention.attention_map import (
    AttentionMap,
    View,
    for_samples,
    masked,
    product,
    rows_of_map,
)
from lorada.attention.gathered import gathered_term, term_by_place
from lorada.attention.positions import Places, TokenSpan, TokenTable
from lorada.functional.maps import apply_map, factors_product

# The queries that a map may reach: a range that all samples share, or for each sample the slot of
# every place of the map (B, N), and whether a token is there.
Reached = slice | tuple[Tensor, Tensor]


def add_term(
    output: Tensor, attention_map: AttentionMap, places: Places, view: View, value: Tensor
) -> Tensor:
    """``output`` (B, T, H, D) plus tile(Attn_s)·V, rounded to its dtype once, at the end."""
    if torch.compiler.is_compiling():  # which decides itself what to keep
        return (output + _term(attention_map, places, view, value)).to(output.dtype)
    if _range(attention_map.length, places, view) is None:
        return output
    if torch._C._are_functorch_transforms_active():  # for which the plain sum is open
        term = map_term(attention_map, places, view, value)
        return output if term is None else (output + term).to(output.dtype)
    factors = attention_map.factors
    bare = replace(attention_map, factors=())
    result: Tensor = _Added.apply(output, bare, places, view, value, *factors)
    return result


class _Added(torch.autograd.Function):
    """``add_term``, which keeps the values, the factors and the layers' table of places, no more.

    What lies between them would grow with the batch and is computed again, except for the last
    product, of which only the gradients are asked for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        bare: AttentionMap,
        places: Places,
        view: View,
        value: Tensor,
        *factors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(value, *factors)
        ctx.rest = bare, places, view
        term, reached = _reached_term(replace(bare, factors=factors), places, view, value)
        return _put(output, term, reached)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bare, places, view = ctx.rest
        needed = ctx.needs_input_grad[4:]
        with torch.enable_grad():
            value, *factors = (
                tensor.detach().requires_grad_(needs)
                for tensor, needs in zip(ctx.saved_tensors, needed, strict=True)
            )
            again = replace(bare, factors=tuple(factors))
            unread = replace(view, matmul=_Unread.apply)
            term, reached = _reached_term(again, places, unread, value)
        leaves = [leaf for leaf in (value, *factors) if leaf.requires_grad]
        found: list[Tensor | None] = [None] * len(leaves)
        if term.requires_grad:
            own = _taken(grad, reached).to(term.dtype)
            found = list(torch.autograd.grad(term, leaves, own, allow_unused=True))
        given = [found.pop(0) if needs else None for needs in needed]
        return (grad, None, None, None, *given)


class _Unread(torch.autograd.Function):
    """A product in a backward pass: nobody reads it, so it is not computed, but has gradients."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return left.new_zeros(()).expand(*left.shape[:-1], right.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        grad = grad.contiguous()  # which both products would ask for
        by_left, by_right = ctx.needs_input_grad
        return grad @ right.mT if by_left else None, left.mT @ grad if by_right else None


def _reached_term(
    attention_map: AttentionMap, places: Places, view: View, value: Tensor
) -> tuple[Tensor, Reached]:
    """tile(Attn_s)·V in fp32, and of which queries it is."""
    if isinstance(places, TokenTable) and _goes_on(attention_map, places, view):
        slots, real = places.key_slots(attention_map.length)
        batch = value.shape[0]
        with torch.autocast(value.device.type, enabled=False):
            term = term_by_place(attention_map, places, view, value)
            term = for_samples(term, attention_map.samples, batch)
        return term, (slots.expand(batch, -1), real.expand(batch, -1))
    reached = _range(attention_map.length, places, view)
    assert reached is not None
    return _term(attention_map, places, view, value), reached


def _put(output: Tensor, term: Tensor, reached: Reached) -> Tensor:
    """``output`` (B, T, H, D) plus a term, which is no more needed, at the queries it is of."""
    if reached == slice(0, output.shape[1]):
        if term.dtype == output.dtype and term.is_contiguous():
            # Detached, as autograd lets nobody change a view that was made in here.
            return term.add_(output).detach()
        return (output + term).to(output.dtype)
    result = output.clone()
    if isinstance(reached, slice):
        result[:, reached] += term
        return result
    slots, real = reached
    # A place without a token writes what another place of its sample writes.
    places = torch.arange(real.shape[1], device=real.device)
    chosen = torch.where(real, places, real.to(torch.uint8).argmax(1, keepdim=True))
    index = _wide(slots.gather(1, chosen), output)
    total = output.gather(1, index) + term.gather(1, _wide(chosen, term))
    return result.scatter_(1, index, total.to(output.dtype))


def _taken(grad: Tensor, reached: Reached) -> Tensor:
    """The rows of an output's gradient (B, T, H, D) that belong to a term."""
    if isinstance(reached, slice):
        return grad[:, reached]
    slots, real = reached
    return grad.gather(1, _wide(slots, grad)) * real[..., None, None]


def _wide(index: Tensor, like: Tensor) -> Tensor:
    """An index (B, N) of rows of (B, T, H, D)."""
    return index[..., None, None].expand(-1, -1, *like.shape[2:])


def map_term(
    attention_map: AttentionMap, places: Places, view: View, value: Tensor
) -> Tensor | None:
    """tile(Attn_s)·V of every query, (B, T, H, D) in fp32; None where the map reaches none."""
    rows = _range(attention_map.length, places, view)
    if rows is None:
        return None
    term = _term(attention_map, places, view, value)
    return nn.functional.pad(term, (0, 0, 0, 0, rows.start, view.queries - rows.stop))


def _range(length: int, places: Places, view: View) -> slice | None:
    """Which queries the map may reach, as far as shapes alone tell; None for none."""
    if isinstance(places, TokenTable):
        return slice(0, view.queries)
    _, row, end = _span(length, places)
    return None if row >= end else slice(row - places.first, end - places.first)


def _span(length: int, span: TokenSpan) -> tuple[int, int, int]:
    """First key slot under the map, the first that is also a query, and one past the last."""
    begin, end = max(span.origin, span.start), min(span.origin + length, span.stop)
    return begin, max(begin, span.first), end


def _term(attention_map: AttentionMap, places: Places, view: View, value: Tensor) -> Tensor:
    """tile(Attn_s)·V of the queries in ``_range``, in fp32."""
    with torch.autocast(value.device.type, enabled=False):
        # A slice is as long as the batch or as the map; a compiled graph must serve both.
        compiling = torch.compiler.is_compiling()
        if isinstance(places, TokenSpan) and not compiling:
            term = _sliced_term(attention_map, places, view, value)
        else:
            table = places.table(view.queries, view.keys, value.device)
            if not compiling and _fits_in_place(attention_map, table, view):
                term = _term_in_place(attention_map, table, view, value)
            else:
                term = gathered_term(attention_map, table, view, value)
        return for_samples(term, attention_map.samples, term.shape[0])


def _goes_on(attention_map: AttentionMap, table: TokenTable, view: View) -> bool:
    """Whether these are whole sequences that go on beyond the map, where nothing is to be done."""
    whole = table.rows is table.columns and table.sequences == 1
    whole = whole and view.keys > attention_map.length
    return whole and not _fits_in_place(attention_map, table, view)


def _fits_in_place(attention_map: AttentionMap, table: TokenTable, view: View) -> bool:
    """Whether ``_term_in_place`` is right, and cheaper: it multiplies every token of the batch."""
    length = attention_map.length
    # As many queries as keys is not enough: behind a padded cache they are others.
    if table.rows is not table.columns or table.sequences > 1 or not attention_map.stays_low_rank:
        return False
    return 2 * view.keys <= 3 * length and (view.window is None or view.window >= length)


def _sliced_term(attention_map: AttentionMap, span: TokenSpan, view: View, value: Tensor) -> Tensor:
    begin, row, end = _span(attention_map.length, span)
    value = value[:, :, begin:end].float()
    if attention_map.stays_low_rank and row == begin:
        return product(attention_map, value, view, attention_map.align).transpose(1, 2)
    low, high = begin - span.origin, end - span.origin
    if attention_map.stays_low_rank:
        chosen = torch.arange(row - span.origin, high, device=value.device)
        map_ = rows_of_map(attention_map, chosen, view)[..., low:high]
    else:
        whole = attention_map.dense()[:, low:high, low:high]
        map_ = masked(attention_map, whole, view, None)[:, row - begin :]
    return apply_map(map_, value, view.heads, view.matmul).transpose(1, 2)


def _term_in_place(
    attention_map: AttentionMap, table: TokenTable, view: View, value: Tensor
) -> Tensor:
    """The term where every token is its own query: the factors go to the tokens.

    No value moves. A pad, or a token that the map does not reach, has factors of zero.
    """
    w_a, w_b = attention_map.positioned()
    left = _at(w_a, table.rows).expand(len(value), -1, -1, -1)
    right = _at(w_b.mT, table.columns).expand(len(value), -1, -1, -1).mT
    value, heads = value.float(), view.heads
    term = factors_product(left, right, value, heads, causal=view.causal, matmul=view.matmul)
    return term.transpose(1, 2)


def _at(factor: Tensor, places: Tensor) -> Tensor:
    """Vectors of a factor (S, N, R) at places (B, T), as (B, S, T, R); zero outside the map."""
    length = factor.shape[1]
    inside = (places >= 0) & (places < length)
    padded = nn.functional.pad(factor, (0, 0, 0, 1))
    return padded[:, torch.where(inside, places, length)].transpose(0, 1)
