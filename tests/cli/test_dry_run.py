"""``lorada train --dry-run`` on a card that is faked: an 8B model on 24 GB, as the guide has it."""

import json
from types import SimpleNamespace

import pytest
import torch
from folders import byte_tokenizer, rows_file
from transformers import LlamaConfig

CARD = 24 * 2**30


@pytest.fixture
def card(monkeypatch):
    """Makes this a machine with a card of 24 GiB that computes in bf16."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **given: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *given: (8, 9))
    properties = SimpleNamespace(total_memory=CARD)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The command of the guide, with a model of Llama-3.1-8B's shape without weights."""
    place = tmp_path_factory.mktemp("8b")
    LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072,
        dtype=torch.bfloat16, pad_token_id=0, architectures=["LlamaForCausalLM"],
    ).save_pretrained(place / "llama")  # fmt: skip
    byte_tokenizer().save_pretrained(place / "llama")
    return [
        "train", "--method", "lora+lmam", "--model", place / "llama", "--data",
        rows_file(place / "rows.jsonl"), "--output", place / "run", "max_length=512", "--dry-run",
    ]  # fmt: skip


def test_an_8b_model_fits_on_a_card_of_24_gib_in_nf4(card, words, call):
    code, out, err = call(*words, "quantization=nf4", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["dtype"], plan["quantization"]) == ("bfloat16", "nf4")
    assert plan["activation_checkpointing"] == "full"
    assert plan["device_bytes"] == CARD
    assert 5 * 2**30 < plan["step_bytes"]["full"] < CARD < plan["step_bytes"]["off"]
    assert not words[-3].exists()


def test_the_plan_says_whether_a_step_fits(card, words, call):
    for settings, said in (
        (["quantization=nf4"], "full fits in the 24.0 GiB of this device"),
        (["dtype=float32"], "full does not fit in the 24.0 GiB of this device"),
    ):
        code, out, err = call(*words, *settings)
        assert code == 0, err
        assert said in out
