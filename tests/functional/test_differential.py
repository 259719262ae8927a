"""Differential attention (Eqs. 3-4) against its slow twin, and what A.6 says about gradients."""

import math

import pytest
import torch
from conftest import assert_close
from torch import nn

from lorada.functional.differential import (
    differential_attention,
    differential_lambda,
    differential_map_reference,
)
from lorada.functional.maps import add_map_reference, low_rank_map

pytestmark = pytest.mark.fp64


def draw(*shape, seed=0, dtype=torch.float64, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("groups", [4, 2], ids=["mha", "gqa"])
@pytest.mark.parametrize("queries", [7, 3], ids=["whole", "cached"])
@pytest.mark.parametrize("per_head", [False, True], ids=["one_lambda", "lambda_per_head"])
def test_two_kernels_are_the_map_of_equation_3_times_v(causal, groups, queries, per_head):
    query = draw(2, 4, queries, 6)
    key, value = (draw(2, groups, 7, w, seed=s) for s, w in ((1, 6), (2, 5)))
    weight = draw(*((4,) if per_head else ()), seed=3)
    inputs = (query, key, value, weight)
    fast = differential_attention(query, key, value, weight, causal=causal)
    map_ = differential_map_reference(query, key, weight, causal=causal)
    slow = map_ @ value.repeat_interleave(4 // groups, 1)
    assert_close(fast, slow)
    upstream = draw(*fast.shape, seed=4, grad=False)
    ours = torch.autograd.grad(fast, inputs, upstream)
    for actual, expected in zip(ours, torch.autograd.grad(slow, inputs, upstream), strict=True):
        assert_close(actual, expected)


@pytest.mark.fp64(False)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_in_fp32_it_is_off_by_its_rounding(causal):
    query, key, value = (
        draw(2, 4, 7, w, seed=s, dtype=torch.float32, grad=False) for s, w in enumerate((6, 6, 5))
    )
    weight = torch.tensor(0.3)
    fast = differential_attention(query, key, value, weight, causal=causal)
    slow = differential_map_reference(query, key, weight, causal=causal) @ value
    # What a score is off by, every weight is off by as a share of itself, above and below the line.
    scores = (query.abs() @ key.abs().mT).max() / math.sqrt(3)
    size = (1 + weight) * value.abs().max() * (1 + 2 * scores)
    assert_close(fast, slow, terms=6 + 2 * 7 + 4, size=size)


def test_one_row_by_hand():
    query = torch.tensor([[[[1.0, 2.0, 0.5, -1.0]]]], dtype=torch.float64)
    key = torch.tensor([[[[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 2.0]]]], dtype=torch.float64)
    scores = ((2.0, 1.0), (0.5, -2.0))  # Q_1 K_1 and Q_2 K_2
    rows = []
    for pair in scores:
        weights = [math.exp(score / math.sqrt(2)) for score in pair]
        rows.append([weight / sum(weights) for weight in weights])
    expected = [a - 0.3 * b for a, b in zip(*rows, strict=True)]
    actual = differential_map_reference(query, key, torch.tensor(0.3, dtype=torch.float64))
    assert_close(actual, torch.tensor([[[expected]]], dtype=torch.float64))


def test_rows_sum_to_one_minus_lambda_and_entries_may_be_negative():
    map_ = differential_map_reference(
        draw(2, 4, 9, 6), draw(2, 4, 9, 6, seed=1), torch.tensor(0.8, dtype=torch.float64)
    )
    assert_close(map_.sum(-1), torch.full((2, 4, 9), 0.2, dtype=torch.float64))
    assert -0.8 < map_.min() < -0.1
    assert map_.max() < 1


def test_lambda_is_that_of_equation_4():
    q1, k1, q2, k2 = (draw(5, seed=seed) for seed in range(4))
    expected = math.exp((q1 @ k1).item()) - math.exp((q2 @ k2).item()) + 0.8
    assert differential_lambda(q1, k1, q2, k2, 0.8).item() == pytest.approx(expected)
    zeros = torch.zeros(3, 5, dtype=torch.float64)
    assert_close(differential_lambda(zeros, zeros, zeros, zeros, 0.8), torch.full((3,), 0.8))


def test_without_lambda_it_is_softmax_attention_of_the_first_halves():
    query, key, value = draw(2, 4, 7, 6), draw(2, 4, 7, 6, seed=1), draw(2, 4, 7, 5, seed=2)
    plain = nn.functional.scaled_dot_product_attention(query[..., :3], key[..., :3], value)
    assert_close(
        differential_attention(query, key, value, torch.zeros((), dtype=plain.dtype)), plain
    )


def test_an_odd_width_is_one_line():
    odd = draw(1, 1, 2, 5)
    with pytest.raises(ValueError, match="a width of 5 is odd"):
        differential_attention(odd, odd, odd, torch.tensor(0.5, dtype=odd.dtype))


# Appendix A.6: "Depth(W_Q/W_K) ≥ Depth(W_a/W_b)", and what follows from it for gradients.


class Attention:
    """One head-split attention in the paper's own form, with a map, and the loss of one step."""

    def __init__(self, sharpness=1.0, inverse_scale=1.0):
        self.x = draw(2, 6, 8, seed=5, grad=False)
        self.w_q, self.w_k, self.w_v = (draw(8, 8, seed=seed) for seed in (6, 7, 8))
        self.w_a, self.w_b = draw(2, 6, 2, seed=9), draw(2, 2, 6, seed=10)
        query, key, value = (
            (self.x @ w).view(2, 6, 2, 4).transpose(1, 2) for w in (self.w_q, self.w_k, self.w_v)
        )
        self.scores = sharpness * query @ key.transpose(-1, -2) / 2
        self.attention = self.scores.softmax(-1)
        map_ = low_rank_map(self.w_a, self.w_b, inverse_scale, position=False)
        fused = add_map_reference(self.attention, map_)
        self.loss = (fused @ value * draw(2, 2, 6, 4, seed=11, grad=False)).sum()

    def gradient(self, weight):
        return torch.autograd.grad(self.loss, weight, retain_graph=True)[0]


def operations_between(loss, leaf):
    """The fewest products and nonlinearities between a loss and a leaf in the graph of autograd.

    Reshapes, copies, sums and multiplications by constants are not counted.
    """
    counted = ("MmBackward", "BmmBackward", "SoftmaxBackward", "ExpBackward")
    best, todo = {loss.grad_fn: 0}, [loss.grad_fn]
    while todo:
        node = todo.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            cost = best[node] + any(name in type(following).__name__ for name in counted)
            if cost < best.get(following, math.inf):
                best[following] = cost
                todo.append(following)
    return next(c for node, c in best.items() if getattr(node, "variable", None) is leaf)


def test_the_gradient_passes_fewer_operations_to_the_map_than_to_the_projections():
    model = Attention()
    # Attn^ V, softmax, Q Kᵀ, X W  against  Attn^ V, W_a W_b.
    depths = {name: operations_between(model.loss, getattr(model, name))
              for name in ("w_q", "w_k", "w_v", "w_a", "w_b")}  # fmt: skip
    assert depths == {"w_q": 4, "w_k": 4, "w_v": 2, "w_a": 2, "w_b": 2}


def test_the_softmax_halves_a_gradient_at_least():
    for sharpness in (0.1, 1.0, 10.0, 100.0):
        model = Attention(sharpness)
        below, above = model.gradient(model.scores), model.gradient(model.attention)
        assert (below.norm(dim=-1) <= above.norm(dim=-1) / 2 + 1e-12).all()


def test_saturated_attention_starves_the_projections_and_not_the_map():
    soft, sharp = Attention(), Attention(sharpness=1e5)
    for name in ("w_q", "w_k"):
        before, after = (m.gradient(getattr(m, name)).norm() for m in (soft, sharp))
        assert after < 1e-6 * before
    for name in ("w_a", "w_b"):
        assert_close(sharp.gradient(getattr(sharp, name)), soft.gradient(getattr(soft, name)))


def test_a_shorter_path_need_not_be_a_larger_gradient():
    flat, sharp = Attention(sharpness=0.1), Attention(sharpness=100.0)
    assert flat.gradient(flat.w_q).norm() < flat.gradient(flat.w_a).norm() / 5
    assert sharp.gradient(sharp.w_q).norm() > 3 * sharp.gradient(sharp.w_a).norm()


def test_the_scale_of_the_map_divides_its_gradient():
    plain, scaled = Attention(), Attention(inverse_scale=4096 * 600.0)
    ratio = plain.gradient(plain.w_a) / scaled.gradient(scaled.w_a)
    assert_close(ratio, torch.full_like(ratio, 4096 * 600.0))
