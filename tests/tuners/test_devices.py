"""Bases whose weights are not all in one place: split modules, weights that are offloaded."""

import accelerate
import pytest
from conftest import TINY
from folders import refused
from peft import get_peft_model
from stacks import lmam, training_stack


@pytest.mark.parametrize("whole", [True, False], ids=["a base on meta", "one of its layers"])
def test_every_layer_holds_its_parts_where_it_is_itself(whole):
    model = TINY["llama"]()
    (model if whole else model.model.layers[1]).to("meta")
    stack = get_peft_model(model, training_stack(init_weights=True))
    for name, parameter in stack.named_parameters():
        if "lmam" in name or "bneck" in name:
            there = whole or ".layers.1." in name
            assert parameter.device.type == ("meta" if there else "cpu"), name


@pytest.mark.parametrize("config", [training_stack, lmam])
def test_an_offloaded_base_is_refused(config):
    base = TINY["llama"]()
    accelerate.cpu_offload(base, execution_device="cpu")
    names = [name for name, _ in base.named_modules()]
    refused(
        "^model.embed_tokens is offloaded to the CPU or to disk, where adapters of lorada do not",
        lambda: get_peft_model(base, config()),
    )
    assert [name for name, _ in base.named_modules()] == names
