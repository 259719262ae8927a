"""A linear layer with LoRA's update in one function, beside the operations that it stands for."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from lorada.functional.dropout import draw, drop_
from lorada.functional.lora_linear import lora_linear


def tensors(shape, outputs, rank, bias=True, dtype=torch.float64):
    x, w = torch.randn(*shape, dtype=dtype), torch.randn(outputs, shape[-1], dtype=dtype)
    c = torch.randn(outputs, dtype=dtype) if bias else None
    a, b = torch.randn(rank, shape[-1]).double(), torch.randn(outputs, rank).double()
    return x.requires_grad_(), w, c, a.requires_grad_(), b.requires_grad_()


def plain(x, w, c, a, b, scale, p=0.0, training=False):
    """The same as operations of autograd, which draws the same dropout."""
    rest = x.to(a.dtype)
    if training and p:
        rest = rest * drop_(torch.ones(x.shape, dtype=a.dtype), draw(x, p)) / (1 - p)
    return (F.linear(x, w, c) + rest @ a.T @ b.T * scale).to(x.dtype)


def values_and_gradients(form, x, w, c, a, b, *more):
    torch.manual_seed(3)
    y = form(x, w, c, a, b, *more)
    pull = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(4))
    return [y, *torch.autograd.grad(y, (x, a, b), pull)]


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    p=st.sampled_from([0.0, 0.05, 0.6]),
    bias=st.booleans(),
)
@pytest.mark.fp64
def test_values_and_gradients_are_those_of_the_operations(shape, sizes, p, bias):
    inputs, outputs, rank = sizes
    torch.manual_seed(0)
    given = tensors((*shape, inputs), outputs, rank, bias)
    pairs = (values_and_gradients(form, *given, 0.7, p, True) for form in (lora_linear, plain))
    for found, expected in zip(*pairs, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("tokens", [1, 4, 5, 50])  # W + s·B·A from 5 on
@pytest.mark.fp64
@pytest.mark.parametrize("training", [True, False])
def test_without_gradients_it_is_the_same(tokens, training):
    torch.manual_seed(0)
    given = tensors((tokens, 12), 6, 3)
    with torch.no_grad():
        found, expected = (form(*given, 0.7, 0.0, training) for form in (lora_linear, plain))
    assert_close(found, expected)


@pytest.mark.parametrize("frozen", ["x", "a", "b"])
@pytest.mark.fp64
def test_what_is_frozen_gets_no_gradient(frozen):
    torch.manual_seed(0)
    x, w, c, a, b = tensors((2, 3, 6), 5, 2)
    given = {"x": x, "a": a, "b": b}
    given[frozen].requires_grad_(False)
    rest = [tensor for name, tensor in given.items() if name != frozen]
    found, expected = (
        torch.autograd.grad(form(x, w, c, a, b, 2.0).square().sum(), rest)
        for form in (lora_linear, plain)
    )
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_an_update_in_a_more_precise_dtype_is_rounded_once():
    """As in a model in bfloat16 with an adapter in fp64."""
    torch.manual_seed(0)
    x, w, c, a, b = tensors((4, 6), 5, 2, dtype=torch.bfloat16)
    found, for_x, for_a, for_b = values_and_gradients(lora_linear, x, w, c, a, b, 0.7, 0.3, True)
    expected, by_x, by_a, by_b = values_and_gradients(plain, x, w, c, a, b, 0.7, 0.3, True)
    assert_close(found, expected, terms=1, size=expected.abs())
    assert_close(for_a, by_a)
    assert_close(for_b, by_b)
    # The operations round each of the two gradients before they add them, and their sum.
    assert_close(for_x, by_x, terms=3, size=2 * by_x.abs().max())


def as_autocast(x, w, c, a, b, scale):
    """The operations of PEFT's layer where a training has bf16=True."""
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(x, w, c) + F.linear(F.linear(x, a), b) * scale


@pytest.mark.parametrize("sizes", [(576, 1536, 8), (64, 32, 2)], ids=str)
def test_training_in_bfloat16_rounds_no_more_than_autocast(sizes):
    inputs, outputs, rank = sizes
    torch.manual_seed(0)
    x, w, c, a, b = tensors((96, inputs), outputs, rank, dtype=torch.bfloat16)
    exact = [part.detach().double().requires_grad_() for part in (x, w, c, a, b)]
    held = x, w, c, *(part.detach().float().requires_grad_() for part in (a, b))
    found = values_and_gradients(lora_linear, *held, 0.7)
    assert [part.dtype for part in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
    rounded = values_and_gradients(as_autocast, *held, 0.7)
    # The gradient that arrives is rounded for all three.
    pull = torch.randn(
        found[0].shape, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(4)
    )
    y = plain(*exact, 0.7)
    expected = [y, *torch.autograd.grad(y, (exact[0], *exact[3:]), pull.double())]
    for one, other, right in zip(found, rounded, expected, strict=True):
        own, theirs = ((part.double() - right).norm() for part in (one, other))
        assert 0 < own <= 1.1 * theirs
        assert own < 0.01 * right.norm()


def test_inference_in_bfloat16_adds_an_update_in_fp32():
    torch.manual_seed(0)
    x, w, c, a, b = tensors((96, 64), 32, 2, dtype=torch.bfloat16)
    held = x, w, c, a.detach().float(), b.detach().float()
    with torch.no_grad():
        assert torch.equal(lora_linear(*held, 0.7), plain(*held, 0.7))


@pytest.mark.fp64
def test_what_is_computed_again_is_dropped_again():
    torch.manual_seed(0)
    x, w, c, a, b = tensors((8, 6), 5, 2)
    more = (0.7, 0.4, True)
    expected = values_and_gradients(lora_linear, x, w, c, a, b, *more)

    def again(*given):
        return checkpoint(lora_linear, *given, use_reentrant=False)

    for found, one in zip(values_and_gradients(again, x, w, c, a, b, *more), expected, strict=True):
        assert_close(found, one)


def test_it_keeps_its_input_and_the_places_of_what_is_dropped():
    x, w, c, a, b = tensors((50, 40), 30, 2)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t
    ):
        lora_linear(x, w, c, a, b, 0.7, 0.4, True)
    rest = [t for t in kept.values() if t.data_ptr() not in {x.data_ptr(), w.data_ptr()}]
    (places,) = (t for t in rest if t.dtype == torch.int32)
    assert places.numel() < 0.6 * x.numel()  # some are named twice
    assert {(t.shape, t.dtype) for t in rest if t is not places} == {
        ((50, 2), torch.float64),  # A dropout(x)
        (a.shape, torch.float64), (b.shape, torch.float64),
    }  # fmt: skip
