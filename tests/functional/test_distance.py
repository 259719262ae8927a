"""The map by distance: the product in blocks against that of the map, and the map itself."""

import pytest
import torch
from conftest import assert_close, assert_same_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from lorada.functional.distance import BLOCK, distance_product, distance_weights
from lorada.functional.product import apply_map

pytestmark = pytest.mark.fp64

EXAMPLES = settings(deadline=None, max_examples=25)


@EXAMPLES
@given(
    sizes=st.sampled_from([(1, 1, 1), (4, 2, 2), (4, 4, 1), (4, 1, 4), (4, 2, 4)]),  # H, S, G
    tokens=st.integers(1, 9),
    taps=st.sampled_from([1, 3, 5, 17]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_blocks_are_the_product_of_the_map_in_values_and_gradients(
    sizes, tokens, taps, causal, window, seed
):
    torch.manual_seed(seed)
    heads, maps, groups = sizes
    weights = torch.randn(maps, taps, requires_grad=True)
    value = torch.randn(2, groups, tokens, 3, requires_grad=True)
    numbers = torch.arange(tokens)
    near = None if window is None else (numbers[:, None] - numbers).abs() < window
    map_ = distance_weights(weights, numbers, numbers, causal, near)
    expected = apply_map(map_, value, heads)
    found = distance_product(weights, value, heads, causal=causal, window=window)
    assert_same_gradients(found, expected, [weights, value])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tokens", [BLOCK, 2 * BLOCK + 3])
def test_blocks_join_where_one_ends(tokens, causal):
    taps, value = torch.randn(2, 5), torch.randn(1, 2, tokens, 3)
    numbers = torch.arange(tokens)
    map_ = distance_weights(taps, numbers, numbers, causal)
    assert_close(distance_product(taps, value, 4, causal=causal), apply_map(map_, value, 4))


def test_a_tap_is_the_weight_of_one_distance():
    taps, numbers = torch.tensor([[1.0, 2.0, 3.0]]), torch.arange(4)
    past = distance_weights(taps, numbers, numbers, causal=True)[0]
    around = distance_weights(taps, numbers, numbers, causal=False)[0]
    seen = torch.ones(4, 4).tril().bool()
    assert torch.equal(distance_weights(taps, numbers, numbers, False, seen)[0], around * seen)
    assert past.tolist() == [[3, 0, 0, 0], [2, 3, 0, 0], [1, 2, 3, 0], [0, 1, 2, 3]]
    assert around.tolist() == [[2, 3, 0, 0], [1, 2, 3, 0], [0, 1, 2, 3], [0, 0, 1, 2]]
