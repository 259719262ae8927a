"""What Appendix A.6 says about the gradients of the map and of the projections.

"Depth(W_Q/W_K) ≥ Depth(W_a/W_b)", and what follows from it.
"""

import math

import pytest
import torch
from conftest import assert_close

from lorada.functional.maps import add_map_reference, low_rank_map

pytestmark = pytest.mark.fp64


def draw(*shape, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_(grad)


class Attention:
    """One head-split attention in the paper's own form, with a map, and the loss of one step."""

    def __init__(self, sharpness=1.0, inverse_scale=1.0):
        self.x = draw(2, 6, 8, seed=5, grad=False)
        self.w_q, self.w_k, self.w_v = (draw(8, 8, seed=seed) for seed in (6, 7, 8))
        self.w_a, self.w_b = draw(2, 6, 2, seed=9), draw(2, 2, 6, seed=10)
        query, key, value = (
            (self.x @ w).view(2, 6, 2, 4).transpose(1, 2) for w in (self.w_q, self.w_k, self.w_v)
        )
        attention = (sharpness * query @ key.transpose(-1, -2) / 2).softmax(-1)
        map_ = low_rank_map(self.w_a, self.w_b, inverse_scale, position=False)
        fused = add_map_reference(attention, map_)
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
