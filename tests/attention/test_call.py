"""How ``AttentionCall`` reads what transformers passes to an attention function."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from lorada.attention.call import AttentionCall

QUERIES, KEYS = 2, 5


def call(mask=None, implementation: str | None = "sdpa", own=None, **kwargs) -> AttentionCall:
    """A call of two samples with two queries behind three cached keys.

    ``own`` is what the module says of whether it is causal.
    """
    module = nn.Module()
    module.config = SimpleNamespace(_attn_implementation=implementation)
    if own is not None:
        module.is_causal = own
    query, key = torch.zeros(2, 4, QUERIES, 3), torch.zeros(2, 2, KEYS, 3)
    return AttentionCall.read(module, (query, key, key), mask, kwargs)


def test_a_module_knows_better_than_its_call_whether_it_is_causal():
    assert call().shape.causal
    assert call(own=True).shape.causal
    assert not call(own=False).shape.causal
    assert call(own=True, is_causal=False).shape.causal
    assert not call(is_causal=False).shape.causal


@pytest.mark.parametrize(
    ("implementation", "kernel"),
    [
        (None, "eager"),
        ("sdpa", "sdpa"),
        ("paged|sdpa", "sdpa"),
        ("paged|eager", "eager"),
        ("flash_attention_2", "flash"),
        ("paged|flash_attention_2", "flash"),
        ("kernels-community/flash-attn3", "flash"),
        ("flex_attention", "flex"),
    ],
)
def test_an_implementation_belongs_to_a_kernel(implementation, kernel):
    assert call(implementation=implementation).kernel == kernel


SEEN = torch.tensor([[[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]).bool()


def block_mask() -> object:
    def pattern(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return SEEN[sample, query, key]

    return create_block_mask(pattern, 2, None, QUERIES, KEYS, device="cpu")


@pytest.mark.parametrize("mask", [block_mask(), nn.functional.pad(SEEN, (0, 3))[:, None]],
                         ids=["block", "of a static cache"])  # fmt: skip
def test_a_mask_shows_the_keys_that_a_query_sees(mask):
    """Other forms pass through ``test_positions.py``."""
    assert torch.equal(call(mask).visible_keys(), SEEN)


def test_a_mask_of_tokens_may_be_that_of_a_longer_past():
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    assert torch.equal(call(mask).visible_keys(), mask[:, None, 2:].bool())


def test_lengths_of_the_queries_alone_are_those_of_the_keys():
    queries, keys = torch.tensor([0, 2]), torch.tensor([0, 5])
    assert call().cu_seq_lens is None
    assert call(cu_seq_lens_q=queries).cu_seq_lens == (queries, queries)
    assert call(cu_seq_lens_q=queries, cu_seq_lens_k=keys).cu_seq_lens == (queries, keys)
