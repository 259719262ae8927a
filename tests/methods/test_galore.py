"""GaLoreAdamW against the equations written out, and where it must be AdamW."""

import copy

import pytest
import torch
from conftest import TINY, assert_close
from transformers import TrainingArguments

from lorada.methods.galore import GaLoreAdamW, galore

pytestmark = pytest.mark.fp64


def gradients(shape, count, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(count)]


def train(optimizer, parameter, grads):
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach()


def galore_reference(weight, grads, rank, refresh, scale, lr, betas, eps, decay):
    """The equations, one line each, with a whole SVD at every refresh."""
    m, n = weight.shape
    first = second = 0
    for done, grad in enumerate(grads):
        if done % refresh == 0:
            u, _, vt = torch.linalg.svd(grad, full_matrices=True)
            left = torch.eye(m, dtype=grad.dtype) if m >= n else u[:, :rank].T
            right = vt[:rank].T if m >= n else torch.eye(n, dtype=grad.dtype)
        small = left @ grad @ right
        first = betas[0] * first + (1 - betas[0]) * small
        second = betas[1] * second + (1 - betas[1]) * small**2
        unbiased = first / (1 - betas[0] ** (done + 1))
        spread = second / (1 - betas[1] ** (done + 1))
        direction = unbiased / (spread.sqrt() + eps)
        weight = weight - lr * scale * left.T @ direction @ right.T
        weight = weight - lr * decay * weight
    return weight


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("rank", [1, 3, 99], ids="rank{}".format)
def test_updates_are_those_of_the_equations(shape, rank):
    start = gradients(shape, 1, seed=9)[0]
    grads = gradients(shape, 7)
    settings = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}
    expected = galore_reference(start, grads, rank, 3, 0.7, *settings.values(), decay=0.02)
    parameter = torch.nn.Parameter(start.clone())
    group = {"params": [parameter], "rank": rank, "refresh": 3, "scale": 0.7}
    optimizer = GaLoreAdamW([group], **settings, weight_decay=0.02)
    assert_close(train(optimizer, parameter, grads), expected)


def test_groups_without_a_rank_are_plain_adamw():
    (start,), grads = gradients((3, 4, 2), 1, seed=9), gradients((3, 4, 2), 6)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    expected = train(torch.optim.AdamW([theirs], **settings), theirs, grads)
    assert_close(train(GaLoreAdamW([ours], **settings), ours, grads), expected)


@pytest.mark.fp64(False)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_saved_optimizer_goes_on_bit_for_bit(dtype):
    start, *grads = gradients((7, 5), 8, dtype)
    whole = torch.nn.Parameter(start.clone())
    optimizer = GaLoreAdamW([{"params": [whole], "rank": 2, "refresh": 3}])
    train(optimizer, whole, grads[:4])
    part = torch.nn.Parameter(whole.detach().clone())
    resumed = GaLoreAdamW([{"params": [part], "rank": 2, "refresh": 3}])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(train(resumed, part, grads[4:]), train(optimizer, whole, grads[4:]))


def test_matrices_of_layers_are_projected_and_nothing_else(tmp_path):
    model = TINY["llama"]()
    args = TrainingArguments(str(tmp_path), learning_rate=3e-4, weight_decay=0.1, adam_beta2=0.95)
    optimizer = galore(model, args)
    found = {
        id(p): (group["rank"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        matrix = name.startswith("model.layers.") and "norm" not in name
        decays = "norm" not in name
        assert found.pop(id(parameter)) == (256 if matrix else None, 0.1 if decays else 0.0), name
    assert not found
    assert {group["lr"] for group in optimizer.param_groups} == {3e-4}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
