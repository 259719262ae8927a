"""Flash kernels behind a prefix.

What kernels that do not run here are given behind a prefix, and what is refused.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, assert_close
from folders import refused
from peft import PeftModel, get_peft_model
from stacks import batch, in_chunks, logits, randomise
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import modeling_flash_attention_utils

from lorada import PrefixConfig
from lorada.attention.call import AttentionCall, Prefix
from lorada.attention.prefix_keys import with_prefixes

pytestmark = pytest.mark.fp64

LENGTH = 3  # of the prefix, in tokens


def flash(query, key, value, causal: bool, softmax_scale: float) -> Tensor:
    """Flash attention of (B, T, H, D) in plain PyTorch: causal masks end at the last key."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * softmax_scale
    if causal:
        see = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
        scores = scores.masked_fill(~see, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def flash_varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, **options) -> Tensor:
    """The same on sequences laid end to end."""
    sizes = [lengths.diff().tolist() for lengths in (cu_seqlens_q, cu_seqlens_k)]
    states = query.split(sizes[0]), key.split(sizes[1]), value.split(sizes[1])
    outputs = [
        flash(*(x[None] for x in parts), **options)[0] for parts in zip(*states, strict=True)
    ]
    return torch.cat(outputs)


def flash_arguments(query_length, key_length, is_causal, softmax_scale, **rest) -> dict:
    return {"causal": is_causal, "softmax_scale": softmax_scale}


@pytest.fixture
def flash_kernels(monkeypatch):
    """transformers' own code around flash kernels, unpadding included, with the two above in it."""
    utils = modeling_flash_attention_utils
    functions = flash, flash_varlen, None, utils._pad_input, utils._unpad_input
    calls = []

    def lazy_import(name: str) -> tuple:
        calls.append(name)
        return functions, (flash_arguments, None)

    monkeypatch.setattr(utils, "lazy_import_flash_attention", lazy_import)
    yield
    assert set(calls) == {"flash_attention_2"}


def prefixed(name: str) -> PeftModel:
    """A model with two adapters."""
    model = get_peft_model(TINY[name](), PrefixConfig(length=LENGTH)).eval()
    model.add_adapter("second", PrefixConfig(length=2))
    randomise(model)
    randomise(model, "second")
    return model


def under_flash(model: PeftModel) -> PeftModel:
    """The same model, whose attention calls flash kernels."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if hasattr(module, "config") and hasattr(module.config, "_attn_implementation_internal"):
            module.config._attn_implementation_internal = "flash_attention_2"
    return other


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_flash_kernels_give_what_sdpa_gives(name, padding, flash_kernels):
    sdpa, inputs = prefixed(name), batch(name)
    if padding is None:
        del inputs["attention_mask"]
    elif padding == "left":
        inputs = {key: value.flip(1) for key, value in inputs.items()}
    real = inputs.get("attention_mask", torch.ones(3, 8)).bool()
    expected = logits(sdpa, inputs)
    assert_close(logits(under_flash(sdpa), inputs)[real], expected[real])


def test_flash_kernels_give_what_sdpa_gives_in_chunks_and_steps(flash_kernels):
    sdpa, tokens = prefixed("llama"), torch.randint(5, 90, (2, 9))
    expected = logits(sdpa, {"input_ids": tokens})
    assert_close(in_chunks(under_flash(sdpa), tokens, [4, 3, 1, 1]), expected)


# What a kernel is given, for those that do not run here.


def call_of(kernel: str, mask: Tensor | None, **kwargs) -> dict:
    """What reaches a kernel for samples of 5 keys behind a prefix of ``LENGTH``."""
    module = SimpleNamespace(config=SimpleNamespace(_attn_implementation=kernel), is_causal=True)
    given = {}

    def attend(module, query, key, value, mask, **kwargs):
        given.update(key=key, value=value, mask=mask, **kwargs)
        return query.transpose(1, 2), None

    samples, queries = kwargs.pop("samples", 2), kwargs.pop("queries", 5)
    states = [torch.randn(samples, 2, size, 8) for size in (queries, 5, 5)]
    prefix = Prefix(torch.randn(LENGTH, 16), torch.randn(LENGTH, 16))
    call = AttentionCall.read(module, states, mask, kwargs, prefixes=[prefix])
    with_prefixes(attend, call)(module, *states, mask, **kwargs)
    assert given["key"].shape[2] == given["value"].shape[2] == LENGTH + 5
    return given


def test_flash_kernels_align_causal_masks_to_the_last_key_and_get_none():
    in_order = {"samples": 1, "position_ids": torch.arange(5)[None]}  # one row, not packed
    for kwargs in ({}, in_order):
        assert call_of("flash_attention_2", None, **kwargs)["mask"] is None
    padded = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    found = call_of("flash_attention_2", padded)["mask"]
    assert found.tolist() == [[1] * 8, [1, 1, 1, 0, 0, 1, 1, 1]]


def test_no_mask_stays_none_where_nothing_is_causal():
    assert call_of("sdpa", None, queries=1)["mask"] is None
    assert call_of("sdpa", None, is_causal=False)["mask"] is None  # a call knows better
    assert call_of("sdpa", None)["mask"].dtype == torch.bool


BLOCKS = create_block_mask(lambda b, h, q, k: q >= k, 2, None, 5, 5, device="cpu")


@pytest.mark.parametrize(
    ("kernel", "mask", "kwargs", "said"),
    [
        ("flash_attention_2", None, {"cu_seq_lens_q": torch.tensor([0, 5])}, "packed row"),
        ("flash_attention_2", None,
         {"samples": 1, "position_ids": torch.tensor([[0, 1, 0, 1, 2]])}, "packed row"),
        ("flash_attention_2", None, {"sliding_window": 7}, "sliding window of 7"),
        ("sdpa", None, {"block_table": torch.zeros(1)}, "paged cache"),
        ("sdpa", torch.ones(2, 5, 5), {}, r"this form \(shape \(2, 5, 5\)\)"),
        ("flex_attention", BLOCKS, {}, r"\(BlockMask\): "),
    ],
)  # fmt: skip
def test_calls_that_no_prefix_fits_are_refused_in_one_line(kernel, mask, kwargs, said):
    remedy = "use attn_implementation='sdpa' or 'eager'"
    refused(f"{said}.*{remedy}", lambda: call_of(kernel, mask, **kwargs))
