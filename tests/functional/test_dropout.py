"""Dropout on a CPU: the distribution of torch's, its gradient, and where it is used."""

import math

import pytest
import torch
from conftest import TINY
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorada import LoradaConfig
from lorada.functional.dropout import Dropout, draw, dropout

COUNT = 400_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_so_many_are_dropped_and_the_others_are_scaled(p, dtype):
    found = dropout(torch.ones(COUNT, dtype=dtype), p, True)
    assert found.dtype == dtype
    spread = math.sqrt(p * (1 - p) / COUNT)
    assert abs((found == 0).double().mean().item() - p) < 5 * spread
    (scale,) = found[found != 0].unique().tolist()
    assert scale == pytest.approx(1 / (1 - p), rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_neighbours_are_dropped_independently(p):
    dropped = (dropout(torch.ones(COUNT), p, True) == 0).double().view(-1, 8)
    correlations = torch.corrcoef(dropped.T) - torch.eye(8)
    assert correlations.abs().max() < 5 / math.sqrt(COUNT / 8)


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_every_place_is_dropped_as_often_as_another(p):
    draws = 20_000
    counts = torch.zeros(9)
    for _ in range(draws):
        counts[draw(torch.empty(9), p).long()] += 1
    spread = math.sqrt(p * (1 - p) / draws)
    assert (counts / draws - p).abs().max() < 5 * spread


@pytest.mark.parametrize("p", [1e-30, 1e-9, 1 - 1e-9])
def test_an_extreme_probability_drops_almost_none_or_all(p):
    dropped = (dropout(torch.ones(1000), p, True) == 0).sum()
    assert dropped == (0 if p < 0.5 else 1000)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_a_large_tensor_is_dropped_as_often_at_its_end(p, monkeypatch):
    monkeypatch.setattr("lorada.functional.dropout.EVEN", 0)
    places = draw(torch.empty(COUNT), p).unique()
    spread = math.sqrt(p * (1 - p) / COUNT)
    assert abs(len(places) / COUNT - p) < 5 * spread
    assert abs((places < COUNT // 2).double().mean().item() - 0.5) < 5 / math.sqrt(p * COUNT)
    assert places.min() >= 0
    assert places.max() < COUNT


@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (), (0, 4)])
def test_the_gradient_is_dropped_and_scaled_like_the_value(shape):
    x = torch.full(shape, 2.0, requires_grad=True)
    found = dropout(x, 0.3, True)
    (gradient,) = torch.autograd.grad((3 * found).sum(), x)
    assert torch.equal(gradient * 2, found * 3)


def test_another_order_in_memory_changes_nothing():
    x = torch.randn(6, 8)
    torch.manual_seed(1)
    expected = dropout(x, 0.3, True)
    torch.manual_seed(1)
    assert torch.equal(dropout(x.T.contiguous().T, 0.3, True), expected)


def test_what_is_computed_again_is_dropped_again():
    x = torch.randn(50, requires_grad=True)
    torch.manual_seed(2)
    (expected,) = torch.autograd.grad(dropout(x, 0.4, True).square().sum(), x)
    torch.manual_seed(2)
    again = checkpoint(lambda x: dropout(x, 0.4, True).square().sum(), x, use_reentrant=False)
    (gradient,) = torch.autograd.grad(again, x)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.4, False), (1.0, True)])
def test_with_nothing_to_draw_it_is_torchs(p, training):
    x = torch.randn(9)
    assert torch.equal(dropout(x, p, training), x if p < 1 else torch.zeros(9))


def test_the_layers_of_peft_in_a_stack_have_it():
    part = LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(TINY["llama"](), LoradaConfig(parts=[part]))
    found = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert len(found) == 4  # two layers
    assert {(type(m), m.p, m.training) for m in found} == {(Dropout, 0.3, True)}
    model.eval()
    assert not any(m.training for m in found)
