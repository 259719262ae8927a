"""Forgetting: the loss on the bundled neutral text, with the adapter and without it."""

import json
import math

import pytest
import torch
from folders import bart_folder, bert_folder, llama_folder, rows_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorada.inference import forgetting as forgetting_file
from lorada.inference.forgetting import LONGEST, TEXT, forgetting, text_loss
from lorada.inference.load import load_run
from lorada.runs.folder.result import read_result
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

TRAINING = [
    "per_device_train_batch_size=4", "report_to=[]", "max_steps=3", "max_length=32",
    "save_strategy=no", "learning_rate=0.02",
]  # fmt: skip
LABELS = [{"text": "ab" * (n % 4 + 1), "label": "xy"[n % 2]} for n in range(8)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("forgetting")
    llama_folder(place / "llama")
    bert_folder(place / "bert")
    bart_folder(place / "bart")
    rows_file(place / "rows.jsonl")
    rows_file(place / "labels.jsonl", LABELS)
    return place


def trained(place, output, model="llama", method="lora", rows="rows.jsonl"):
    options = {
        "method": method, "model": str(place / model), "data": str(place / rows),
        "output": str(output),
    }  # fmt: skip
    return train(load_recipe(None, TRAINING, options), quiet=True).run


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


def test_the_text_is_some_hundred_words_of_prose():
    text = TEXT.read_text(encoding="utf-8")
    assert 350 < len(text.split()) < 500
    assert text.isascii()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_both_losses_are_those_of_the_text_and_are_kept(place, tmp_path, method):
    run = trained(place, tmp_path / "run", method=method)
    before = read_result(run)
    loaded = load_run(run)
    found = forgetting(loaded)
    tokenizer = AutoTokenizer.from_pretrained(place / "llama")
    ids = [*tokenizer(TEXT.read_text(encoding="utf-8"))["input_ids"], tokenizer.eos_token_id]
    base = AutoModelForCausalLM.from_pretrained(place / "llama").eval()
    assert found["text"] == "neutral.txt"
    assert found["base"] == pytest.approx(loss_of(base, ids, 64), rel=1e-5)
    assert found["adapted"] == pytest.approx(loss_of(loaded.model, ids, 64), rel=1e-5)
    assert abs(found["adapted"] - found["base"]) > 1e-3
    assert read_result(run) == {**before, "forgetting": found}


@pytest.mark.parametrize(
    ("model", "rows"), [("bert", "labels.jsonl"), ("llama", "labels.jsonl"), ("bart", "rows.jsonl")]
)
def test_a_model_that_continues_no_text_has_none(place, tmp_path, model, rows):
    run = trained(place, tmp_path / "run", model, rows=rows)
    nothing = {"text": "neutral.txt", "base": None, "adapted": None}
    assert forgetting(load_run(run)) == nothing
    assert json.loads((run / "result.json").read_text())["forgetting"] == nothing


def test_a_text_is_read_in_pieces_and_a_last_token_alone_is_left_out(place, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(place / "llama").eval()
    ids = [5 + n % 90 for n in range(LONGEST)]
    with torch.no_grad():
        assert text_loss(model, ids) == pytest.approx(loss_of(model, ids, 64), rel=1e-5)
        monkeypatch.setattr(forgetting_file, "LONGEST", 20)
        assert text_loss(model, ids[:41]) == pytest.approx(loss_of(model, ids[:41], 20), rel=1e-5)
        assert text_loss(model, ids[:41]) == text_loss(model, ids[:40])


def test_a_loss_that_cannot_be_kept_is_only_warned_of(place, tmp_path, monkeypatch, caplog):
    run = trained(place, tmp_path / "run")
    monkeypatch.setattr(
        "lorada.runs.folder.result.write_atomic",
        lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    assert math.isfinite(forgetting(load_run(run))["adapted"])
    assert "the losses on the neutral text could not be kept" in caplog.text
    assert "forgetting" not in read_result(run)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_result_has_the_size_of_what_was_saved(place, tmp_path, method):
    run = trained(place, tmp_path / "run", method=method)
    folder = run / ("adapter" if method == "lora" else "model")
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert read_result(run)["adapter_bytes"] == sum(sizes) > 1000
