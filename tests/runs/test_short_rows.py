"""Attention over short rows in bfloat16 on a CPU."""

import json

import pytest
import torch
import torch.nn.functional as F
from folders import ROWS, llama_folder, rows_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lorada.runs.recipe import load_recipe
from lorada.runs.training.short_rows import LONGEST, are_short, plain_attention
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


@pytest.mark.parametrize(
    ("length", "dtype", "short"),
    [
        (LONGEST, torch.bfloat16, True),
        (LONGEST + 1, torch.bfloat16, False),
        (8, torch.float32, False),
    ],
)
def test_only_short_rows_in_bfloat16_are_short(length, dtype, short):
    batch = {"input_ids": torch.zeros(2, length), "label": torch.zeros(2), "groups": None}
    assert are_short(batch, dtype) == short


def test_rows_on_a_gpu_are_not():
    with FakeTensorMode():
        assert not are_short({"input_ids": torch.zeros(2, 8, device="cuda")}, torch.bfloat16)


@pytest.mark.parametrize("length", [5, 48, LONGEST])
def test_gradients_are_as_exact_as_those_of_the_fused_kernel(length):
    torch.manual_seed(0)
    exact = [torch.randn(2, 6, length, 16).double().requires_grad_() for _ in range(3)]
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    pull = torch.randn(2, 6, length, 16).double()

    def gradients(given, acts=False):
        with plain_attention(acts):
            out = F.scaled_dot_product_attention(*given, is_causal=True)
        return torch.autograd.grad(out, given, pull.to(out.dtype))

    def errors(acts):
        found = gradients(rounded, acts)
        pairs = zip(found, gradients(exact), strict=True)
        return [((one.double() - other).norm() / other.norm()).item() for one, other in pairs]

    for plain, fused in zip(errors(True), errors(False), strict=True):
        assert plain < 2 * fused < 0.05


def test_the_kernels_are_as_before_after_an_error():
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with pytest.raises(ZeroDivisionError), plain_attention(True):
        1 / 0  # noqa: B018
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before
    x = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16)
    with Operations() as seen:
        F.scaled_dot_product_attention(x, x, x)
    assert FUSED in seen.found


@pytest.mark.parametrize(("dtype", "fused"), [("bfloat16", False), ("float32", True)])
def test_a_training_in_bfloat16_computes_it_by_plain_products(tmp_path, dtype, fused):
    data = rows_file(tmp_path / "rows.jsonl", ROWS)
    folder = llama_folder(tmp_path / "llama")
    words = [f"dtype={dtype}", "max_steps=1", "max_length=32", "report_to=[]"]
    options = {"method": "lora", "model": str(folder), "data": str(data)}
    recipe = load_recipe(None, words, {**options, "output": str(tmp_path / "run")})
    with Operations() as seen:
        train(recipe, quiet=True)
    assert (FUSED in seen.found) == fused
    assert json.loads((tmp_path / "run" / "result.json").read_text())
