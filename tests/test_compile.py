"""torch.compile and torch.export of a stack: one graph, values and gradients of the eager model."""

import contextlib

import jaxtyping
import pytest
import torch
from conftest import TINY, assert_close
from peft import get_peft_model
from stacks import randomise, training_stack

LENGTH = 16  # of the map of the training stack
# One bucket: batches padded to multiples of 8, of any number of rows. Below, at and above LENGTH.
SHAPES = [(3, 8), (2, 16), (4, 24), (5, 40)]


def stack():
    model = get_peft_model(TINY["llama"](), training_stack())
    randomise(model)
    return model


def batch(rows, tokens, padding):
    ids = torch.randint(5, 90, (rows, tokens))
    inputs = {"input_ids": ids}
    if padding is not None:
        mask = torch.ones(rows, tokens, dtype=torch.long)
        for row in range(rows - 1):  # each row but the last by another amount
            pads = slice(0, row + 2) if padding == "left" else slice(tokens - row - 2, None)
            mask[row, pads] = 0
        inputs["attention_mask"] = mask
    return inputs


def forward(model, inputs):
    return model(**inputs).logits


def step(model, inputs):
    """A training step: the loss, then the gradient of every parameter that trains."""
    labels = inputs["input_ids"]
    if "attention_mask" in inputs:
        labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    return model(**inputs, labels=labels).loss


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@contextlib.contextmanager
def one_graph():
    """Any graph break is an error by fullgraph=True, and so is any recompilation in here."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@pytest.fixture(autouse=True)
def _fresh():
    """No graph of another test, and no shape checks, which are for tests and cannot be traced."""
    torch._dynamo.reset()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("padding", [None, "right", "left"])
def test_forward_is_one_graph_for_all_shapes_of_a_bucket(padding):
    model = stack().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad(), one_graph():
        for rows, tokens in SHAPES:
            inputs = batch(rows, tokens, padding)
            assert_close(forward(compiled, inputs), forward(model, inputs))


@pytest.mark.parametrize("padding", [None, "right", "left"])
def test_a_training_step_is_one_graph_for_all_shapes_of_a_bucket(padding):
    model = stack().train()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows, tokens in SHAPES:
        inputs = batch(rows, tokens, padding)
        with one_graph():
            actual = step(compiled, inputs)
            model.zero_grad()
            actual.backward()
        found = gradients(model)
        expected = step(model, inputs)
        assert_close(actual, expected)
        model.zero_grad()
        expected.backward()
        wanted = gradients(model)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert_close(found[name], gradient)
