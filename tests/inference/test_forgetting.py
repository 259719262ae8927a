"""Forgetting: the loss on the bundled neutral text, with the adapter and without it."""

import json
import math
import shutil
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorada.inference import perplexity
from lorada.inference.load import load_run
from lorada.inference.perplexity import PIECE, TEXT, forgetting, text_loss
from lorada.runs.result import read_result

SETTINGS = [
    "per_device_train_batch_size=4", "report_to=[]", "max_steps=3", "max_length=32",
    "save_strategy=no", "learning_rate=0.02",
]  # fmt: skip
RUNS = {
    "lora": ("llama", "lora", "rows", []),
    "full": ("llama", "full", "rows", []),
    "encoder": ("bert", "lora", "labels", []),
    "classifier": ("llama", "lora", "labels", []),
    "seq2seq": ("bart", "lora", "rows", []),
}


def loss_of(model, ids, length):
    """The mean loss of all tokens but the first of each piece, by transformers itself."""
    total, count = 0.0, 0
    for start in range(0, len(ids), length):
        piece = torch.tensor([ids[start : start + length]])
        if piece.shape[1] > 1:
            with torch.no_grad():
                total += float(model(input_ids=piece, labels=piece).loss) * (piece.shape[1] - 1)
            count += piece.shape[1] - 1
    return total / count


@pytest.mark.parametrize("method", ["lora", "full"])
def test_both_losses_are_those_of_the_text_and_are_kept(place, folder, method):
    run = folder(method)
    before = read_result(run)
    kept = (run / ("model" if method == "full" else "adapter")).rglob("*")
    assert before.adapter_bytes == sum(path.stat().st_size for path in kept if path.is_file())
    loaded = load_run(run)
    found = forgetting(loaded)
    tokenizer = AutoTokenizer.from_pretrained(place / "llama")
    ids = [*tokenizer(TEXT.read_text(encoding="utf-8"))["input_ids"], tokenizer.eos_token_id]
    base = AutoModelForCausalLM.from_pretrained(place / "llama").eval()
    assert found.text == "neutral.txt"
    assert found.base == pytest.approx(loss_of(base, ids, 64), rel=1e-5)
    assert found.adapted == pytest.approx(loss_of(loaded.model, ids, 64), rel=1e-5)
    assert abs(found.adapted - found.base) > 1e-3
    assert read_result(run) == before.model_copy(update={"forgetting": found})


@pytest.mark.parametrize("name", ["encoder", "classifier", "seq2seq"])
def test_a_model_that_continues_no_text_has_none(folder, name):
    run = folder(name)
    nothing = {"text": "neutral.txt", "base": None, "adapted": None}
    assert forgetting(load_run(run)).stored() == nothing
    assert json.loads((run / "result.json").read_text())["forgetting"] == nothing


def test_a_text_is_read_in_pieces_and_a_last_token_alone_is_left_out(place, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(place / "llama").eval()
    ids = [5 + n % 90 for n in range(PIECE)]
    with torch.no_grad():
        assert text_loss(model, ids) == pytest.approx(loss_of(model, ids, 64), rel=1e-5)
        monkeypatch.setattr(perplexity, "PIECE", 20)
        assert text_loss(model, ids[:41]) == pytest.approx(loss_of(model, ids[:41], 20), rel=1e-5)
        assert text_loss(model, ids[:41]) == text_loss(model, ids[:40])


def test_a_loss_that_cannot_be_kept_is_only_warned_of(folder, tmp_path, monkeypatch, caplog):
    run = shutil.copytree(folder("lora"), tmp_path / "run")
    before = read_result(run)
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("lorada.runs.result.write_atomic", full)
    assert math.isfinite(forgetting(load_run(run)).adapted)
    assert "the losses on the neutral text could not be kept" in caplog.text
    assert read_result(run) == before
