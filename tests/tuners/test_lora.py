"""LoRA of a linear layer as one function: the same as PEFT's layer, which does all other cases."""

from contextlib import contextmanager

import pytest
import torch
from conftest import TINY, assert_close
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from lorada import LoradaConfig
from lorada.tuners import lora
from lorada.tuners.lora import FEW, LoraLinear

pytestmark = pytest.mark.fp64
TOKENS = torch.arange(4 * FEW).view(4, FEW) % 90 + 3


def stack(**options):
    """A tiny LLaMA with LoRA in a stack, whose update is not zero."""
    targets = ["q_proj", "v_proj", "down_proj"]
    part = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": targets, **options})
    model = get_peft_model(TINY["llama"](), LoradaConfig(parts=[part]))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.3)
    return model


@contextmanager
def counted(monkeypatch):
    """Counts the calls of the one function."""
    calls, function = [], lora.lora_linear

    def call(*given):
        calls.append(given)
        return function(*given)

    with monkeypatch.context() as patch:
        patch.setattr(lora, "lora_linear", call)
        yield calls


@contextmanager
def as_peft_has_it(model):
    layers = [layer for layer in model.modules() if type(layer) is LoraLinear]
    assert layers
    for layer in layers:
        layer.__class__ = Linear
    yield
    for layer in layers:
        layer.__class__ = LoraLinear


def run(model):
    """Logits, and the gradients of what is trained."""
    torch.manual_seed(2)
    logits = model(input_ids=TOKENS).logits
    if not logits.requires_grad:  # of the base alone, or of one that LoRA is merged into
        return {"logits": logits}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(logits.square().mean(), trained.values(), allow_unused=True)
    return {"logits": logits, **dict(zip(trained, gradients, strict=True))}


def check_same(model, monkeypatch, one_function):
    """Compare with PEFT's layers; ``one_function``: how many of the six layers are one function."""
    with counted(monkeypatch) as calls:
        found = run(model)
    assert len(calls) == one_function
    with as_peft_has_it(model):
        expected = run(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] is None) == (value is None), name
        if value is not None:
            assert_close(found[name], value)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}])
def test_values_and_gradients_are_those_of_peft(options, training, monkeypatch):
    check_same(stack(**options).train(training), monkeypatch, 6)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_other_forms_of_lora_are_left_to_peft(options, monkeypatch):
    check_same(stack(**options), monkeypatch, 0)


def second_adapter(model):
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])


def merged(model):
    model.merge_adapter()


def trained_base(model):
    for name, weight in model.named_parameters():
        if "q_proj.base_layer" in name:
            weight.requires_grad_(True)


def watched(model):
    model.base_model.model.model.layers[0].mlp.down_proj.lora_A["default"].register_forward_hook(
        lambda *given: None
    )


@pytest.mark.parametrize(
    ("change", "one_function"),
    [(second_adapter, 0), (merged, 0), (trained_base, 4), (watched, 5)],
)
def test_what_the_function_cannot_do_is_left_to_peft(change, one_function, monkeypatch):
    model = stack()
    change(model)
    check_same(model, monkeypatch, one_function)


def test_without_the_adapter_it_is_the_base(monkeypatch):
    model = stack()
    with model.disable_adapter():
        check_same(model, monkeypatch, 0)
        assert_close(run(model)["logits"], TINY["llama"]()(input_ids=TOKENS).logits)


def test_under_autocast_it_is_left_to_peft(monkeypatch):
    model = stack()
    with counted(monkeypatch) as calls, torch.autocast("cpu", torch.bfloat16):
        model(input_ids=TOKENS)
    assert not calls


@pytest.mark.parametrize("tokens", [1, FEW, 4 * FEW])
def test_inference_gives_the_same_for_few_and_for_many_tokens(tokens):
    model = stack(lora_dropout=0.3).eval()
    given = TOKENS.view(1, -1)[:, :tokens]
    with torch.inference_mode():
        found = model(input_ids=given).logits
        with as_peft_has_it(model):
            expected = model(input_ids=given).logits
    assert_close(found, expected)
