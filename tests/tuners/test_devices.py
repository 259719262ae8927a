"""Bases whose weights are not all in one place: split modules, weights that are offloaded."""

import accelerate
import pytest
import torch
from conftest import TINY, assert_all_close, assert_close, gradients
from folders import refused
from peft import PeftModel, get_peft_model
from stacks import bottleneck, lmam, logits, moved, training_stack

from lorada import LoradaConfig


def batch():
    return {"input_ids": torch.randint(5, 90, (3, 24))}


@pytest.mark.parametrize("whole", [True, False], ids=["a base on meta", "one of its layers"])
def test_every_layer_holds_its_parts_where_it_is_itself(whole):
    model = TINY["llama"]()
    (model if whole else model.model.layers[1]).to("meta")
    stack = get_peft_model(model, training_stack(init_weights=True))
    for name, parameter in stack.named_parameters():
        if "lmam" in name or "bneck" in name:
            there = whole or ".layers.1." in name
            assert parameter.device.type == ("meta" if there else "cpu"), name


@pytest.fixture
def saved(tmp_path):
    """An adapter of attached parts, and its model."""
    parts = [lmam(length=16, init_weights=False), bottleneck(layer_norm=True)]
    model = moved(TINY["llama"](), LoradaConfig(parts=parts))
    model.save_pretrained(tmp_path)
    return model.eval(), str(tmp_path)


def offloaded(model):
    accelerate.cpu_offload(model, execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


@pytest.mark.fp64
@pytest.mark.parametrize("low_memory", [False, True])
def test_attached_parts_on_an_offloaded_base_give_the_same_numbers_and_gradients(low_memory, saved):
    model, folder = saved
    options = {"is_trainable": True, "low_cpu_mem_usage": low_memory}
    loaded = PeftModel.from_pretrained(offloaded(TINY["llama"]()), folder, **options).eval()
    inputs = batch()
    assert_close(logits(loaded, inputs), logits(model, inputs))
    for each in (model, loaded):
        each(**inputs, labels=inputs["input_ids"]).loss.backward()
    wanted = gradients(model)
    assert len(wanted) == 2 * 8
    assert_all_close(gradients(loaded), wanted)


@pytest.mark.fp64
@pytest.mark.parametrize("baked", [False, True])
def test_a_stack_that_is_offloaded_with_its_base_gives_the_same_numbers(baked):
    model = moved(TINY["llama"](), training_stack())
    inputs = batch()
    expected = logits(model, inputs)
    offloaded(model)
    if baked:
        model.base_model.bake()
    assert_close(logits(model, inputs), expected)


def test_a_part_that_wraps_refuses_an_offloaded_base():
    base = offloaded(TINY["llama"]())
    names = [name for name, _ in base.named_modules()]
    refused(
        r"^model.embed_tokens is offloaded, where PEFT leaves Lora weights without values: add",
        lambda: get_peft_model(base, training_stack()),
    )
    assert [name for name, _ in base.named_modules()] == names
