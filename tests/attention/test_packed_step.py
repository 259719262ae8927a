"""All layers of a forward share what is known about its step, and no later forward reads it."""

import pytest
import torch
from conftest import assert_close
from exact_cells import NEW, PROMPTS, adapted, alone, batched_continuously, plain_run

from lorada.attention import attend, packed_step
from lorada.attention.forward_inputs import NOTHING_KNOWN

pytestmark = pytest.mark.fp64


@pytest.fixture
def made(monkeypatch):
    """Each step that was made, and None where there is none to make."""
    found, own = [], packed_step.packed_step

    def noted(*args):
        found.append(own(*args))
        return found[-1]

    monkeypatch.setattr(packed_step, "packed_step", noted)
    return found


@pytest.fixture
def asked(monkeypatch):
    """What each layer was given, and what of its forward it was kept with."""
    found, own = [], attend.known_step

    def noted(call, attention_map):
        step = own(call, attention_map)
        found.append((call.inputs.steps, step))
        return step

    monkeypatch.setattr(attend, "known_step", noted)
    return found


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_layers_share_a_step_which_ends_with_the_forward(name, made, asked):
    model = adapted(name, "map")
    samples, _ = plain_run(name, "map")
    made.clear()
    asked.clear()
    batched_continuously(model, samples)
    forwards = {id(steps): steps for steps, _ in asked}
    layers = model.config.num_hidden_layers
    assert layers == 2
    assert len(asked) == layers * len(forwards)
    # A forward with one sequence makes none, which is known for its second layer too.
    assert len(made) == len(forwards) == sum(len(steps) for steps in forwards.values())
    assert sum(step is not None for step in made) > 3
    for steps, step in asked:
        assert [kept for _, kept in steps.values()] == [step]
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.lmam")
    assert layer.forward_inputs is NOTHING_KNOWN
    assert NOTHING_KNOWN.steps is None


def test_maps_of_two_lengths_have_a_step_each(asked):
    model = adapted("llama", "map", length=9)
    model.add_adapter("shorter", adapted("llama", "map").peft_config["default"])
    model.base_model.set_adapter(["default", "shorter"])
    samples = []
    for sample in PROMPTS:
        for _ in range(NEW):
            sample = torch.cat([sample, alone(model, sample)[-1:].argmax(-1)])
        samples.append(sample)
    plain = [alone(model, sample)[-NEW - 1 : -1].log_softmax(-1).amax(-1) for sample in samples]
    asked.clear()
    found = batched_continuously(model, samples)
    assert {len(steps) for steps, _ in asked} == {2}
    for logs, expected in zip(found, plain, strict=True):
        # Computed in fp64 and handed out in fp32.
        assert_close(logs, expected, terms=1, size=expected.abs(), dtype=torch.float32)
