"""Two adapters on one model: each has its own head and biases, whatever is done to the other."""

import pytest
import torch
from conftest import TINY, _build, assert_close
from folders import refused
from peft import LNTuningConfig, LoraConfig, PeftModel, get_peft_model
from stacks import FFN, QUERY, batch, ia3, lmam, logits, lora, moved, randomise
from transformers import BertConfig, BertForSequenceClassification

from lorada import LoradaConfig, QuantaConfig

pytestmark = pytest.mark.fp64
NORMS = LNTuningConfig(target_modules=["LayerNorm"])


def classifier() -> BertForSequenceClassification:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "vocab_size": 96, "initializer_range": 0.2}  # fmt: skip
    return _build(BertForSequenceClassification, BertConfig, sizes)


def two_heads(other):
    """A model with two adapters, ``default`` active; inputs, and what each computes of them."""
    model = moved(classifier(), stack(lora("bert", QUERY)))
    model.add_adapter("other", stack(other))
    randomise(model, "other")
    inputs, found = batch("bert"), {}
    for name in ("other", "default"):
        model.set_adapter(name)
        found[name] = logits(model.eval(), inputs)
    assert not torch.allclose(found["other"], found["default"], atol=0.1)
    return model, inputs, found


def stack(*parts):
    return LoradaConfig(parts=list(parts), task_type="SEQ_CLS")


@pytest.mark.parametrize("other", [lora("bert", FFN), NORMS], ids=["lora", "norms"])
def test_the_head_of_the_adapter_that_is_merged_is_kept_whichever_is_active(other):
    model, inputs, found = two_heads(other)
    refused(
        "classifier is that of default, and other is to be", lambda: model.merge_adapter(["other"])
    )
    merged = model.merge_and_unload(adapter_names=["other"])
    assert_close(logits(merged.eval(), inputs), found["other"])


def test_of_two_heads_one_is_kept():
    model, *_ = two_heads(lora("bert", FFN))
    refused(
        "default and other have each trained a copy of classifier, of which one can be kept",
        lambda: model.merge_and_unload(adapter_names=["default", "other"]),
    )


@pytest.mark.parametrize("other", [NORMS, lmam()], ids=["norms", "map"])
def test_an_adapter_stays_active_with_its_head_if_another_is_deleted(other):
    model, inputs, found = two_heads(other)
    trains = {name for name, weight in model.named_parameters() if weight.requires_grad}
    model.delete_adapter("other")
    assert model.active_adapters == ["default"]
    assert model.base_model.active_adapters == ["default"]
    assert_close(logits(model, inputs), found["default"])
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trains


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@pytest.mark.parametrize("parts", [1, 2])
def test_biases_have_the_same_names_in_a_file_whatever_stands_beside_the_adapter(
    bias, parts, tmp_path
):
    """Where another adapter wraps the same matrix, a bias is a module deeper in the model."""
    trained = LoraConfig(r=2, target_modules=["query"], bias=bias)
    model = get_peft_model(TINY["bert"](), LoradaConfig(parts=[trained, lmam()][:parts])).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.3)
    inputs = batch("bert")
    expected = logits(model, inputs)
    model.add_adapter("other", LoradaConfig(parts=[ia3("bert", QUERY)]))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(TINY["bert"](), tmp_path).eval()
    assert_close(logits(loaded, inputs), expected)
    again = get_peft_model(TINY["bert"](), LoradaConfig(parts=[ia3("bert", QUERY)]), "other").eval()
    again.load_adapter(tmp_path, "default")
    again.set_adapter("default")
    assert_close(logits(again, inputs), expected)


def test_a_new_adapter_leaves_dropout_off_where_it_was_off():
    """Of its parts one wraps a new layer of another, which wraps those of the first adapter."""
    first = LoraConfig(r=2, target_modules=["query"], lora_dropout=0.5)
    model = moved(TINY["bert"](), LoradaConfig(parts=[first]))
    inputs = batch("bert")
    expected = logits(model, inputs)
    model.add_adapter(
        "other", LoradaConfig(parts=[ia3("bert", QUERY), QuantaConfig(target_modules=["query"])])
    )
    assert_close(logits(model, inputs), expected)
