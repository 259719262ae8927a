"""A method that trains part of a base, such as BitFit, saves that part and names the base."""

import json
import shutil
from functools import partial
from unittest.mock import Mock

import pytest
import run_place
import torch
import yaml
from folders import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trained import QUICK, assert_same, before_its_end, run_recipe
from transformers import AutoModelForSequenceClassification

from lorada.inference.load import load_run
from lorada.runs.result import read_result
from lorada.training.models import adapters
from lorada.training.train import train

SETTINGS = [*QUICK, "max_steps=4", "save_steps=2", "learning_rate=1e-2"]
recipe = partial(run_recipe, SETTINGS, method="bitfit", model="bert")
place = run_place.place
# The head of BERT has two classes, so one for three is drawn.
LABELS = [{"text": "ab" * (i % 5 + 1), "label": "xyz"[i % 3]} for i in range(16)]
ROW_FILES = {"bert": LABELS, "llama": None}
RUNS = {f"{model}-run": (model, "bitfit", model, []) for model in ROW_FILES}
LLAMA = {"attention_bias": True}
FILE = "trained.safetensors"


@pytest.fixture(scope="module")
def run(folder):
    return folder("bert-run")


def logits(folder):
    with torch.no_grad():
        return load_run(folder).model(torch.arange(5, 12)[None]).logits


def test_only_biases_and_the_head_are_saved_with_the_name_of_the_base(place, run):
    saved = load_file(run / FILE)
    assert {name for name in saved if not name.endswith("bias")} == {"classifier.weight"}
    assert "classifier.bias" in saved
    base = load_file(place / "bert" / "model.safetensors")
    assert saved.keys() == {n for n in base if n.endswith("bias")} | {"classifier.weight"}
    with safe_open(run / FILE, "pt") as file:
        about = file.metadata()
    assert about["base_model_name_or_path"] == str(place / "bert")
    assert about["base_model_type"] == "bert"
    result = read_result(run)
    head = sum(saved[f"classifier.{name}"].numel() for name in ("weight", "bias"))
    numbers = sum(tensor.numel() for tensor in saved.values())
    pooler = saved["bert.pooler.dense.bias"].numel()
    assert numbers == result["parameters"]["trainable"] + head + pooler
    assert result["adapter_bytes"] == (run / FILE).stat().st_size < 4 * numbers + 5000


def test_neither_run_nor_checkpoint_holds_the_rest_of_the_base(place, run):
    assert not (run / "model").exists()
    saved = load_file(run / FILE)
    assert load_file(run / "checkpoint-4" / "model.safetensors").keys() == saved.keys()
    full = train(recipe(place, place / "full", method="full"), quiet=True).run
    assert not (full / FILE).exists()
    whole = load_file(place / "bert" / "model.safetensors").keys()
    for folder in ("model", "checkpoint-4"):
        assert load_file(full / folder / "model.safetensors").keys() == whole


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_a_loaded_run_is_the_base_with_the_trained_part(place, folder, model):
    run = folder(f"{model}-run")
    saved, base = load_file(run / FILE), load_file(place / model / "model.safetensors")
    found = load_run(run).model.state_dict()
    for name, tensor in found.items():
        assert torch.equal(tensor, saved.get(name, base.get(name)))
    assert any(not torch.equal(saved[name], base[name]) for name in saved if name in base
               and base[name].shape == saved[name].shape)  # fmt: skip


def test_a_run_is_evaluated_generated_from_and_exported(place, folder, tmp_path, works, mistake):
    run = shutil.copytree(folder("llama-run"), tmp_path / "run")
    out, _ = works("evaluate", run, "--data", place / "llama.jsonl", "--json")
    assert json.loads(out)["n"] == 36
    works("generate", run, "--prompt", "1 + 1 =", "--json")
    bert = folder("bert-run")
    works("export", bert, tmp_path / "out")
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(exported(torch.arange(5, 12)[None]).logits, logits(bert))
    line = mistake("serve", run, shutil.copytree(run, tmp_path / "other"))
    assert "trained the base model itself, so it shares no base with another run" in line


def test_a_resumed_run_comes_to_the_same_end(place, run, tmp_path, caplog):
    cut = before_its_end(run, tmp_path / "cut")
    again = train(recipe(place, cut), resume=True, quiet=True)
    assert again.result["resumed_from"] == "checkpoint-2"
    assert "missing keys" not in caplog.text
    assert_same(load_file(cut / FILE), load_file(run / FILE))


def test_what_an_overwritten_run_of_another_kind_trained_is_gone(place, tmp_path):
    run = tmp_path / "run"
    for method, kept in (
        ("bitfit", FILE),
        ("full", "model"),
        ("bitfit", FILE),
        ("lora", "adapter"),
    ):
        asked = recipe(place, run, "max_steps=1", "save_strategy=no", method=method)
        train(asked, overwrite=True, quiet=True)
        assert [name for name in (FILE, "model", "adapter") if (run / name).exists()] == [kept]


def test_the_best_checkpoint_is_loaded_at_the_end(place, tmp_path):
    pairs = (
        "dev_rows=4", "load_best_model_at_end=true", "eval_strategy=steps", "eval_steps=2",
        "learning_rate=0.3",
    )  # fmt: skip
    done = train(recipe(place, tmp_path / "run", *pairs), quiet=True)
    losses = {e["step"]: e["eval_loss"] for e in done.result["history"] if "eval_loss" in e}
    best = min(losses, key=losses.get)
    assert best == 2, losses
    kept = load_file(done.run / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(t, kept[name]) for name, t in load_file(done.run / FILE).items())


def test_a_head_that_does_not_train_is_saved_because_it_was_drawn(place, tmp_path):
    run = train(recipe(place, tmp_path / "run", "train_head=false"), quiet=True).run
    assert {"classifier.weight", "classifier.bias"} < load_file(run / FILE).keys()
    assert torch.equal(logits(run), logits(run))


def damaged(run, target, change):
    """A copy of a run whose tensors and metadata are changed."""
    copy = shutil.copytree(run, target)
    with safe_open(copy / FILE, "pt") as file:
        about = file.metadata()
    weights = {name: tensor.clone() for name, tensor in load_file(copy / FILE).items()}
    change(weights, about)
    save_file(weights, copy / FILE, about)
    return copy


HARMS = {
    "another base": (
        lambda w, a: a.update(base_model_type="roberta"),
        "trained on a roberta model",
    ),
    "a tensor fewer": (lambda w, a: w.pop("classifier.bias"), "tensors: it is incomplete"),
    "no drawn head": (
        lambda w, a: a.update(tensors=str(len(w) - 1)) or w.pop("classifier.bias"),
        r"has no classifier\.bias, nor has its model's checkpoint",
    ),
    "another shape": (
        lambda w, a: w.update({"classifier.bias": torch.ones(5)}),
        r"size mismatch for classifier\.bias: .* another architecture",
    ),
    "another name": (
        lambda w, a: w.update({"x.bias": w.pop("bert.pooler.dense.bias")}),
        r"x\.bias, for which this model has no place",
    ),
}


@pytest.mark.parametrize("case", HARMS)
def test_a_file_that_does_not_belong_to_the_base_is_one_line(run, tmp_path, case):
    change, message = HARMS[case]
    copy = damaged(run, tmp_path / "run", change)
    refused(message, lambda: load_run(copy))


def test_a_file_that_is_cut_or_a_base_that_has_changed_is_one_line(place, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / FILE).write_bytes((run / FILE).read_bytes()[:-9])
    refused("truncated or not safetensors", lambda: load_run(copy))
    base = shutil.copytree(place / "bert", tmp_path / "bert")
    moved = shutil.copytree(run, tmp_path / "moved")
    for name, read, write in (
        ("recipe.yaml", yaml.safe_load, yaml.safe_dump), ("result.json", json.loads, json.dumps)
    ):  # fmt: skip
        found = read((moved / name).read_text())
        (moved / name).write_text(write({**found, "model": str(base)}))
    assert torch.equal(logits(moved), logits(run))
    weights = load_file(base / "model.safetensors")
    save_file({k: w + 1e-3 for k, w in weights.items()}, base / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    refused("are not those that .* was trained on", lambda: load_run(moved))


def test_a_full_disk_leaves_no_half_of_the_file(place, tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(adapters, "save_file", Mock(side_effect=full))
    with pytest.raises(OSError, match="No space left"):
        train(recipe(place, tmp_path / "run", "save_strategy=no"), quiet=True)
    assert not (tmp_path / "run" / FILE).exists()
