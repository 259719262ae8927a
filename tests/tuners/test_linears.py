"""The list of a model's linear layers: the same whatever adapters are on them or beside them."""

import pytest
from architectures import ARCHITECTURES
from conftest import TINY
from peft import IA3Config, get_peft_model
from stacks import bottleneck, lmam, lora

from lorada import LoradaConfig, OmoeConfig, PrefixConfig
from lorada.tuners.base.linears import (
    layer_linear_names,
    linear_names,
    linear_of,
    linears,
    widths,
    wrappers,
)

OF_A_LAYER = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
]  # fmt: skip
STACK = [
    lora("llama"),
    IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    OmoeConfig(rank=2),
    lmam(),
    bottleneck(),
    PrefixConfig(length=3, projection=4),
]


def test_names_are_those_of_a_layer_once_and_then_the_others():
    model = TINY["llama"]()
    assert layer_linear_names(model) == OF_A_LAYER
    assert linear_names(model) == [*OF_A_LAYER, "lm_head"]


def test_adapters_around_and_beside_linears_change_nothing():
    model = TINY["llama"]()
    plain = {name: id(linear) for name, linear in linears(model).items()}
    stacked = get_peft_model(model, LoradaConfig(parts=STACK)).get_base_model()
    assert {name: id(linear) for name, linear in linears(stacked).items()} == plain
    query = stacked.model.layers[0].self_attn.q_proj
    assert id(linear_of(query)) == plain["model.layers.0.self_attn.q_proj"]
    chain = wrappers(stacked)["model.layers.0.self_attn.q_proj"]
    assert [type(layer).__module__.split(".")[2] for layer in chain] == ["ia3", "lora"]


@pytest.mark.parametrize(("name", "key"), [("llama", "mlp.up_proj"), ("gpt2", "mlp.c_fc")])
def test_widths_are_those_of_input_and_output_for_both_kinds_of_linear(name, key):
    model = ARCHITECTURES[name]()
    found = [linear for full, linear in linears(model).items() if full.endswith(key)]
    inner = 48 if name == "llama" else 4 * 32
    assert [widths(linear) for linear in found] == [(32, inner)] * 2


def test_what_is_no_linear_is_none():
    assert linear_of(TINY["llama"]().model.embed_tokens) is None
