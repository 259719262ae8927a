"""Heads and other modules that are trained whole come back, trained, from a model that is unloaded.

Of classifiers with heads of each kind: one matrix, a module of several, several modules.
"""

import pytest
import torch
from architectures import inputs
from conftest import assert_close
from method_cases import BUILDERS
from peft import AdaLoraConfig, LoraConfig
from safetensors.torch import load_file
from stacks import lmam, logits, moved
from transformers import AutoModelForSequenceClassification

from lorada import LoradaConfig

pytestmark = pytest.mark.fp64

CLASSES = 3
# Architecture -> what LoRA goes on; the module that is trained whole beside PEFT's own choice.
CLASSIFIERS = {
    "bert": (["query"], ["pooler"]),
    "roberta": (["query"], None),
    "deberta_v2": (["query_proj"], ["pooler"]),
    "distilbert": (["q_lin"], ["pre_classifier"]),
    "bart": (["q_proj"], ["classification_head"]),
    "t5": (["q"], ["classification_head"]),
    "gpt2": (["c_attn"], None),
    "llama": (["q_proj"], None),
}
# Adapter -> its parts, and how it is unloaded.
ADAPTERS = {
    "lora": (lambda targets: [LoraConfig(r=2, target_modules=targets)], "merge_and_unload"),
    "adalora": (
        lambda targets: [AdaLoraConfig(init_r=2, target_r=1, total_step=9, target_modules=targets)],
        "merge_and_unload",
    ),
    "lora+map": (
        lambda targets: [lmam(), LoraConfig(r=2, target_modules=targets)],
        "merge_weights",
    ),
    "map": (lambda targets: [lmam()], "unload"),
}  # fmt: skip
CASES = [
    *((name, adapter) for name in CLASSIFIERS for adapter in ("lora", "lora+map")),
    *((name, adapter) for name in ("roberta", "deberta_v2") for adapter in ("adalora", "map")),
]


def classifier(name):
    config = BUILDERS[name]().config
    config.num_labels = CLASSES
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def batch_of(name):
    """Texts of one length with BART's end, by which it finds what to classify."""
    batch = inputs(name)
    tokens = batch["input_ids"].clamp(min=5)
    tokens[:, -1] = 2
    return {"input_ids": tokens}


def adapted(name, adapter):
    targets, whole = CLASSIFIERS[name]
    stack = LoradaConfig(parts=ADAPTERS[adapter][0](targets), task_type="SEQ_CLS")
    stack.modules_to_save = whole
    return moved(classifier(name), stack)


@pytest.mark.parametrize(("name", "adapter"), CASES)
def test_the_plain_model_computes_and_saves_with_the_trained_head(name, adapter, tmp_path):
    batch, model, start = batch_of(name), adapted(name, adapter), classifier(name)
    expected = logits(model, batch)
    plain = getattr(model, ADAPTERS[adapter][1])()
    if adapter == "lora+map":
        assert_close(logits(plain, batch), expected)
        for layer in plain.modules():  # what is trained whole stays, the map goes
            if hasattr(layer, "lora_w_a"):
                layer.enable_adapters(False)
        expected = logits(plain, batch)
        plain = plain.unload()
    elif adapter == "map":
        expected = logits(plain, batch)
    assert not torch.allclose(logits(start, batch), expected, atol=1e-3)
    plain.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert_close(logits(again, batch), expected)

    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == start.state_dict().keys() - start.all_tied_weights_keys.keys()
    whole = CLASSIFIERS[name][1] or ["classifier", "score"]
    trained = [key for key in saved if any(part in key.split(".") for part in whole)]
    assert trained
    for key in trained:
        assert not torch.equal(saved[key], start.state_dict()[key]), key
