"""transformers itself loads stacks: every weight in its place, or one line that only PEFT can."""

import pytest
import torch
from conftest import TINY, assert_close
from folders import refused
from peft.functional import set_adapter
from stacks import BESIDE, batch, config_of, ia3, lmam, logits, lora, moved, oft, trained
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from lorada import LoradaConfig, build_method
from lorada.methods.lookup import peft_names

pytestmark = pytest.mark.fp64
ONLY_PEFT = r"so only PEFT can load (it|this adapter): PeftModel.from_pretrained\(base_model"
# Parts with weights that are on no layer of the model, or are saved in another form.
LEFT_TO_PEFT = ("frod", "pvera", "randlora", "shira", "tinylora", "unilora", "vblora", "vera")


@pytest.fixture
def base(tmp_path):
    TINY["llama"]().save_pretrained(tmp_path / "base")
    return lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()


def assert_loads_by_transformers(model, base, folder, name="default"):
    """Into a loaded base, and by the name of the adapter's folder, without anything missing."""
    inputs = batch("llama")
    expected = logits(model, inputs)
    model.save_pretrained(folder)
    loaded = base()
    info = loaded.load_adapter(folder, name)
    # AdaLoRA counts its ranks and saves no count.
    assert not [key for key in info.missing_keys if ".ranknum." not in key]
    assert not info.unexpected_keys
    by_its_folder = AutoModelForCausalLM.from_pretrained(folder)
    for one in (loaded, by_its_folder):
        assert (logits(one.eval(), inputs) - expected).abs().max() < 1e-5
    return loaded


@pytest.mark.first
@pytest.mark.parametrize("stack", BESIDE)
def test_every_part_of_a_stack_is_loaded_whatever_its_weights_are_called(stack, base, tmp_path):
    model = moved(base(), config_of(stack, "llama"))
    assert_loads_by_transformers(model, base, tmp_path / "adapter", "another_name")


@pytest.mark.fp64(False)  # in which PSOFT does not start
@pytest.mark.parametrize("name", peft_names())
def test_a_tuner_of_peft_beside_a_map_is_loaded_or_left_to_peft(name, base, tmp_path):
    model = moved(base(), build_method(f"{name}+lmam", base().config).config)
    if name not in LEFT_TO_PEFT:
        assert_loads_by_transformers(model, base, tmp_path / "adapter")
        return
    model.save_pretrained(tmp_path / "adapter")
    loaded = base()
    inputs = batch("llama")
    plain = logits(loaded, inputs)
    refused(ONLY_PEFT, lambda: loaded.load_adapter(tmp_path / "adapter"))
    assert torch.equal(logits(loaded, inputs), plain)


def test_a_stack_is_loaded_beside_one_with_other_parts_around_the_same_matrix(base, tmp_path):
    found, inputs = [], batch("llama")
    for name, parts in {
        "one": [lora("llama", 0), ia3("llama", 0)],
        "two": [lora("llama", 0)],
    }.items():
        model = moved(base(), LoradaConfig(parts=[*parts, lmam()]))
        model.save_pretrained(tmp_path / name)
        found.append(logits(model, inputs))
    for order in (("one", "two"), ("two", "one")):
        loaded = base()
        for name in order:
            loaded.load_adapter(tmp_path / name, name)
        for name, expected in zip(("one", "two"), found, strict=True):
            set_adapter(loaded, name)  # transformers' own asks for a newer PEFT
            assert_close(logits(loaded.eval(), inputs), expected)


def test_a_trained_head_is_loaded_once(tmp_path):
    def classifier():
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").eval()

    config = TINY["llama"]().config
    settings = {**config.to_dict(), "num_labels": 3, "pad_token_id": 0}
    LlamaForSequenceClassification(LlamaConfig(**settings)).save_pretrained(tmp_path / "base")
    parts = [oft("llama"), lora("llama", 0), lmam()]
    model = moved(classifier(), LoradaConfig(parts=parts, task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter")
    loaded = classifier()
    loaded.load_adapter(tmp_path / "adapter")
    inputs = batch("llama")
    assert_close(logits(loaded.eval(), inputs), logits(model, inputs))


def test_ranks_that_adalora_has_pruned_are_left_to_peft(base, tmp_path):
    model = trained("adalora", "llama")
    layers = [n for n, m in model.base_model.model.named_modules() if hasattr(m, "ranknum")]
    pattern = {f"{name}.lora_E.default": [True, False, True, False] for name in layers}
    part = next(p for p in model.peft_config["default"].parts if p.peft_type == "ADALORA")
    part.rank_pattern = pattern
    model.base_model.resize_modules_by_rank_pattern(pattern, "default")
    model.save_pretrained(tmp_path / "adapter")
    refused(ONLY_PEFT, lambda: base().load_adapter(tmp_path / "adapter"))


def test_a_stack_of_a_larger_model_is_refused(base, tmp_path):
    wide = TINY["llama"](num_hidden_layers=3)
    moved(wide, LoradaConfig(parts=[lora("llama"), ia3("llama"), lmam()])).save_pretrained(
        tmp_path / "a"
    )
    loaded = base()
    refused(
        "no place for base_model.model.model.layers.2", lambda: loaded.load_adapter(tmp_path / "a")
    )
