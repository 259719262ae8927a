"""``activation_checkpointing=selective``: gradients, and what is computed again."""

import pytest
import torch
from architectures import ARCHITECTURES, inputs
from conftest import assert_close
from method_cases import defined, labelled, placed
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lorada import METHODS
from lorada.runs.training import selective
from lorada.runs.training.selective import checkpoint_selectively

pytestmark = pytest.mark.fp64

ON_LLAMA = [name for name in METHODS if defined(name, "llama")]


@pytest.fixture(autouse=True)
def _every_product_is_kept(monkeypatch):
    """The products of tiny models are narrow."""
    monkeypatch.setattr(selective, "LEAST", 0)


def gradients(model, batch):
    torch.manual_seed(0)  # of dropout
    model.zero_grad()
    model(**batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def compare(model, batch):
    expected = gradients(model.train(), batch)
    checkpoint_selectively(model)
    found = gradients(model, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient)


@pytest.mark.parametrize("name", ON_LLAMA)
def test_gradients_of_every_method_are_the_same(name):
    compare(placed(name, "llama", inputs("llama"))[0], labelled("llama"))


@pytest.mark.parametrize("model", [
    name for name in ARCHITECTURES if "input_ids" in inputs(name) and defined("lorada_la", name)
])  # fmt: skip
def test_gradients_on_every_architecture_are_the_same(model):
    adapted = placed("lorada_la", model, inputs(model))[0]
    if not adapted.get_base_model().supports_gradient_checkpointing:
        pytest.skip(f"transformers has no checkpointing of {model}")
    compare(adapted, labelled(model))


def test_no_large_product_is_computed_twice():
    def operations(change):
        model = placed("lora", "llama", inputs("llama"))[0].train()
        change(model)
        with FlopCounterMode(display=False) as counter:
            gradients(model, labelled("llama"))
        return counter.get_flop_counts()["Global"][torch.ops.aten.mm]

    full = operations(lambda model: model.activation_checkpointing_enable({"use_reentrant": False}))
    # As transformers does it for checkpointing: the first layer's input has a gradient.
    plain = operations(lambda model: model.enable_input_require_grads())
    chosen = operations(checkpoint_selectively)
    assert plain == chosen < full


@pytest.mark.parametrize("retained", [False, True])
def test_an_output_that_is_overwritten_is_computed_again(retained):
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

    def layer(x):
        product = second(first(x).mul_(2))
        return product.add_(1).sin()

    def run(call):
        x = torch.ones(3, 4, requires_grad=True)
        total = call(x).sum()
        if retained:
            torch.autograd.grad(total, x, retain_graph=True)
        return torch.autograd.grad(total, [x, *first.parameters(), second.weight])

    def again(x):
        return checkpoint(layer, x, use_reentrant=False, context_fn=selective._contexts)

    for found, expected in zip(run(again), run(layer), strict=True):
        assert_close(found, expected)
