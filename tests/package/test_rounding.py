"""What these tests mean by equal: ``assert_close`` and the mark ``fp64``."""

import threading

import pytest
import torch
from conftest import TINY, assert_close

BYTES = 8  # of a number


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_in_any_order_is_within_its_rounding_and_another_sum_is_not(dtype):
    terms = 64
    products = torch.randn(100, terms).to(dtype)
    size = products.abs().sum(1)
    forward, backward = torch.zeros(2, 100, dtype=dtype)
    for i in range(terms):
        forward, backward = forward + products[:, i], backward + products[:, -1 - i]
    assert not torch.equal(forward, backward)
    assert_close(forward, backward, terms=terms, size=size)
    wrong = forward + 2 * terms * torch.finfo(dtype).eps * size.to(dtype)
    with pytest.raises(AssertionError, match=r"off by .* at most .* allowed"):
        assert_close(wrong, backward, terms=terms, size=size)
    with pytest.raises(AssertionError, match="off by nan"):
        assert_close(forward * torch.nan, backward, terms=terms, size=size)


def test_a_comparison_below_fp64_needs_the_number_and_the_size_of_its_terms():
    one = torch.ones(1)
    for given in ({}, {"terms": 1}, {"size": 1.0}):
        with pytest.raises(TypeError, match=r"a comparison in torch.float32: in fp64 without"):
            assert_close(one, one, **given)
    with pytest.raises(TypeError, match=r"a comparison in torch.float64: in fp64 without"):
        assert_close(one.double(), one.double(), terms=1, size=1.0)


@pytest.mark.fp64
def test_what_asks_for_fp32_gets_fp64():
    x = torch.randn(2, requires_grad=True)
    assert x.float().dtype == x.to(torch.float32).dtype == torch.float64
    assert x.softmax(-1, dtype=torch.float32).dtype == torch.zeros(1).dtype == torch.float64
    assert x.bfloat16().dtype == torch.bfloat16
    assert x.detach().view(torch.float32).shape == (2 * BYTES // 4,)  # its bytes are what they are


@pytest.mark.fp64
def test_threads_and_backward_passes_are_in_fp64_too():
    seen = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(x.float().dtype)
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            seen.append(grad.float().dtype)
            return grad

    x = torch.randn(2, requires_grad=True)
    Probe.apply(x).sum().backward()
    thread = threading.Thread(target=lambda: seen.append(x.float().dtype))
    thread.start()
    thread.join()
    assert seen == [torch.float64] * 3


@pytest.mark.fp64
def test_what_follows_a_text_moves_its_logits_by_less_than_fp32_could_tell():
    model, ids = TINY["llama"](), torch.randint(5, 90, (1, 8))
    with torch.no_grad():
        longer = model(torch.cat([ids, ids], 1)).logits[:, :8]
        assert_close(model(ids).logits, longer)


def test_other_tests_compute_in_fp32():
    assert torch.randn(1).float().dtype == torch.get_default_dtype() == torch.float32
