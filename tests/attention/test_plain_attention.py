"""Attention in a training on a CPU by plain products."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from folders import ROWS, llama_folder, rows_file
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lorada.attention.plain_attention import LONGEST, plain_attention, plain_products
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Operations(TorchDispatchMode):
    """Counts what torch computes."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.add(func)
        return func(*args, **(kwargs or {}))


def heads(length, dtype=torch.bfloat16, count=1):
    return torch.randn(2, count, length, 8, dtype=dtype, requires_grad=True)


def computes(operation, call):
    with Operations() as seen:
        call()
    return operation in seen.found


def is_fused(call):
    return computes(FUSED, call)


@pytest.mark.parametrize(
    ("length", "dtype", "fused"),
    [
        (LONGEST, torch.bfloat16, False),
        (LONGEST + 1, torch.bfloat16, True),
        (8, torch.float32, True),
    ],
)
def test_only_short_rows_in_bfloat16_are_plain_products(length, dtype, fused):
    x = heads(length, dtype)
    with plain_attention():
        assert is_fused(lambda: F.scaled_dot_product_attention(x, x, x)) == fused


def test_dropout_is_drawn_as_everywhere():
    x = heads(200, torch.float32)
    with plain_attention():
        calls = torch.ops.aten.poisson.default, torch.ops.aten.bernoulli_.float
        for operation, drawn in zip(calls, (True, False), strict=True):
            call = lambda: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3)  # noqa: E731
            assert computes(operation, call) == drawn


@pytest.mark.fp64
def test_dropout_drops_weights_of_the_map():
    """With the unit matrix as values, the output is the map."""
    x, unit = heads(50, torch.float64), torch.eye(50).double().expand(2, 1, 50, 50)
    torch.manual_seed(0)
    found = plain_products(x, x, unit, p=0.3)
    kept = found != 0
    assert_close(found, torch.where(kept, plain_products(x, x, unit) / 0.7, 0.0))
    assert abs(kept.double().mean().item() - 0.7) < 5 * (0.3 * 0.7 / kept.numel()) ** 0.5


def test_without_gradients_it_is_fused():
    x = heads(8)
    with plain_attention(), torch.no_grad():
        assert is_fused(lambda: F.scaled_dot_product_attention(x, x, x))


def test_autocast_decides_the_dtype():
    x = heads(8, torch.float32)
    with plain_attention(), torch.autocast("cpu", torch.bfloat16):
        assert not is_fused(lambda: F.scaled_dot_product_attention(x, x, x))
        assert F.scaled_dot_product_attention(x, x, x).dtype == torch.bfloat16


def test_afterwards_attention_is_as_before_even_after_an_error():
    before = F.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), plain_attention():
        1 / 0  # noqa: B018
    assert F.scaled_dot_product_attention is before


def masks(draw, batch, count, length, keys):
    """A mask in one of the forms that models give; every query sees a key."""
    form = draw(st.sampled_from(["none", "bool", "numbers", "of heads", "of all rows"]))
    if form == "none":
        return None
    seen = torch.rand(batch, 1, length, keys) < 0.6
    seen[..., 0] = True
    if form == "bool":
        return seen
    if form == "of all rows":
        return seen[0, 0]
    if form == "numbers":
        return torch.zeros(seen.shape).double().masked_fill(~seen, -torch.inf)
    return torch.randn(batch, count, length, keys).double().requires_grad_()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.fp64
def test_plain_products_are_attention(data):
    draw = data.draw
    batch, groups, shared = (draw(st.integers(1, 3)) for _ in range(3))
    length, keys, width, wide = (draw(st.integers(1, 6)) for _ in range(4))
    torch.manual_seed(draw(st.integers(0, 9)))
    count = groups * shared
    shapes = (count, length, width), (groups, keys, width), (groups, keys, wide)
    given = [torch.randn(batch, *shape).double().requires_grad_() for shape in shapes]
    mask = masks(draw, batch, count, length, keys)
    causal = mask is None and draw(st.booleans())
    scale = draw(st.sampled_from([None, 0.3]))
    found = plain_products(*given, mask, causal, scale)
    expected = F.scaled_dot_product_attention(
        *given, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True
    )
    assert_close(found, expected)
    inputs = [*given, mask] if mask is not None and mask.requires_grad else given
    pull = torch.randn(found.shape).double()
    pairs = (torch.autograd.grad(output, inputs, pull) for output in (found, expected))
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other)


@pytest.mark.fp64
def test_a_query_without_keys_gets_the_mean_of_all_values():
    x = heads(3, torch.float64)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril(-1)
    found = plain_products(x, x, x, mask)
    assert_close(found[:, :, 0], x.mean(2))
    assert_close(found[:, :, 1], x[:, :, 0])


def test_a_mask_is_read_once_until_it_changes():
    x, mask = heads(3, torch.float64), torch.ones(2, 1, 3, 3, dtype=torch.bool)
    first = plain_products(x, x, x, mask)
    mask[:, :, :, 2] = False
    assert torch.equal(plain_products(x, x, x, mask), plain_products(x, x, x, mask.clone()))
    assert not torch.equal(plain_products(x, x, x, mask), first)


@pytest.mark.parametrize("length", [5, 48, LONGEST])
def test_gradients_are_as_exact_as_those_of_the_fused_kernel(length):
    torch.manual_seed(0)
    exact = [torch.randn(2, 6, length, 16).double().requires_grad_() for _ in range(3)]
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    pull = torch.randn(2, 6, length, 16).double()

    def gradients(form, given):
        out = form(*given, is_causal=True)
        return torch.autograd.grad(out, given, pull.to(out.dtype))

    fused = F.scaled_dot_product_attention

    def errors(form):
        pairs = zip(gradients(form, rounded), gradients(fused, exact), strict=True)
        return [((one.double() - other).norm() / other.norm()).item() for one, other in pairs]

    for plain, other in zip(errors(plain_products), errors(fused), strict=True):
        assert plain < 2 * other < 0.05


def trained(folder, *words, attention_dropout=0.0):
    data = rows_file(folder / "rows.jsonl", ROWS)
    model = llama_folder(folder / "llama", attention_dropout=attention_dropout)
    options = {"method": "lora", "model": str(model), "data": str(data)}
    words = ["max_steps=2", "max_length=32", "report_to=[]", *words]
    recipe = load_recipe(None, words, {**options, "output": str(folder / "run")})
    train(recipe, quiet=True)
    return json.loads((folder / "run" / "result.json").read_text())


@pytest.mark.parametrize(("dtype", "plain"), [("bfloat16", True), ("float32", False)])
def test_a_training_in_bfloat16_computes_it_by_plain_products(tmp_path, dtype, plain):
    softmax = torch.ops.aten._softmax.default
    assert computes(softmax, lambda: trained(tmp_path, f"dtype={dtype}")) == plain


def test_a_training_draws_attention_dropout_as_everywhere(tmp_path):
    def call():
        trained(tmp_path, "lora.lora_dropout=0", attention_dropout=0.2)

    assert computes(torch.ops.aten.poisson.default, call)


@pytest.mark.parametrize("setting", ["full", "selective"])
def test_layers_that_run_again_compute_what_they_did(tmp_path, setting):
    results = []
    for asked in ("off", setting):
        (tmp_path / asked).mkdir()
        words = ["dtype=bfloat16", f"activation_checkpointing={asked}"]
        results.append(trained(tmp_path / asked, *words)["history"])
    for key in ("loss", "grad_norm"):
        plain, again = ([entry[key] for entry in history] for history in results)
        assert plain == again
