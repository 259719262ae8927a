"""Adapters that do not fit a base: one line, and the base computes what it computed before."""

import pytest
import torch
from conftest import TINY, VOCAB
from folders import refused
from peft import PeftModel
from stacks import lmam, logits, moved, training_stack

BATCH = {"input_ids": torch.arange(5, 45).view(4, 10)}


def saved(path, base, config):
    moved(base, config).save_pretrained(path)
    return str(path)


def resized(tokens):
    model = TINY["llama"]()
    model.resize_token_embeddings(tokens)
    return model


def whole(name):
    """A stack that trains and saves a module whole beside its parts."""
    return training_stack(modules_to_save=[name])


BASES = {
    "hidden size": (training_stack, lambda: TINY["llama"](hidden_size=64, head_dim=8)),
    "heads": (lmam, lambda: TINY["llama"](num_attention_heads=8, head_dim=4)),
    "layers": (training_stack, lambda: TINY["llama"](num_hidden_layers=1)),
    "head of a resized vocabulary": (lambda: whole("lm_head"), lambda: resized(VOCAB + 8)),
    "embedding of a resized vocabulary": (
        lambda: whole("embed_tokens"), lambda: resized(VOCAB + 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("case", BASES)
def test_an_adapter_of_another_base_leaves_the_base_as_it_was(case, low_memory, tmp_path):
    config, other = BASES[case]
    folder = saved(tmp_path, TINY["llama"](), config())
    base = other()
    names, before = [name for name, _ in base.named_modules()], logits(base, BATCH)
    low = {"low_cpu_mem_usage": low_memory}
    said = "the adapter was saved for another"
    refused(said, lambda: PeftModel.from_pretrained(base, folder, **low))
    assert [name for name, _ in base.named_modules()] == names
    assert torch.equal(logits(base, BATCH), before)


@pytest.mark.parametrize(("name", "trains"), [("other", False), ("default", True)])
def test_an_adapter_survives_weights_of_another_or_its_own_that_do_not_fit(name, trains, tmp_path):
    wide = saved(tmp_path, TINY["llama"](hidden_size=64, head_dim=8), training_stack())
    model = moved(TINY["llama"](), training_stack())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = logits(model, BATCH)
    with pytest.raises(ValueError, match="another model size or head count"):
        model.load_adapter(wide, name, is_trainable=trains)
    assert list(model.peft_config) == ["default"]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(logits(model, BATCH), expected)
