"""Parts in fp32, such as the trained copies of norms, on bases of any dtype."""

import copy

import pytest
import torch
from conftest import TINY
from peft import PeftModel
from stacks import batch, logits, moved

from lorada import as_stack, build_method, merge_weights
from lorada.tuners.stack.nested_layers import OwnNorm

METHODS = ("ln_tuning", "ln_tuning+lora", "lora+ln_tuning", "ln_tuning+lmam")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp16", "fp32"])


def tuned(name, dtype, kind="llama"):
    base = TINY[kind]().to(dtype)
    return moved(base, build_method(name, base.config).config)


def assert_near(found, expected):
    """Equal but for the rounding of some layers."""
    limit = 64 * torch.finfo(found.dtype).eps * expected.abs().max()
    assert (found - expected).abs().max() <= limit


@each_dtype
@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("name", METHODS)
def test_a_tuned_norm_is_merged_in_the_dtype_of_the_base_and_the_model_runs(name, kind, dtype):
    model, inputs = tuned(name, dtype, kind), batch(kind)
    expected = logits(model, inputs)
    if name != "ln_tuning+lmam":
        merged = copy.deepcopy(model).merge_and_unload()
        assert {parameter.dtype for parameter in merged.parameters()} == {dtype}
        assert_near(logits(merged, inputs), expected)
    assert_near(logits(merge_weights(model), inputs), expected)


@pytest.mark.first
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_tuned_norm_computes_in_float32_whatever_the_dtype_of_the_base(kind):
    model = tuned("ln_tuning", torch.bfloat16, kind)
    norm = next(layer for layer in model.modules() if isinstance(layer, OwnNorm))
    copied = norm.ln_tuning_layers["default"]
    assert {parameter.dtype for parameter in copied.parameters()} == {torch.float32}
    x = torch.randn(64, 32).bfloat16()
    with torch.no_grad():
        assert torch.equal(norm(x), copied(x.float()).bfloat16())


@each_dtype
def test_a_norm_that_is_merged_in_place_is_saved_as_trained_and_comes_back_exactly(dtype, tmp_path):
    model, inputs = tuned("ln_tuning", dtype), batch("llama")
    expected = logits(model, inputs)
    model.merge_adapter()
    assert_near(logits(model, inputs), expected)
    model.save_pretrained(tmp_path)
    base, config = TINY["llama"]().to(dtype), as_stack(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path, config=config).eval()
    assert torch.equal(logits(loaded, inputs), expected)
    model.unmerge_adapter()
    assert torch.equal(logits(model, inputs), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), logits(TINY["llama"]().to(dtype), inputs))


@pytest.mark.parametrize("name", ["quanta", "c3a"])
def test_parts_in_float32_merge_into_a_base_in_float64(name):
    model, inputs = tuned(name, torch.float64), batch("llama")
    expected = logits(model, inputs)
    merged = merge_weights(model)
    torch.testing.assert_close(logits(merged, inputs), expected, atol=1e-3, rtol=0)
