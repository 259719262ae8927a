"""``lorada train --dry-run`` on a card that is faked: an 8B model on 24 or 80 GB."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from folders import byte_tokenizer, rows_file
from transformers import LlamaConfig, training_args

from lorada.training import arguments


@pytest.fixture(params=[24], ids=lambda size: f"{size} GiB")
def card(request, monkeypatch):
    """Makes lorada see a card that computes in bf16, of so many GiB; torch itself has none."""
    size = request.param * 2**30
    device = torch.device("cuda")
    accelerator = SimpleNamespace(is_available=lambda: True, current_accelerator=lambda: device)
    cuda = SimpleNamespace(
        is_bf16_supported=lambda including_emulation: True,
        get_device_capability=lambda: (8, 9),
        get_device_properties=lambda device: SimpleNamespace(total_memory=size),
    )
    seen = SimpleNamespace(**{**vars(torch), "accelerator": accelerator, "cuda": cuda})
    monkeypatch.setattr(arguments, "torch", seen)
    for name in ("is_torch_bf16_gpu_available", "is_torch_tf32_available"):
        monkeypatch.setattr(training_args, name, lambda: True)


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
        rows_file(place / "rows.jsonl"), "--output", place / "run", "max_length=512", "lora.r=8",
        "--dry-run",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "fits"), [("quantization=nf4", True), ("dtype=float32", False)]
)
def test_the_plan_of_an_8b_model_says_whether_it_fits_on_a_card_of_24_gib(
    card, words, works, setting, fits
):
    out, _ = works(*words, setting)
    found = re.search(
        r"auto takes full: a step needs ([\d.]+) GiB with off, ([\d.]+) GiB with", out
    )
    assert found is not None
    off, full = map(float, found.groups())
    assert full < off
    assert off > 24
    assert (full < 24) == fits
    assert f"full {'fits' if fits else 'does not fit'} in the 24.0 GiB of this device" in out
    assert ("dtype=mixed quantization=nf4" in out) == fits
    assert "lora has r=8, lora_alpha=16" in out


@pytest.mark.parametrize(
    ("card", "batch", "takes"),
    [(80, 8, "off"), (80, 12, "full"), (48, 8, "full")],
    indirect=["card"],
)
def test_auto_keeps_the_activations_where_a_step_takes_85_percent_of_the_card(
    card, words, works, batch, takes
):
    out, _ = works(*words, f"per_device_train_batch_size={batch}", "--json")
    found = json.loads(out)
    share = found["step_bytes"]["off"] / found["device_bytes"]
    assert found["activation_checkpointing"] == takes == ("off" if share <= 0.85 else "full")
