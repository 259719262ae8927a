"""Gains of attention heads: each function against its sum, head by head and token by token."""

import pytest
import torch
from conftest import assert_close, assert_same_gradients

from lorada.functional.gains import gain_delta, query_gains, scale_heads

pytestmark = pytest.mark.fp64

B, H, T, D, WIDTH, OUT = 2, 3, 5, 4, 6, 7


def agree(fast, slow, *inputs):
    """Two functions have the same values and gradients."""
    inputs = [x.requires_grad_() for x in inputs]
    assert_same_gradients(fast(*inputs), slow(*inputs), inputs, more_than=0.01)


def gains_by_hand(query, weight, gain):
    """g_h + w_h·q_hi / √D, number by number, (B, T, H)."""
    rows = [
        torch.stack([gain[h] + weight[h] @ query[b, h, i] / D**0.5 for h in range(H)])
        for b in range(B)
        for i in range(T)
    ]
    return torch.stack(rows).view(B, T, H)


def scaled_by_hand(heads, gains):
    parts = heads.chunk(gains.shape[-1], -1)
    return torch.cat([(1 + gains[..., [h]]) * part for h, part in enumerate(parts)], -1)


def test_gains_of_queries_are_those_of_each_head_and_token():
    inputs = torch.randn(B, H, T, D), torch.randn(H, D), torch.randn(H)
    agree(query_gains, gains_by_hand, *inputs)


@pytest.mark.parametrize("shape", [(1, 1, H), (B, 1, H), (B, T, H)])
def test_heads_are_scaled_each_by_its_gain(shape):
    agree(scale_heads, scaled_by_hand, torch.randn(B, T, H * WIDTH), torch.randn(shape))


def test_a_merged_gain_scales_the_columns_of_its_head():
    weight, gain, heads = torch.randn(OUT, H * WIDTH), torch.randn(H), torch.randn(T, H * WIDTH)
    merged = weight + gain_delta(weight, gain)
    assert_close(heads @ merged.T, scale_heads(heads, gain.view(1, H)) @ weight.T)


def test_one_number_of_each_kind_by_hand():
    query, weight = torch.tensor([[[[1.0, 2.0, 2.0, 0.0]]]]), torch.tensor([[0.5, 1.0, 0.0, 9.0]])
    gains = query_gains(query, weight, torch.tensor([0.25]))
    assert gains.item() == 0.25 + 2.5 / 2
    assert scale_heads(torch.tensor([[[2.0, -4.0]]]), gains).tolist() == [[[5.0, -10.0]]]


@pytest.mark.fp64(False)
def test_half_precision_is_rounded_once_at_the_end():
    heads, gains = torch.randn(B, T, H * WIDTH).bfloat16(), (0.1 * torch.randn(B, T, H)).bfloat16()
    expected = scaled_by_hand(heads.float(), gains.float()).bfloat16()
    assert torch.equal(scale_heads(heads, gains), expected)
    query = torch.randn(B, H, T, D).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = query_gains(query, torch.randn(H, D), torch.randn(H))
    assert found.dtype == torch.float32
