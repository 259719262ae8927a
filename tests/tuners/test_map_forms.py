"""The settings of a map's form: what is refused, and which parameters each form has."""

import pytest
import torch
from conftest import TINY, assert_close
from peft import get_peft_model, get_peft_model_state_dict
from stacks import batch, logits, lora, randomise

from lorada import LmamConfig, LoradaConfig
from lorada.tuners.lmam import LmamLayer

pytestmark = pytest.mark.fp64

HEADS, D = 4, 8  # of the tiny models


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "random"}, r"form='random' is not one of 'position', 'distance', 'content', '"),
        ({"form": "distance", "taps": 4}, "taps=4 must be odd: use 5"),
        ({"form": "distance", "taps": 0}, "taps=0 must be a whole number above 0"),
        ({"taps": 5}, "taps=5 has no meaning for form='position': leave it out, or use form='dis"),
        ({"form": "content", "taps": 5}, "taps=5 has no meaning for form='content'"),
        ({"form": "content", "rank": 3}, "rank=3 has .*, or use form='position' or form='bilin"),
        ({"form": "distance", "rank": 3}, "rank=3 has no meaning for form='distance'"),
        ({"form": "distance", "length": 64}, "length=64 has no meaning for form='distance'"),
        ({"form": "bilinear", "align": "end"}, "align='end' has no meaning for form='bilinear'"),
        ({"form": "content", "positions": "raw"}, "positions='raw' has no meaning for form='con"),
        ({"form": "content", "init": "normal"}, "init='normal' has no meaning for form='content'"),
        ({"form": "bilinear", "ablation": "softmax"}, "ablation='softmax' has no meaning for form"),
    ],
)
def test_a_setting_that_the_form_does_not_have_is_one_line(options, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        LmamConfig(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({"form": "distance", "heads": 2, "taps": 5}, {"lora_taps": (2, 5)}),
        ({"form": "distance"}, {"lora_taps": (HEADS, 17)}),
        (
            {"form": "content"},
            {"lora_key_vector": (HEADS, D), "lora_constant": (HEADS,)},
        ),
        (
            {"form": "bilinear", "heads": 2, "rank": 3},
            {"lora_query_factor": (2, D, 3), "lora_key_factor": (2, 3, D)},
        ),
        ({"length": 6}, {"lora_w_a": (HEADS, 6, 2), "lora_w_b": (HEADS, 2, 6)}),
    ],
    ids=str,
)
def test_a_form_has_these_parameters_and_no_others(options, shapes):
    model = get_peft_model(TINY["llama"](), LmamConfig(**options))
    saved = get_peft_model_state_dict(model)
    assert len(saved) == 2 * len(shapes)  # two layers
    for name, shape in shapes.items():
        own = [weight for key, weight in saved.items() if key.endswith(f".lmam.{name}")]
        assert [weight.shape for weight in own] == [shape] * 2


def test_heads_that_do_not_divide_the_attention_heads_are_an_error():
    with pytest.raises(ValueError, match="heads=3 does not divide the 4 attention heads"):
        get_peft_model(TINY["llama"](), LmamConfig(form="content", heads=3))


@pytest.mark.parametrize("form", ["distance", "content", "bilinear"])
def test_the_other_parts_of_a_stack_merge_and_the_map_stays(form):
    config = LoradaConfig(parts=[lora("llama"), LmamConfig(form=form)])
    model, given = get_peft_model(TINY["llama"](), config).eval(), batch("llama")
    randomise(model)
    expected = logits(model, given)
    with pytest.raises(ValueError, match="cannot be merged into the weights"):
        model.merge_and_unload()
    model.base_model.merge_weights()
    assert_close(logits(model, given), expected)


@pytest.mark.parametrize("form", ["distance", "content", "bilinear"])
def test_a_factor_on_the_term_scales_it(form):
    config = LmamConfig(form=form, init_weights=False)
    model, given = get_peft_model(TINY["llama"](), config).eval(), batch("llama")
    layers = [m for m in model.modules() if isinstance(m, LmamLayer)]
    for layer in layers:
        layer.scaling["default"] = 0.5
    halved = logits(model, given)
    with torch.no_grad():
        for layer in layers:
            layer.scaling.clear()
            name = {"distance": "lora_taps", "bilinear": "lora_key_factor"}.get(form)
            own = [name] if name else ["lora_key_vector", "lora_constant"]
            for each in own:
                getattr(layer, each)["default"].mul_(0.5)
    assert_close(logits(model, given), halved)


def test_maps_of_two_forms_serve_the_samples_of_one_batch():
    model, given = get_peft_model(TINY["llama"](), LmamConfig(length=6)).eval(), batch("llama")
    for form in ("distance", "bilinear"):
        model.add_adapter(form, LmamConfig(form=form))
    rows = {}
    for name in ("default", "distance", "bilinear"):
        randomise(model, name)
        model.set_adapter(name)
        rows[name] = logits(model, given)
    names = ["bilinear", "distance", "default"]
    mixed = logits(model, given, adapter_names=names)
    assert_close(mixed, torch.stack([rows[name][i] for i, name in enumerate(names)]))
