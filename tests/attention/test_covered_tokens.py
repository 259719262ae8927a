"""The tokens under a map, however they lie in a call: the term against a sum over pairs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_map_term import (
    GROUPS,
    HEADS,
    LENGTH,
    WIDTH,
    Sizes,
    assert_sum_over_pairs,
    attention_map,
)
from torch import Tensor

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.covered_tokens import covered_tokens, find_covered_tokens
from lorada.attention.map_term import Term
from lorada.attention.positions import NO_TOKEN, TokenTable

pytestmark = pytest.mark.fp64

ALIGNS = st.sampled_from(["start", "end"])
ABLATIONS = st.sampled_from([None, "softmax", "full_rank", "no_position"])


def compare(
    table: TokenTable, ablation: str | None, align: str, shape: CallShape, value: Tensor
) -> None:
    """The term of a random map, against the sum over pairs."""
    table, held = table.at_end(LENGTH) if align == "end" else table, attention_map(ablation, align)
    torch.manual_seed(0)
    value = value.detach().requires_grad_()
    output = torch.randn(len(value), shape.queries, HEADS, WIDTH, requires_grad=True)
    assert_sum_over_pairs(held, table, shape, value, output)


def packed(seen: list[int], asked: list[int], lost: list[int], unused: int) -> TokenTable:
    """Sequences one after the other: tokens seen, how many of them ask, how many keys are lost."""
    columns, rows, column_owner, row_owner = [], [], [], []
    for number, (size, queries, gone) in enumerate(zip(seen, asked, lost, strict=True)):
        columns += range(min(gone, size - queries), size)
        rows += range(size - queries, size)
        column_owner += [number] * (len(columns) - len(column_owner))
        row_owner += [number] * queries
    last = len(seen) - 1  # slots that nothing uses count as the last sequence's
    columns, rows = columns + [NO_TOKEN] * unused, rows + [NO_TOKEN] * unused
    column_owner, row_owner = column_owner + [last] * unused, row_owner + [last] * unused
    found = (torch.tensor([numbers]) for numbers in (columns, rows, column_owner, row_owner))
    first, second, *owners = found
    return TokenTable(first, second, len(seen), *owners, max(seen))


@st.composite
def packed_tables(draw: st.DrawFn) -> TokenTable:
    seen = draw(st.lists(st.integers(1, LENGTH + 4), min_size=2, max_size=5))
    asked = [draw(st.sampled_from([1, size, draw(st.integers(1, size))])) for size in seen]
    lost = [draw(st.integers(0, 2)) for _ in seen]
    return packed(seen, asked, lost, draw(st.integers(0, 2)))


@settings(deadline=None, max_examples=60)
@given(packed_tables(), ABLATIONS, ALIGNS)
def test_sequences_of_a_row_have_a_map_each(table, ablation, align):
    queries, keys = table.rows.shape[1], table.columns.shape[1]
    value = torch.randn(1, GROUPS, keys, WIDTH)
    compare(table, ablation, align, CallShape(queries, keys, HEADS, True), value)


@st.composite
def padded_tables(draw: st.DrawFn) -> TokenTable:
    """Rows with pads on both sides and between tokens; their last queries may be pads too."""
    keys = draw(st.integers(1, LENGTH + 6))
    columns, queries = [], draw(st.sampled_from([1, draw(st.integers(1, keys))]))
    for _ in range(draw(st.integers(1, 4))):
        real = draw(st.lists(st.booleans(), min_size=keys, max_size=keys))
        lost = draw(st.integers(0, 3))  # keys that a sliding window has dropped
        columns.append([lost + sum(real[:k]) if real[k] else NO_TOKEN for k in range(keys)])
    numbers = torch.tensor(columns)
    return TokenTable(numbers, numbers[:, keys - queries :])


def laid_out(table: TokenTable, how: str) -> Tensor:
    """Values (B, G, K, D) as a cache may hold them."""
    torch.manual_seed(0)
    batch, keys = table.columns.shape
    if how == "with room behind":
        return torch.randn(batch, GROUPS, keys + 5, WIDTH)[:, :, :keys]
    if how == "head by head":
        return torch.randn(batch, keys, GROUPS, WIDTH).transpose(1, 2)
    return torch.randn(1, GROUPS, keys, WIDTH).expand(batch, -1, -1, -1)


@settings(deadline=None, max_examples=100)
@given(padded_tables(), st.sampled_from(["with room behind", "head by head", "one for all"]),
       ABLATIONS, ALIGNS, st.booleans(), st.none() | st.integers(1, 4))  # fmt: skip
def test_pads_may_lie_anywhere(table, layout, ablation, align, causal, window):
    queries, keys = table.rows.shape[1], table.columns.shape[1]
    shape = CallShape(queries, keys, HEADS, causal, window)
    compare(table, ablation, align, shape, laid_out(table, layout))


def call_of(
    seen: list[int], queries: list[int], keys: list[int], window: int | None, unused: int, **kwargs
) -> AttentionCall:
    """A call with random values for sequences of a row: tokens so far, queries and keys of each.

    ``unused`` queries and keys lie behind the last sequence.
    """
    by_query, by_key = (torch.tensor([0, *sizes]).cumsum(0).int() for sizes in (queries, keys))
    ids = [t for n, q in zip(seen, queries, strict=True) for t in range(n - q, n)]
    kwargs |= {"cu_seq_lens_q": by_query, "cu_seq_lens_k": by_key,
               "position_ids": torch.tensor([ids + [0] * unused])}  # fmt: skip
    torch.manual_seed(0)
    shape = CallShape(sum(queries) + unused, sum(keys) + unused, HEADS, True, window)
    value = torch.randn(1, GROUPS, shape.keys, WIDTH)
    mask = torch.ones(1, 1, shape.queries, shape.keys)
    return AttentionCall(torch.nn.Module(), shape, value, mask, kwargs=kwargs)


@pytest.mark.parametrize("told", ["by the caller", "by position_ids"])
def test_short_sequences_of_a_row_take_no_room_for_a_long_map(told):
    rows, tokens, length = 16, 4, 64
    factors = torch.randn(HEADS, length, 2), torch.randn(HEADS, 2, length)
    own = AttentionMap(factors, 2.0, "start", None)
    call = call_of([tokens] * rows, [tokens] * rows, [tokens] * rows, None, 0)
    kwargs = {"position_ids": call.position_ids}
    if told == "by the caller":
        kwargs = {**call.kwargs, "max_length_k": tokens}
    call = replace(call, kwargs=kwargs)
    with torch.no_grad():
        under = covered_tokens(call, own)
        assert under.size == tokens
        with Sizes() as made:
            Term(own, under, call.shape).compute(call.value)
    # The values of all tokens once for each head at the most.
    assert max(made.found) <= rows * tokens * HEADS * WIDTH


def test_only_rows_of_queries_are_computed_behind_a_cache():
    table = packed([5, 7, 6], [1, 1, 1], [0, 0, 0], 0)
    shape = CallShape(3, table.columns.shape[1], HEADS, True)
    value = torch.randn(1, GROUPS, shape.keys, WIDTH)
    under = find_covered_tokens(table, LENGTH, "start", shape, value)
    assert under.rows.tolist() == [[4], [6], [5]]
    padded = TokenTable(torch.arange(8)[None], torch.tensor([[6, 7]]))
    under = find_covered_tokens(padded, LENGTH, "start", replace(shape, queries=2, keys=8), value)
    assert under.rows.tolist() == [[6, 7]]
