"""Packed sequences computed in parts of their row, against the kernel on the whole row."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_close
from exact_cells import NEW, adapted, batched_continuously, plain_run
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lorada.attention import packed_attention
from lorada.attention.packed_attention import in_parts, packed_parts

pytestmark = pytest.mark.fp64

HEADS, GROUPS, WIDTH = 4, 2, 3


class Kernel:
    """transformers' function for sdpa, which counts its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, module, query, key, value, mask, **kwargs):
        self.calls.append((query.shape[2], key.shape[2]))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


def module(implementation: str = "sdpa") -> torch.nn.Module:
    found = torch.nn.Module()
    found.config = SimpleNamespace(_attn_implementation=implementation)
    found.is_causal, found.num_key_value_groups = True, HEADS // GROUPS
    return found


def packed(queries: list[int], keys: list[int], unused: int = 0, boolean: bool = True):
    """The arguments of a call with sequences of these sizes, and slots that none has."""
    torch.manual_seed(0)
    total_queries, total_keys = sum(queries) + unused, sum(keys) + unused
    see = torch.zeros(total_queries, total_keys, dtype=torch.bool)
    lengths = [torch.tensor([0, *sizes]).cumsum(0).int() for sizes in (queries, keys)]
    for (q, q_end), (k, k_end) in zip(*(pairwise(each.tolist()) for each in lengths), strict=True):
        size, seen = q_end - q, k_end - k
        see[q:q_end, k:k_end] = torch.ones(size, seen).tril(seen - size).bool()
    see[total_queries - unused :] = True  # a row that sees nothing has no softmax
    mask = see if boolean else torch.where(see, 0.0, torch.finfo(torch.float32).min)
    query = torch.randn(1, HEADS, total_queries, WIDTH)
    key, value = (torch.randn(1, GROUPS, total_keys, WIDTH) for _ in range(2))
    kwargs = {"cu_seq_lens_q": lengths[0], "cu_seq_lens_k": lengths[1]}
    return (query, key, value, mask[None, None]), kwargs


SIZES = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 8)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=100)
@given(SIZES, st.integers(0, 2), st.integers(0, 2), st.booleans(), st.integers(1, 2000))
def test_the_parts_give_what_the_whole_row_gives(sizes, empty, unused, boolean, call):
    sizes = sizes + [(0, 0)] * empty
    queries, keys = [q for q, _ in sizes], [q + cached for q, cached in sizes]
    tensors, kwargs = packed(queries, keys, unused, boolean)
    kernel, real = Kernel(), sum(queries)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(packed_attention, "CALL", call)
        found, weights = in_parts(kernel)(module(), *tensors, **kwargs)
        expected, _ = sdpa_attention_forward(module(), *tensors, **kwargs)
    assert weights is None
    assert found.shape == expected.shape
    assert_close(found[:, :real], expected[:, :real])
    assert sum(q for q, _ in kernel.calls) == real + unused
    assert sum(k for _, k in kernel.calls) == sum(keys) + unused
    assert all(q for q, _ in kernel.calls)


@given(SIZES, st.integers(1, 500))
def test_the_parts_are_all_of_the_row_in_its_order(sizes, call):
    by_query, by_key = [0], [0]
    for queries, cached in sizes:
        by_query.append(by_query[-1] + queries)
        by_key.append(by_key[-1] + queries + cached)
    parts = packed_parts(by_query, by_key, call) or [(slice(0, by_query[-1]), slice(0, by_key[-1]))]
    for total, number in ((by_query[-1], 0), (by_key[-1], 1)):
        ends = [part[number].start for part in parts] + [total]
        assert [slice(*pair) for pair in pairwise(ends)] == [part[number] for part in parts]
        assert ends[0] == 0
    for queries, keys in parts:
        assert by_query.index(queries.start) == by_key.index(keys.start)


def test_a_prompt_is_alone_and_single_tokens_are_together_while_that_costs_less():
    lengths = [0, 1, 2, 9, 10, 11], [0, 50, 90, 97, 150, 200]
    cut = [
        (slice(0, 2), slice(0, 90)),
        (slice(2, 9), slice(90, 97)),
        (slice(9, 11), slice(97, 200)),
    ]
    assert packed_parts(*lengths, 500) == cut
    tokens = list(range(9)), list(range(0, 900, 100))
    assert packed_parts(*tokens, 6000) is None
    # 8 queries of 800 keys, of which a part of four hides 4 · 400 - 400.
    assert [part[0] for part in packed_parts(*tokens, 1600)] == [slice(0, 4), slice(4, 8)]
    assert len(packed_parts(*tokens, 1)) == 8


@pytest.mark.parametrize(
    "why", ["gradients", "no lengths", "no mask", "another kernel", "one part"]
)
def test_any_other_call_is_one_call(why, monkeypatch):
    tensors, kwargs = packed([3, 1, 1], [3, 4, 5])
    monkeypatch.setattr(packed_attention, "CALL", 10**9 if why == "one part" else 1)
    if why == "one part":
        tensors, kwargs = packed([1, 1, 1], [3, 4, 5])
    if why == "no lengths":
        kwargs = {}
    if why == "no mask":
        tensors = (*tensors[:3], None)
    kernel = Kernel()
    with torch.set_grad_enabled(why == "gradients"):
        in_parts(kernel)(module("flex" if why == "another kernel" else "sdpa"), *tensors, **kwargs)
    assert kernel.calls == [(tensors[0].shape[2], tensors[1].shape[2])]


def test_lengths_that_were_changed_in_place_are_read_again(monkeypatch):
    monkeypatch.setattr(packed_attention, "CALL", 1)
    tensors, kwargs = packed([1, 3], [4, 6])
    kernel = Kernel()
    with torch.no_grad():
        for _ in range(2):
            in_parts(kernel)(module(), *tensors, **kwargs)
        kwargs["cu_seq_lens_q"].copy_(torch.tensor([0, 3, 4]))
        kwargs["cu_seq_lens_k"].copy_(torch.tensor([0, 6, 10]))
        in_parts(kernel)(module(), *packed([3, 1], [6, 4])[0], **kwargs)
    assert kernel.calls == [(1, 4), (3, 6), (1, 4), (3, 6), (3, 6), (1, 4)]


def test_layers_share_a_plan_also_if_some_have_windows(monkeypatch):
    made = []
    monkeypatch.setattr(packed_attention, "packed_parts", lambda *args: made.append(args))
    whole, windowed = packed([3, 1], [6, 4]), packed([3, 1], [4, 2])
    with torch.no_grad():
        for tensors, kwargs in [whole, windowed] * 3:
            in_parts(Kernel())(module(), *tensors, **kwargs)
    assert len(made) == 2


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("variant", ["map", "content_behind_a_prefix"])
def test_continuous_batching_in_parts_writes_what_each_prompt_gets_alone(
    name, variant, monkeypatch
):
    monkeypatch.setattr(packed_attention, "CALL", 1)
    made, own = [], packed_attention.packed_parts
    monkeypatch.setattr(
        packed_attention, "packed_parts", lambda *args: made.append(own(*args)) or made[-1]
    )
    samples, logits = plain_run(name, variant)
    found = batched_continuously(adapted(name, variant), samples)
    for logs, each in zip(found, logits, strict=True):
        expected = each[-NEW - 1 : -1].log_softmax(-1).amax(-1)
        assert_close(logs, expected, terms=1, size=expected.abs(), dtype=torch.float32)
    # Behind a prefix the whole row is one call.
    assert bool(made) == (variant == "map")
