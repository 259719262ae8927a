"""What these tests mean by equal: ``assert_close`` and the mark ``fp64``."""

import pytest
import torch
from conftest import assert_close


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


@pytest.mark.fp64
def test_what_asks_for_fp32_gets_fp64():
    x = torch.randn(2, requires_grad=True)
    assert x.float().dtype == x.to(torch.float32).dtype == torch.float64
    assert x.softmax(-1, dtype=torch.float32).dtype == torch.zeros(1).dtype == torch.float64
    assert x.bfloat16().dtype == torch.bfloat16
    assert x.detach().view(torch.float32).shape == (4,)  # its 2 · 8 bytes are what they are
