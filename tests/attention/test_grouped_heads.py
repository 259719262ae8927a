"""A single query's heads that share keys are the queries of one head: the same numbers."""

import pytest
import torch
from conftest import TINY, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lorada.attention import grouped_heads
from lorada.attention.grouped_heads import FORCED, with_grouped_heads
from lorada.attention.interface import install

pytestmark = pytest.mark.fp64

WIDTH = 4


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    monkeypatch.setenv(FORCED, "1")


def module(share: int) -> nn.Module:
    made = nn.Module()
    made.num_key_value_groups, made.is_causal = share, True
    return made


def tensors(batch: int, groups: int, share: int, keys: int, queries: int = 1):
    torch.manual_seed(0)
    query = torch.randn(batch, groups * share, queries, WIDTH)
    return query, *(torch.randn(batch, groups, keys, WIDTH) for _ in "kv")


def masks(kind: str, batch: int, keys: int):
    seen = torch.rand(batch, 1, 1, keys) > 0.3
    seen[..., -1] = True
    if kind == "one for all":
        return seen[:1]
    return {"none": None, "boolean": seen, "additive": torch.where(seen, 0.0, -1e9)}[kind]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4), st.integers(1, 7),
       st.sampled_from(["none", "boolean", "additive", "one for all"]))  # fmt: skip
def test_values_and_gradients_are_those_of_the_kernel(batch, groups, share, keys, kind):
    given_, mask = tensors(batch, groups, share, keys), masks(kind, batch, keys)
    found, expected = [], []
    for results, kernel in (
        (found, with_grouped_heads(sdpa_attention_forward)), (expected, sdpa_attention_forward),
    ):  # fmt: skip
        leaves = [each.clone().requires_grad_() for each in given_]
        output, weights = kernel(module(share), *leaves, mask, scaling=0.3)
        assert weights is None
        results += [output, *torch.autograd.grad(output.square().sum(), leaves)]
    assert found[0].shape == (batch, 1, groups * share, WIDTH)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


CASES = ["grouped", "several queries", "a head for each key", "another kernel", "not forced",
         "a mask for each head", "a bias for each head"]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_which_calls_are_grouped(case, monkeypatch):
    share = 1 if case == "a head for each key" else 2
    query, key, value = tensors(2, 3, share, 5, queries=2 if case == "several queries" else 1)
    mask = torch.zeros(2, 6, 1, 5) if case == "a mask for each head" else None
    kwargs = {"position_bias": torch.zeros(1, 6, 1, 5)} if case == "a bias for each head" else {}
    if case == "not forced":
        monkeypatch.delenv(FORCED)
    shapes = []

    def kernel(module, query, key, value, mask, **kwargs):
        shapes.append((query.shape, kwargs.get("is_causal")))
        return query.transpose(1, 2), None

    if case != "another kernel":
        monkeypatch.setattr(grouped_heads, "sdpa_attention_forward", kernel)
    attend = with_grouped_heads(kernel)
    output, _ = attend(module(share), query, key, value, mask, **kwargs)
    assert_close(output, query.transpose(1, 2))  # each head at its own place
    expected = ((2, 3, 2, WIDTH), False) if case == "grouped" else (query.shape, None)
    assert shapes == [expected]


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_model_decodes_the_same(name, monkeypatch):
    model = TINY[name](attn_implementation="sdpa").eval()
    install()
    ids, mask = torch.arange(10, 24).view(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[0, :2] = 0
    found = []
    for force in ("1", "0"):
        monkeypatch.setenv(FORCED, force)
        cache = DynamicCache(config=model.config)
        for begin, end in ((0, 5), (5, 6), (6, 7)):
            out = model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache)
            found.append(out.logits)
    for one, other in zip(found[:3], found[3:], strict=True):
        assert_close(one, other)
