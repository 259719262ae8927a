"""``lorada train --dry-run`` on a card that is faked: whether a step fits, and what auto takes."""

import json
from types import SimpleNamespace

import pytest
import torch
from folders import byte_tokenizer, rows_file
from transformers import LlamaConfig, training_args

from lorada.training import arguments


@pytest.fixture
def card(monkeypatch):
    """Makes lorada see a card that computes in bf16, of so many bytes; torch itself has none."""
    device, memory = torch.device("cuda"), SimpleNamespace(total_memory=0)
    accelerator = SimpleNamespace(is_available=lambda: True, current_accelerator=lambda: device)
    cuda = SimpleNamespace(
        is_bf16_supported=lambda including_emulation: True,
        get_device_capability=lambda: (8, 9),
        get_device_properties=lambda device: memory,
    )
    seen = SimpleNamespace(**{**vars(torch), "accelerator": accelerator, "cuda": cuda})
    monkeypatch.setattr(arguments, "torch", seen)
    for name in ("is_torch_bf16_gpu_available", "is_torch_tf32_available"):
        monkeypatch.setattr(training_args, name, lambda: True)
    return memory


def test_auto_keeps_activations_up_to_85_percent_of_the_card_and_a_plan_says_if_a_step_fits(
    card, works, tmp_path
):
    LlamaConfig(  # three layers of Llama-3.1-8B, without weights
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=3, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072,
        dtype=torch.bfloat16, pad_token_id=0, architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path / "llama")  # fmt: skip
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    words = [
        "train", "--method", "lora+lmam", "--model", tmp_path / "llama", "--data",
        rows_file(tmp_path / "rows.jsonl"), "--output", tmp_path / "run", "max_length=512",
        "quantization=nf4", "--dry-run",
    ]  # fmt: skip
    card.total_memory = 2**40
    found = json.loads(works(*words, "--json")[0])
    assert found["activation_checkpointing"] == "off"
    off, full = found["step_bytes"]["off"], found["step_bytes"]["full"]
    assert full < 0.8 * off
    for share, takes in ((0.86, "full"), (0.84, "off")):
        card.total_memory = round(off / share)
        out, _ = works(*words)
        assert f"auto takes {takes}: a step needs {off / 2**30:.2f} GiB with off, " in out
        assert f"{takes} fits in the {off / share / 2**30:.1f} GiB of this device" in out
    card.total_memory = round(0.9 * full)
    assert "full does not fit in the " in works(*words)[0]
