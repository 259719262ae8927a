"""What every tuner in ``TUNERS`` promises, alone and as a part of a stack, on a tiny LLaMA."""

import copy
import json
from dataclasses import fields

import pytest
import torch
from conftest import TINY, assert_close
from method_cases import SMALL, SMALL_FORMS
from peft import PeftModel, get_peft_model
from stacks import batch, lmam, logits, lora, randomise

import lorada
from lorada import LoradaConfig
from lorada.tuners import TUNERS

pytestmark = pytest.mark.fp64

# The part of a map is tried in each of its forms.
FORMS = {f"lmam_{form}": settings | {"form": form} for form, settings in SMALL_FORMS.items()}
every_tuner = pytest.mark.parametrize("part", [*TUNERS, *FORMS])
alone_and_stacked = pytest.mark.parametrize("stacked", [False, True], ids=["alone", "in a stack"])


def config_of(part, stacked=False):
    """A small config of a tuner, beside LoRA on matrices that it may be on and beside a map."""
    tuner = "lmam" if part in FORMS else part
    config = getattr(lorada, TUNERS[tuner][0])(**FORMS.get(part, SMALL.get(part, {})))
    if not stacked:
        return config
    beside = [lora("llama"), *([] if tuner == "lmam" else [lmam()])]
    return LoradaConfig(parts=[*beside[:1], config, *beside[1:]])


def adapted(part, stacked=False, moved=True):
    model = get_peft_model(TINY["llama"](), config_of(part, stacked)).eval()
    if moved:
        randomise(model)
    return model


@every_tuner
@alone_and_stacked
def test_a_new_adapter_leaves_the_outputs_alone_if_its_config_says_so(part, stacked):
    model, inputs = adapted(part, stacked, moved=False), batch("llama")
    change = logits(model, inputs) - logits(TINY["llama"](), inputs)
    if model.peft_config["default"].starts_as_base:
        assert_close(change, torch.zeros_like(change))
    else:
        assert change.abs().max() > 1e-4


@every_tuner
@alone_and_stacked
def test_a_saved_adapter_comes_back_under_its_name(part, stacked, tmp_path):
    model, inputs = adapted(part, stacked), batch("llama")
    plain, changed = logits(TINY["llama"](), inputs), logits(model, inputs)
    assert (changed - plain).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == ("LORADA" if stacked else config_of(part).peft_type)
    assert saved.keys() == {field.name for field in fields(model.peft_config["default"])}
    loaded = PeftModel.from_pretrained(TINY["llama"](), str(tmp_path)).eval()
    assert_close(logits(loaded, inputs), changed)
    assert_close(logits(copy.deepcopy(loaded), inputs), changed)


@every_tuner
@alone_and_stacked
def test_the_base_is_what_it_was_with_the_adapter_off_or_gone(part, stacked):
    model, inputs = adapted(part, stacked), batch("llama")
    plain = TINY["llama"]()
    expected, names = logits(plain, inputs), [name for name, _ in plain.named_modules()]
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)
    base = model.unload()
    assert torch.equal(logits(base, inputs), expected)
    assert [name for name, _ in base.named_modules()] == names


@every_tuner
@alone_and_stacked
def test_each_sample_of_a_mixed_batch_has_its_own_adapter(part, stacked):
    model, inputs = adapted(part, stacked), batch("llama")
    model.add_adapter("other", config_of(part, stacked))
    randomise(model.eval(), "other")
    rows = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        rows[name] = logits(model, inputs)
    with model.disable_adapter():
        rows["__base__"] = logits(model, inputs)
    names = ["other", "__base__", "default"]
    mixed = logits(model, inputs, adapter_names=names)
    assert_close(mixed, torch.stack([rows[name][i] for i, name in enumerate(names)]))
    assert (rows["default"] - rows["other"]).abs().max() > 1e-3


@every_tuner
def test_several_adapters_merge_to_their_sum_and_back_or_it_is_refused(part):
    model, inputs = adapted(part), batch("llama")
    if not model.peft_config["default"].mergeable:
        with pytest.raises(ValueError, match=r"^\w+ parts cannot be merged into the weights: .*$"):
            model.merge_adapter()
        return
    model.add_adapter("other", config_of(part))
    randomise(model.eval(), "other")
    model.base_model.set_adapter(["default", "other"])
    expected = logits(model, inputs)
    model.merge_adapter()
    assert_close(logits(model, inputs), expected)
    model.unmerge_adapter()
    assert_close(logits(model, inputs), expected)
    assert_close(logits(model.unload(), inputs), logits(TINY["llama"](), inputs))


@pytest.mark.fp64(False)
@every_tuner
@pytest.mark.parametrize("autocast", [True, False])
def test_weights_are_in_float32_or_where_that_is_asked_in_the_dtype_of_the_base(part, autocast):
    base = TINY["llama"]().to(torch.bfloat16)
    model = get_peft_model(base, config_of(part), autocast_adapter_dtype=autocast)
    dtypes = {weight.dtype for name, weight in model.state_dict().items() if ".lora_" in name}
    assert dtypes == {torch.float32 if autocast else torch.bfloat16}
    assert torch.isfinite(logits(model, batch("llama"))).all()


@every_tuner
def test_a_target_that_the_model_lacks_is_one_line_with_what_it_has(part):
    config = config_of(part)
    config.target_modules = ["nowhere"]
    with pytest.raises(
        ValueError, match=r"^target_modules=\['nowhere'\] matched no module; this mo"
    ):
        get_peft_model(TINY["llama"](), config)
