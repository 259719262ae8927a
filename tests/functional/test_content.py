"""The maps by content: whole maps and products against the mean over pairs."""

import pytest
import torch
from conftest import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorada.functional.content import (
    bilinear_key_factor,
    bilinear_query_factor,
    bilinear_term_reference,
    content_key_factor,
    content_term_reference,
    visible_mean_map,
    visible_mean_product,
)
from lorada.functional.product import apply_map

pytestmark = pytest.mark.fp64

EXAMPLES = settings(deadline=None, max_examples=25)
some_sizes = st.sampled_from([(1, 1, 1), (4, 2, 2), (4, 4, 1), (4, 1, 4), (4, 2, 4)])  # H, S, G


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def some_pairs(queries: int, keys: int) -> Tensor:
    """Visible pairs; some queries may see nothing, but not all."""
    visible = torch.rand(2, queries, keys) < 0.6
    visible[0, 0, 0] = True
    return visible


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Equal values and gradients."""
    assert_close(found, expected)
    pull = torch.randn_like(expected)
    both = [
        torch.autograd.grad((y * pull).sum(), inputs, retain_graph=True, allow_unused=True)
        for y in (found, expected)
    ]
    for own, by_hand, leaf in zip(*both, inputs, strict=True):
        zero = torch.zeros_like(leaf)  # of a pair that is not visible
        assert_close(zero if own is None else own, zero if by_hand is None else by_hand)


@EXAMPLES
@given(sizes=some_sizes, queries=st.integers(1, 5), keys=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_map_by_content_is_the_mean_over_visible_pairs(sizes, queries, keys, seed):
    torch.manual_seed(seed)
    heads, maps, groups = sizes
    b, c, key, value = leaves((maps, 3), (maps,), (2, groups, keys, 3), (2, groups, keys, 4))
    visible = some_pairs(queries, keys)
    expected = content_term_reference(b, c, key, value, visible, heads)
    right = content_key_factor(b, c, key, heads)
    inputs = [b, c, key, value]
    assert_same(visible_mean_product(right, value, visible), expected, inputs)
    map_ = visible_mean_map(torch.ones(2, heads, queries, 1), right, visible)
    assert_same(apply_map(map_, value, heads), expected, inputs)


@EXAMPLES
@given(
    sizes=some_sizes,
    queries=st.integers(1, 5),
    keys=st.integers(1, 6),
    rank=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_bilinear_map_is_the_mean_over_visible_pairs(sizes, queries, keys, rank, seed):
    torch.manual_seed(seed)
    heads, maps, groups = sizes
    inputs = leaves(
        (maps, 3, rank), (maps, rank, 3), (2, heads, queries, 3), (2, groups, keys, 3),
        (2, groups, keys, 4),
    )  # fmt: skip
    a, b, query, key, value = inputs
    visible = some_pairs(queries, keys)
    expected = bilinear_term_reference(a, b, query, key, value, visible)
    left, right = bilinear_query_factor(a, query), bilinear_key_factor(b, key, heads)
    assert_same(apply_map(visible_mean_map(left, right, visible), value, heads), expected, inputs)


def test_a_query_that_sees_nothing_gets_nothing():
    key, value = torch.randn(1, 1, 2, 3), torch.randn(1, 1, 2, 3)
    right = content_key_factor(torch.randn(1, 3), torch.randn(1), key, 1)
    visible = torch.tensor([[[False, False], [True, True]]])
    term = visible_mean_product(right, value, visible)
    assert (term[0, 0, 0] == 0).all()
    assert (term[0, 0, 1] != 0).all()
