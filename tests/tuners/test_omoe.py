"""OmoeConfig: orthogonal DoRA experts, against loops over tokens and experts."""

import pytest
import torch
from conftest import DECODER_SIZES, TINY, assert_close, assert_same_gradients
from peft import get_peft_model
from stacks import HIDDEN, batch, logits, moved
from torch import Tensor, nn

from lorada import OmoeConfig
from lorada.tuners.omoe import orthogonalise, row_norms

pytestmark = pytest.mark.fp64

RANK, INNER = 2, DECODER_SIZES["intermediate_size"]


def omoe(**options) -> OmoeConfig:
    return OmoeConfig(**{"rank": RANK, "alpha": 4, "dropout": 0.0, **options})


def by_hand(layer: nn.Module, x: Tensor) -> Tensor:
    """y of one token, by the equations, with every expert's dense weight."""
    base, scale = layer.base_layer, 4 / RANK
    down, up = layer.lora_down["default"], layer.lora_up["default"]
    outputs = []
    for i in range(len(down)):
        dense = base.weight + scale * up[i] @ down[i]
        norms = dense.detach().norm(dim=1)
        dense = (layer.lora_magnitude["default"][i] / norms)[:, None] * dense
        e = dense @ x - base.weight @ x
        u = e - sum((e @ v / (v @ v) * v for v in outputs), torch.zeros_like(e))
        outputs.append(u)
    gates = torch.softmax(layer.lora_router["default"] @ x, 0)
    return base(x) + sum(g * u for g, u in zip(gates, outputs, strict=True))


@pytest.mark.parametrize("experts", [2, 4])
def test_a_layer_computes_the_equations_of_each_token_with_their_gradients(experts):
    model = moved(nn.Sequential(nn.Linear(6, 5)), omoe(target_modules=["0"], experts=experts))
    layer = model.base_model.model[0]
    parameters = [p for n, p in layer.named_parameters() if "lora" in n]
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    slow = torch.stack([by_hand(layer, token) for token in x.flatten(0, 1)])
    assert_same_gradients(layer(x), slow.unflatten(0, (2, 3)), [x, *parameters], more_than=0)


@pytest.mark.fp64(False)
def test_half_precision_outputs_are_made_orthogonal_in_fp32():
    branches = torch.randn(3, 1, 64) + 0.01 * torch.randn(3, 2, 64)  # nearly parallel
    first, second = orthogonalise(branches.bfloat16()).unbind(1)

    assert first.dtype == torch.float32
    cosine = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    assert cosine.abs().max() < 1e-3


def test_experts_that_say_nothing_give_zeros_and_finite_gradients():
    branches = torch.zeros(1, 3, 8, requires_grad=True)
    vectors = orthogonalise(branches)
    (gradient,) = torch.autograd.grad(vectors.sum(), branches)
    assert torch.equal(vectors, torch.zeros(1, 3, 8))
    assert gradient.isfinite().all()


def test_row_norms_are_those_of_the_dense_weights(monkeypatch):
    monkeypatch.setattr("lorada.tuners.omoe.ROWS", 4)  # several pieces
    weight, down = torch.randn(10, 6).double(), torch.randn(3, RANK, 6).double()
    up = torch.randn(3, 10, RANK).double()

    expected = (weight + 2.0 * up @ down).norm(dim=2)
    assert_close(row_norms(weight, down, up, 2.0), expected)


@pytest.mark.fp64(False)
def test_autocast_leaves_the_norms_in_fp32_and_the_start_the_base():
    inputs, base = batch("llama"), TINY["llama"]()
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(base, inputs)
        model = get_peft_model(base, omoe()).eval()
        assert torch.equal(logits(model, inputs), expected)
        weight, down, up = torch.randn(5, 6), torch.randn(2, 3, 6), torch.randn(2, 5, 3)
        norms = row_norms(weight, down, up, 2.0)
    expected = (weight + 2.0 * up @ down).norm(dim=2)
    # The squares are what is summed; what they are off by is off the norm as a share of twice it.
    squares = (weight.abs() + 2.0 * up.abs() @ down.abs()).square().sum(2)
    assert_close(norms, expected, terms=6 + 2 * 3 + 4, size=squares / expected)


def test_modules_that_cannot_hold_experts_are_refused():
    with pytest.raises(ValueError, match="no default target_modules for bert models: choose"):
        get_peft_model(TINY["bert"](), omoe())
    base = TINY["llama"]()
    base.model.layers[1].mlp.up_proj.weight = nn.Parameter(
        torch.zeros(INNER, HIDDEN, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(
        ValueError, match=r"quantised, which OMoE on model.layers.1.mlp.up_proj does"
    ):
        get_peft_model(base, omoe())
    assert not any("lora" in name for name, _ in base.named_parameters())
