"""The settings of a map's form: what is refused, and which parameters each form has."""

import pytest
import torch
from conftest import TINY, assert_close
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from stacks import batch, logits, randomise

from lorada import LmamConfig
from lorada.tuners.lmam import LmamLayer

pytestmark = pytest.mark.fp64

HEADS = 4  # of the tiny models


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "random"}, "form='random' is not one of 'position', 'distance'"),
        ({"form": "distance", "taps": 4}, "taps=4 must be odd: use 5"),
        ({"form": "distance", "taps": 0}, "taps=0 must be a whole number above 0"),
        ({"taps": 5}, "taps=5 has no meaning for form='position': leave it out, or use form='dis"),
        ({"form": "distance", "rank": 3}, "rank=3 has no meaning for form='distance'"),
        ({"form": "distance", "length": 64}, "length=64 has no meaning for form='distance'"),
        ({"form": "distance", "align": "end"}, "align='end' has no meaning for form='distance'"),
        ({"form": "distance", "positions": "raw"}, "positions='raw' has no meaning for form='dis"),
        (
            {"form": "distance", "init": "normal"},
            "init='normal' has no meaning for form='distance'",
        ),
        ({"form": "distance", "ablation": "softmax"}, "ablation='softmax' has no meaning for form"),
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


@pytest.mark.parametrize("form", ["content", "bilinear"])
def test_a_saved_map_of_a_form_of_earlier_versions_is_refused_with_what_to_do(form, tmp_path):
    model = get_peft_model(TINY["llama"](), LmamConfig(form="distance"))
    model.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"distance"', f'"{form}"'))
    with pytest.raises(ValueError, match=f"^form='{form}' is gone: .* commit 356e9c1$") as error:
        PeftModel.from_pretrained(TINY["llama"](), tmp_path)
    assert "\n" not in str(error.value)


def test_a_factor_on_the_term_scales_it():
    config = LmamConfig(form="distance", init_weights=False)
    model, given = get_peft_model(TINY["llama"](), config).eval(), batch("llama")
    layers = [m for m in model.modules() if isinstance(m, LmamLayer)]
    for layer in layers:
        layer.scaling["default"] = 0.5
    halved = logits(model, given)
    with torch.no_grad():
        for layer in layers:
            layer.scaling.clear()
            layer.lora_taps["default"].mul_(0.5)
    assert_close(logits(model, given), halved)


def test_maps_of_two_forms_serve_the_samples_of_one_batch():
    model, given = get_peft_model(TINY["llama"](), LmamConfig(length=6)).eval(), batch("llama")
    model.add_adapter("distance", LmamConfig(form="distance"))
    rows = {}
    for name in ("default", "distance"):
        randomise(model, name)
        model.set_adapter(name)
        rows[name] = logits(model, given)
    names = ["default", "distance", "default"]
    mixed = logits(model, given, adapter_names=names)
    assert_close(mixed, torch.stack([rows[name][i] for i, name in enumerate(names)]))
