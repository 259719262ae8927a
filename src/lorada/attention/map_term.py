"""The term of a map in one attention call, tile(Attn_s)·V (Eq. 13).

    O = Attn·V + tile(Attn_s)·V

One route: gather the values in the order of the map, take one masked product, and put its rows back
to their queries (``covered_tokens.py``). Where the tokens lie in order, the values are a slice.

Autograd would keep every tensor between the factors and the term, and their size grows with the
batch. Here the term is computed again in the backward pass, from the values, which attention keeps
too, and the factors: by formulas (``_AddProduct``), or where there are none by torch's checkpoint,
which takes the host five times as long.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, M tokens
under the map, D head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.covered_tokens import CoveredTokens
from lorada.attention.learned_map import LearnedMap
from lorada.attention.positions import Targets, table_in_map
from lorada.functional.causal import product_form
from lorada.functional.precision import is_transformed, no_autocast, recomputed, wide_dtype
from lorada.functional.product import apply_map, factors_product, factors_product_gradients


@dataclass(frozen=True)
class Term:
    """The term of a map in one attention call."""

    own: LearnedMap
    covered: CoveredTokens  # where its tokens are in the call
    shape: CallShape

    def compute(self, value: Tensor) -> Tensor:
        """tile(Attn_s)·V in fp32 or wider, from the values (B, G, K, D) of the call.

        Returns:
            (B, M, H, D) in map order, or the rows of the queries if ``covered`` names them.
        """
        if self.own.stays_low_rank and self.covered.rows is None:
            return self.product(value, *self.factors(value))
        covered, shape = self.covered, self.shape
        with no_autocast(value.device):
            values = covered.values(value)
            rows = _masked_rows(self.own.for_values(values), covered, shape, value.shape[0])
            return self._in_map_order(apply_map(rows, values, shape.heads), value.shape[0])

    def factors(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Both factors of the covered part of the map, with PE and scale, as the values need them.

        Autograd follows what is done to the parameters here, so it may be anything.
        """
        with no_autocast(value.device):
            own = self.own.for_values(value)
            return own.scaled_factors(own.part(self.covered.size))

    def product(self, value: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """``compute`` from finished factors."""
        shape = self.shape
        with no_autocast(value.device):
            values = self.covered.values(value)
            causal, window, heads = shape.causal, shape.window, shape.heads
            term = factors_product(left, right, values, heads, causal=causal, window=window)
            return self._in_map_order(term, value.shape[0])

    def _in_map_order(self, term: Tensor, batch: int) -> Tensor:
        """(B·P, H, M, D) of P sequences in a row as (B, P·M, H, D)."""
        rows = self.covered.maps * term.shape[2]
        return term.transpose(1, 2).reshape(batch, rows, self.shape.heads, term.shape[3])

    def has_gradients(self, value: Tensor) -> bool:
        """Whether ``gradients`` has the formulas for the call, and they cost no more."""
        if not self.own.stays_low_rank or self.covered.rows is not None:
            return False
        shape, rank = self.shape, self.own.factors[0].shape[2]
        form = product_form(
            self.covered.size,
            rank,
            shape.heads // value.shape[1],
            causal=shape.causal,
            window=shape.window,
            device=value.device.type,
        )
        return form != "blocks"  # which the formulas would compute as one dense map

    def gradients(
        self, value: Tensor, left: Tensor, right: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the values and of finished factors, from that of the term, by formulas.

        The map is made again from the factors, so nothing else is kept for the backward pass.
        """
        covered, shape = self.covered, self.shape
        with no_autocast(value.device):
            values = covered.values(value)
            # The reverse of ``_in_map_order``: (B, P·M, H, D) as (B·P, H, M, D).
            rows = grad.reshape(len(values), covered.size, *grad.shape[2:]).transpose(1, 2)
            left, right, values = factors_product_gradients(
                left, right, values, rows, causal=shape.causal, window=shape.window
            )
            return covered.value_grad(values, value), left, right


def _masked_rows(own: LearnedMap, covered: CoveredTokens, shape: CallShape, batch: int) -> Tensor:
    """The M rows of a map, or those of the queries, (S, ·, M) or (B, S, ·, M), with their mask."""
    part, rows, seen = own.part(covered.size), covered.rows, covered.seen
    if own.ablation == "softmax" or rows is None or seen is None:
        map_ = own.masked(own.dense()[:, part, part], shape, covered.real(batch))
        if rows is None or seen is None:
            return map_
        # The rows have their mask already, but for those that the map does not reach.
        return _rows_of(map_, rows - part.start) * seen.any(-1)[..., None, :, None]
    if own.stays_low_rank:
        left, right = own.scaled_factors()
        # One dimension of size 1 for the samples, so that both sides broadcast.
        right = right[:, None] if rows.dim() == 2 else right
        # Row t of the map needs row t of W_a and all of W_b: decoding computes 1 row, not N.
        map_ = left[:, rows] @ right[..., part]
    else:
        map_ = own.dense()[:, rows][..., part]
    map_ = map_ * seen  # (S, T, M) or (S, B, T, M)
    return map_ if rows.dim() == 1 else map_.transpose(0, 1)


def _rows_of(map_: Tensor, rows: Tensor) -> Tensor:
    """Rows (T,) or (B, T) of a dense map (S, N, N) or of one for each sample, (B, S, N, N)."""
    if rows.dim() == 1:
        return map_[..., rows, :]
    if map_.dim() == 3:
        return map_[:, rows].transpose(0, 1)
    return map_.take_along_dim(rows[:, None, :, None], 2)


def add_term(output: Tensor, term: Term, value: Tensor, *, in_place: bool = False) -> Tensor:
    """Attn·V (``output``, (B, T, H, D)) plus a term, rounded once, after the sum."""
    result: Tensor
    if in_place:
        return _write_sum(output, output, term.compute(value), term.covered.queries)
    if not is_transformed() and term.has_gradients(value):
        result = _AddProduct.apply(output, value, *term.factors(value), term)
    else:
        result = _AddAt.apply(output, recomputed(term.compute, value), term.covered.queries)
    return result


def expand_map(learned_map: LearnedMap, call: AttentionCall) -> Tensor:
    """tile(Attn_s) in the shape of the attention map, (B or 1, H, T, K), with zeros beyond it.

    The term never needs it. The ablation ¬N does, which adds the map to the scores before the
    softmax, and so does ``explain``, which shows it.
    """
    own, length = learned_map.for_values(call.value), learned_map.length
    table = table_in_map(call, length, own.align)
    has_token = table.key_slots(length).real.reshape(-1, length)  # of each column of each map
    with no_autocast(call.value.device):
        map_ = own.masked(own.dense(), call.shape, has_token)
    rows, _ = table.query_rows(length)
    batch = max(rows.shape[0], table.columns.shape[0])
    rows = rows.expand(batch, -1)
    if map_.dim() == 4 and table.row_owner is not None:
        # (B·P, S, N, N) → (B, S, P·N, N): the maps of a row's sequences are stacked.
        map_ = map_.view(-1, table.sequences, *map_.shape[1:]).transpose(1, 2).flatten(2, 3)
        rows = rows + table.row_owner * length
    # First the map row of every query, then from it the map column of every key.
    query_rows = _rows_of(map_, rows)
    columns = table.columns.expand(batch, -1).clamp(0, length - 1)
    index = columns[:, None, None].expand(-1, *query_rows.shape[1:3], -1)
    # Rows and columns outside of the map were clamped into it: their entries become zero here.
    entries = query_rows.gather(-1, index) * table.pairs(length)[:, None]
    tiles = call.shape.heads // entries.shape[1]
    return entries.repeat(1, tiles, 1, 1)


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
    """Adds the term of a map, with the formulas of its gradients.

    Its inputs are the finished factors, which do not grow with the batch: what makes them of the
    parameters is autograd's.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, value: Tensor, left: Tensor, right: Tensor, term: Term
    ) -> Tensor:
        ctx.save_for_backward(value, left, right)
        ctx.term = term
        return _sum(output, term.product(value, left, right), term.covered.queries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, left, right = ctx.saved_tensors
        rows = _at(ctx.term.covered.queries, grad, wide_dtype(value))
        return grad, *ctx.term.gradients(value, left, right, rows), None


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
