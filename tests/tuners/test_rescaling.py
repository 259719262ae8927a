"""PEFT's ``rescale_adapter_scale`` scales a stack of LoRA, and refuses one that it would halve."""

import pytest
from conftest import TINY, assert_close
from folders import refused
from peft.helpers import rescale_adapter_scale
from stacks import QUERY, adalora, batch, ia3, lmam, logits, lora, moved, randomise

from lorada import LoradaConfig

pytestmark = pytest.mark.fp64


@pytest.mark.parametrize("further", [lmam, lambda: ia3("llama")], ids=["map", "ia3"])
def test_what_cannot_be_rescaled_whole_is_refused_and_stays(further):
    model = moved(TINY["llama"](), LoradaConfig(parts=[lora("llama"), further()]))
    inputs = batch("llama")
    expected, kind = logits(model, inputs), type(further()).__name__
    for asked in (model, model.base_model):
        refused(
            f"^rescale_adapter_scale scales LoRA alone and would leave {kind} as before: activate",
            lambda asked=asked: rescale_adapter_scale(asked, 0.5).__enter__(),
        )
        assert_close(logits(model, inputs), expected)


def test_a_stack_of_lora_is_rescaled_also_beside_a_map_that_is_not_active():
    parts = [lora("llama", QUERY), adalora("llama")]
    parts[1].target_modules = ["o_proj"]
    model = moved(TINY["llama"](), LoradaConfig(parts=parts))
    model.add_adapter("mapped", LoradaConfig(parts=[lmam()]))
    randomise(model.eval(), "mapped")
    inputs = batch("llama")
    base, expected = logits(TINY["llama"](), inputs), logits(model, inputs)
    with rescale_adapter_scale(model, 0.0):
        assert_close(logits(model, inputs), base)
    with rescale_adapter_scale(model, 0.5):
        assert (logits(model, inputs) - base).abs().max() > 1e-3
    assert_close(logits(model, inputs), expected)
