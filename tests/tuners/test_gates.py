"""The operator of QuanTA: fast against slow, values and gradients; the order of its gates."""

import itertools
import math

import pytest
import torch
from conftest import assert_close, assert_same_gradients
from torch import Tensor

from lorada.tuners.quanta.gates import (
    apply_gates,
    apply_to_width,
    as_matrix_reference,
    default_dims,
    draw_gates,
    factorisations,
    pairs,
)

pytestmark = pytest.mark.fp64

DIMS = [(3, 2), (4, 3, 2), (2, 2, 2), (4, 3, 2, 2), (2, 3, 2, 2, 2)]
every_dims = pytest.mark.parametrize("dims", DIMS, ids=lambda d: "-".join(map(str, d)))


def random_gates(dims) -> list[Tensor]:
    return [gate.double().requires_grad_() for gate in draw_gates(dims)]


def by_hand(x: Tensor, gate: Tensor, dims, a: int, b: int) -> Tensor:
    """One gate on axes a and b of one vector: the sum as it is printed, number by number."""
    x = x.reshape(dims)
    out = torch.zeros_like(x)
    for place in itertools.product(*map(range, dims)):
        for i_a, i_b in itertools.product(range(dims[a - 1]), range(dims[b - 1])):
            source = list(place)
            source[a - 1], source[b - 1] = i_a, i_b
            row = place[a - 1] * dims[b - 1] + place[b - 1]
            out[place] += gate[row, i_a * dims[b - 1] + i_b] * x[tuple(source)]
    return out.flatten()


@every_dims
def test_gates_one_after_another_are_the_printed_sums_and_a_matrix_of_full_rank(dims):
    gates, width = random_gates(dims), math.prod(dims)
    expected = x = torch.randn(width, dtype=torch.float64)
    for (a, b), gate in zip(pairs(len(dims)), gates, strict=True):
        expected = by_hand(expected, gate.detach(), dims, a, b)

    assert_close(apply_gates(x, gates, dims).detach(), expected)
    dense = as_matrix_reference(gates, dims)
    assert_close((dense @ x).detach(), expected)
    assert torch.linalg.matrix_rank(dense) == width


@every_dims
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0, 3)], ids=str)
def test_fast_and_dense_agree_in_values_and_gradients(dims, batch):
    gates, width = random_gates(dims), math.prod(dims)
    x = torch.randn(*batch, width, dtype=torch.float64, requires_grad=True)
    fast, slow = apply_gates(x, gates, dims), x @ as_matrix_reference(gates, dims).T
    assert_same_gradients(fast, slow, [x, *gates])


@pytest.mark.parametrize("columns", [20, 24, 30])
@pytest.mark.parametrize("rows", [20, 24, 30])
def test_other_widths_are_cropped_or_padded_with_zeros(rows, columns):
    dims = (4, 3, 2)
    gates = random_gates(dims)
    expected = torch.zeros(rows, columns, dtype=torch.float64)
    dense = as_matrix_reference(gates, dims)[:rows, :columns]
    expected[: dense.shape[0], : dense.shape[1]] = dense

    x = torch.randn(5, columns, dtype=torch.float64)
    assert_close(apply_to_width(x, gates, dims, rows), x @ expected.T)


def test_pairs_come_from_the_last_axes_to_the_first():
    assert pairs(4) == [(4, 3), (4, 2), (4, 1), (3, 2), (3, 1), (2, 1)]


def test_start_has_the_scale_of_the_paper_s_code():
    # Six gates, each of which shrinks a vector by √(1/3).
    dims = (16, 8, 8, 4)
    gates = draw_gates(dims)
    for gate in gates:
        bound = gate.shape[0] ** -0.5
        assert gate.abs().max() <= bound
        assert gate.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    x = torch.randn(32, 4096)
    ratio = (apply_gates(x, gates, dims).norm() / x.norm()).item()
    assert ratio == pytest.approx(27**-1.0, rel=0.2)


@pytest.mark.parametrize(
    ("width", "dims"),
    [
        pytest.param(4096, (16, 8, 8, 4), id="paper-4096"),
        pytest.param(5120, (16, 8, 8, 5), id="paper-5120"),
        pytest.param(576, (6, 6, 4, 4), id="576"),
        pytest.param(384, (6, 4, 4, 4), id="384"),
        pytest.param(768, (8, 6, 4, 4), id="768"),
        pytest.param(1024, (8, 8, 4, 4), id="1024"),
        pytest.param(8192, (16, 8, 8, 8), id="8192"),
        pytest.param(20, (5, 2, 2), id="three prime factors"),
        pytest.param(34, (17, 2), id="two prime factors"),
    ],
)
def test_width_is_factored_into_four_as_equal_as_possible(width, dims):
    assert default_dims(width) == dims
    if width not in (4096, 5120):
        others = factorisations(width, len(dims))
        assert dims in others
        assert all(math.prod(other) == width and sum(other) >= sum(dims) for other in others)
