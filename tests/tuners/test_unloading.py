"""Heads and other modules that are trained whole come back, trained, from a model that is unloaded.

The comparison is made in a fresh process, of every classifier that transformers builds with a head
of its own kind: one matrix, a module of several, several modules.
"""

import subprocess
import sys

import pytest
import torch
from architectures import inputs
from conftest import assert_close
from method_cases import BUILDERS
from paths import HELPERS
from peft import AdaLoraConfig, LoraConfig
from safetensors.torch import load_file, save_file
from stacks import lmam, logits, moved
from transformers import AutoModelForSequenceClassification

from lorada import LoradaConfig

pytestmark = pytest.mark.fp64

CLASSES = 3
# Architecture -> what LoRA goes on; the module that is trained whole beside PEFT's own choice.
CLASSIFIERS = {
    "bert": (["query"], ["pooler"]),
    "roberta": (["query"], None),
    "xlm_roberta": (["query"], None),
    "electra": (["query"], None),
    "deberta": (["in_proj"], ["pooler"]),
    "deberta_v2": (["query_proj"], ["pooler"]),
    "distilbert": (["q_lin"], ["pre_classifier"]),
    "bart": (["q_proj"], ["classification_head"]),
    "mbart": (["q_proj"], ["classification_head"]),
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

FRESH = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

sys.path.insert(0, sys.argv[2])
from in_double import in_double

for folder in Path(sys.argv[1]).iterdir():
    batch = load_file(folder / "batch.safetensors")
    with in_double():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        logits = model(**batch).logits.detach()
    save_file({"logits": logits}, folder / "logits.safetensors")
"""


def classifier(name):
    config = BUILDERS[name]().config
    config.num_labels = CLASSES
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def batch_of(name):
    """Texts of one length with BART's end, by which it finds what to classify."""
    batch = inputs("bert" if name == "electra" else name)
    tokens = batch["input_ids"].clamp(min=5)
    tokens[:, -1] = 2
    return {"input_ids": tokens}


def adapted(name, adapter):
    targets, whole = CLASSIFIERS[name]
    stack = LoradaConfig(parts=ADAPTERS[adapter][0](targets), task_type="SEQ_CLS")
    stack.modules_to_save = whole
    return moved(classifier(name), stack)


@pytest.fixture(scope="module")
def unloaded(tmp_path_factory):
    """Case -> what the adapted model computed, and the folder of what it was unloaded to."""
    place, made = tmp_path_factory.mktemp("unloaded"), {}
    for name, adapter in CASES:
        torch.manual_seed(1)
        batch, model, folder = batch_of(name), adapted(name, adapter), place / f"{name}-{adapter}"
        if adapter == "map":  # what is trained whole stays, the map goes
            for layer in model.modules():
                if hasattr(layer, "lora_w_a"):
                    layer.enable_adapters(False)
        expected = logits(model, batch)
        assert not torch.allclose(logits(classifier(name), batch), expected, atol=1e-3), name
        plain = getattr(model, ADAPTERS[adapter][1])()
        if adapter == "lora+map":
            assert_close(logits(plain, batch), expected)
            for layer in plain.modules():
                if hasattr(layer, "lora_w_a"):
                    layer.enable_adapters(False)
            expected = logits(plain, batch)
            plain = plain.unload()
        plain.save_pretrained(folder)
        save_file(batch, folder / "batch.safetensors")
        made[name, adapter] = expected, folder
    subprocess.run([sys.executable, "-c", FRESH, place, HELPERS], check=True)
    return made


@pytest.mark.parametrize(("name", "adapter"), CASES)
def test_a_fresh_process_computes_with_the_trained_head(unloaded, name, adapter):
    expected, folder = unloaded[name, adapter]
    assert_close(load_file(folder / "logits.safetensors")["logits"], expected)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_file_holds_what_a_plain_model_of_this_kind_has(unloaded, name):
    base = classifier(name)
    tied = base.all_tied_weights_keys.keys()
    for adapter in (adapter for other, adapter in CASES if other == name):
        saved = load_file(unloaded[name, adapter][1] / "model.safetensors")
        assert saved.keys() == base.state_dict().keys() - tied
        whole = CLASSIFIERS[name][1] or ["classifier", "score"]
        trained = [key for key in saved if any(part in key.split(".") for part in whole)]
        assert trained
        for key in trained:
            assert not torch.equal(saved[key], base.state_dict()[key]), key
