"""Plain adapters of PEFT beside stacks on one model."""

import pytest
import torch
from conftest import assert_close
from folders import llama_folder, refused
from peft import IA3Config, PeftModel, get_peft_model
from peft.peft_model import PeftModelForSequenceClassification
from stacks import batch, config_of, lmam, logits, lora, moved
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import lorada

pytestmark = pytest.mark.fp64


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, plain adapters of PEFT and a stack saved for it, and the logits with each."""
    place = tmp_path_factory.mktemp("beside")
    llama_folder(place / "llama", attention_dropout=0.0, initializer_range=0.2)
    torch.manual_seed(0)
    configs = {
        "lora": lora("llama", task_type="CAUSAL_LM"),
        "dora": lora("llama", use_dora=True, task_type="CAUSAL_LM"),
        "ia3": IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
        "stack": config_of("lora", "llama", task_type="CAUSAL_LM"),
    }
    for name, config in configs.items():
        moved(base_of(place), config).save_pretrained(place / name)
    return place


def base_of(place):
    return AutoModelForCausalLM.from_pretrained(place / "llama").to(torch.get_default_dtype())


def alone(place, name):
    """The logits with one adapter, loaded by PEFT alone."""
    return logits(PeftModel.from_pretrained(base_of(place), place / name).eval(), inputs())


def inputs():
    torch.manual_seed(1)
    return batch("llama")


@pytest.mark.parametrize("stack_first", [True, False])
@pytest.mark.parametrize("name", ["lora", "dora", "ia3"])
def test_a_stack_and_a_plain_adapter_read_as_one_share_a_model(place, name, stack_first):
    first, second = ("stack", name) if stack_first else (name, "stack")
    config = None if stack_first else lorada.as_stack(place / name)
    model = PeftModel.from_pretrained(base_of(place), place / first, config=config).eval()
    model.load_adapter(place / second, "second")
    assert_close(logits(model, inputs()), alone(place, first))
    model.set_adapter("second")
    assert_close(logits(model, inputs()), alone(place, second))
    assert model.get_model_status().peft_types == {"default": "LORADA", "second": "LORADA"}


def test_a_classifier_s_head_is_that_of_its_plain_adapter(place, tmp_path):
    def base():
        torch.manual_seed(2)
        found = AutoModelForSequenceClassification.from_pretrained(place / "llama", num_labels=2)
        found.config.pad_token_id = 0
        return found.to(torch.get_default_dtype())

    plain = moved(base(), lora("llama", task_type="SEQ_CLS"))
    plain.save_pretrained(tmp_path)
    stack = lorada.LoradaConfig(parts=[lmam()], task_type="SEQ_CLS")
    model = get_peft_model(base(), stack).eval()
    assert isinstance(model, PeftModelForSequenceClassification)
    model.load_adapter(tmp_path, "plain")
    model.set_adapter("plain")
    expected = logits(plain.eval(), inputs())
    assert_close(logits(model, inputs()), expected)
    read = PeftModel.from_pretrained(base(), tmp_path, config=lorada.as_stack(tmp_path)).eval()
    assert_close(logits(read, inputs()), expected)


def test_a_stack_beside_a_plain_adapter_is_refused_with_what_to_do(place):
    model = PeftModel.from_pretrained(base_of(place), place / "lora")
    said = r"LORADA cannot stand beside .* LORA: .*as_stack"
    refused(said, lambda: model.load_adapter(place / "stack", "stack"))
    assert list(model.peft_config) == ["default"]
    with pytest.raises(ValueError, match="Cannot combine adapters"):  # PEFT's own business
        model.add_adapter("other", IA3Config(target_modules=["v_proj"], feedforward_modules=[]))


def test_adapters_are_not_weighted_but_several_are_active_at_once(place):
    model = PeftModel.from_pretrained(base_of(place), place / "lora")
    model.load_adapter(place / "lora", "two")
    model.base_model.set_adapter(["default", "two"])
    expected = logits(model.eval(), inputs())

    config = lorada.as_stack(place / "lora")
    model = PeftModel.from_pretrained(base_of(place), place / "lora", config=config)
    model.load_adapter(place / "lora", "two")
    names, message = ["default", "two"], r"which a stack cannot: .*set_adapter\(\['one'"
    refused(message, lambda: model.add_weighted_adapter(names, [0.5, 0.5], "both"))
    model.base_model.set_adapter(names)
    assert_close(logits(model.eval(), inputs()), expected)
