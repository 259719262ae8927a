"""The term of packed sequences behind a cache, against a sum over pairs of tokens."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from test_add_term import GROUPS, HEADS, LENGTH, WIDTH, attention_map, by_hand

from lorada.attention.add_term import add_term
from lorada.attention.call import CallShape
from lorada.attention.positions import NO_TOKEN, TokenTable

pytestmark = pytest.mark.fp64

ALIGNS = st.sampled_from(["start", "end"])


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
    return TokenTable(first, second, len(seen), *owners)


@st.composite
def tables(draw: st.DrawFn) -> TokenTable:
    seen = draw(st.lists(st.integers(1, LENGTH + 4), min_size=2, max_size=5))
    asked = [draw(st.sampled_from([1, size, draw(st.integers(1, size))])) for size in seen]
    lost = [draw(st.integers(0, 2)) for _ in seen]
    return packed(seen, asked, lost, draw(st.integers(0, 2)))


def shuffled(table: TokenTable, seed: int) -> TokenTable:
    """The same tokens in other slots, as pages of a cache may hold them."""
    order = torch.randperm(table.columns.shape[1], generator=torch.Generator().manual_seed(seed))
    columns, owners = table.columns[:, order], table.column_owner[:, order]
    return TokenTable(columns, table.rows, table.sequences, owners, table.row_owner)


def compare(table: TokenTable, ablation: str | None, align: str) -> None:
    """Values without a graph, and values and gradients with one, against the sum over pairs."""
    table, held = table.at_end(LENGTH) if align == "end" else table, attention_map(ablation, align)
    queries, keys = table.rows.shape[1], table.columns.shape[1]
    torch.manual_seed(0)
    value = torch.randn(1, GROUPS, keys, WIDTH, requires_grad=True)
    output = torch.randn(1, queries, HEADS, WIDTH, requires_grad=True)
    shape = CallShape(queries, keys, HEADS, True)
    expected = output + by_hand(held, table, shape, value)
    with torch.no_grad():
        assert_close(add_term(output, held, table, shape, value), expected)
        finished = replace(held, baked=held.dense())
        assert_close(add_term(output, finished, table, shape, value), expected)
    found = add_term(output, held, table, shape, value)
    assert_close(found, expected)
    leaves, weights = [output, value, *held.factors], torch.randn(expected.shape)
    for gradient, right in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        assert_close(gradient, right)


@settings(deadline=None, max_examples=60)
@given(tables(), st.sampled_from([None, "full_rank", "no_position"]), ALIGNS)
def test_the_term_is_a_sum_over_pairs(table, ablation, align):
    compare(table, ablation, align)


@settings(deadline=None, max_examples=40)
@given(tables(), st.integers(0, 99), ALIGNS)
def test_the_tokens_of_a_sequence_may_lie_anywhere(table, seed, align):
    compare(shuffled(table, seed), None, align)
