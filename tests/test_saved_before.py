"""What an earlier version saved still loads, and computes what it computed then.

``tests/saved_before`` was written by the code of commit 765d73f (lorada 0.1.0, torch 2.13.0,
transformers 5.24.0, peft 0.21.2); ``tests/write_saved_before.py`` of commit c99cd99 did it. The
weights are fp32; what is expected of them was computed in fp64, and so is what is compared here.
Files of a later version belong into a folder beside these.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import assert_close
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from lorada import METHODS, TASKS
from lorada.experiments import table_spec
from lorada.runs.recipe import Recipe, load_recipe

pytestmark = pytest.mark.fp64

SAVED = Path(__file__).with_name("saved_before")
EXPECTED = json.loads((SAVED / "expected.json").read_text())
LOGITS = load_file(SAVED / "expected.safetensors")
ADAPTERS = [path.name for path in sorted((SAVED / "adapters").iterdir())]
RECIPES = [path.stem for path in sorted((SAVED / "recipes").iterdir())]
# Run -> its model, the class that loads that, and its rows.
RUNS = {
    "causal": ("llama", AutoModelForCausalLM, "rows"),
    "classes": ("bert", AutoModelForSequenceClassification, "classes"),
    "seq2seq": ("bart", AutoModelForSeq2SeqLM, "rows"),
    "part_of_the_base": ("bert", AutoModelForSequenceClassification, "classes"),
}
IDS = torch.tensor([[5, 9, 14, 20, 7, 31, 12, 3], [8, 3, 25, 30, 11, 0, 0, 0]])
EVERY = 3  # every third logit was kept


@pytest.fixture
def place(tmp_path):
    """A copy of the files, in whose recipes and results this place is named."""
    place = shutil.copytree(SAVED, tmp_path / "place")
    for path in place.rglob("*"):
        named = path.name in ("recipe.yaml", "result.json")
        if named and EXPECTED["place"] in (text := path.read_text()):
            path.write_text(text.replace(EXPECTED["place"], str(place)))
    return place


def logits(model):
    inputs = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS[:, :4]
    with torch.no_grad():
        found = model.double().eval()(**inputs).logits
    return found[..., ::EVERY] if found.dim() == 3 else found


def llama():
    return AutoModelForCausalLM.from_pretrained(SAVED / "models" / "llama")


def test_the_files_are_these():
    assert {f"adapters.{name}" for name in ADAPTERS} <= LOGITS.keys()
    configs = [SAVED / "adapters" / name / "adapter_config.json" for name in ADAPTERS]
    assert {json.loads(path.read_text())["peft_type"] for path in configs} == {
        "BOTTLENECK", "LAMDA", "LMAM", "LORADA", "OMOE", "PREFIX", "QUANTA", "SORA",
    }  # fmt: skip
    assert set(RECIPES) == EXPECTED["recipes"].keys()
    assert RUNS.keys() == EXPECTED["scores"].keys()


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_saved_adapter_computes_what_it_did(name):
    found = logits(PeftModel.from_pretrained(llama(), SAVED / "adapters" / name))
    assert_close(found, LOGITS[f"adapters.{name}"])
    assert (found - LOGITS["models.llama"]).abs().max() > 1e-2


@pytest.mark.parametrize("name", [name for name in RUNS if f"runs.{name}" in LOGITS])
def test_the_adapter_of_a_run_computes_what_it_did(name):
    model, auto, _ = RUNS[name]
    base = auto.from_pretrained(SAVED / "models" / model)
    found = logits(PeftModel.from_pretrained(base, SAVED / "runs" / name / "adapter"))
    assert_close(found, LOGITS[f"runs.{name}"])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_scores_that_it_had(name, place, json_of):
    rows = place / f"{RUNS[name][2]}.jsonl"
    found = json_of("evaluate", place / "runs" / name, "--data", rows)
    expected = dict(EXPECTED["scores"][name])
    assert found.pop("sha256") == expected.pop("sha256")
    assert found == pytest.approx(expected, rel=1e-10)


def test_an_exported_folder_computes_what_it_did():
    found = logits(AutoModelForCausalLM.from_pretrained(SAVED / "exported"))
    assert_close(found, LOGITS["exported"])


def test_a_run_that_was_interrupted_goes_on_from_its_checkpoint(place, json_of):
    run, after = place / "runs" / "interrupted", place / "interrupted_after"
    result = json_of("train", "--resume", "--output", run)
    expected = json.loads((after / "result.json").read_text())
    assert result["resumed_from"] == "checkpoint-2"
    for key in ("loss", "grad_norm"):
        found, wanted = ([entry[key] for entry in r["history"]] for r in (result, expected))
        assert found == pytest.approx(wanted, rel=1e-10)
    found = load_file(run / "adapter" / "adapter_model.safetensors")
    wanted = load_file(after / "adapter_model.safetensors")
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert_close(found[key], tensor)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_said(name):
    found = load_recipe(str(SAVED / "recipes" / f"{name}.yaml"), [], {}).model_dump()
    expected = EXPECTED["recipes"][name]
    newer = {key: Recipe.model_fields[key].default for key in found.keys() - expected.keys()}
    if "dtype" not in (SAVED / "recipes" / f"{name}.yaml").read_text():
        newer["dtype"] = "auto"  # it was fp32, as ``auto`` is on a CPU
    assert found == {**expected, **newer}


def test_methods_and_tasks_that_a_recipe_may_name_are_still_there():
    assert set(EXPECTED["methods"]) <= METHODS.keys()
    assert set(EXPECTED["tasks"]) <= TASKS.keys()


def test_stored_results_are_read_by_the_page_of_their_table(place, json_of):
    table_spec._counts_of.cache_clear()  # other tests count on models of their own
    words = ("--rows", "lora,adapter_ffn", "--tasks", "mrpc", "--seeds", "1,2", "--resume")
    where = ("--results", place / "results", "--output", place / "again")
    page = json_of("table", 5, "--scale", "local", *words, *where)
    ours = [line for line in page["lines"] if line["source"] == "ours"]
    assert len(ours) == 2
    for line, row in zip(ours, ("lora", "adapter_ffn"), strict=True):
        paths = [place / "results/table5/local" / row / f"mrpc/seed{n}.json" for n in (1, 2)]
        stored = [json.loads(path.read_text()) for path in paths]
        assert line["scores"]["mrpc"] == [one["metrics"]["mrpc"]["accuracy"] for one in stored]
        assert line["percent"] == f"{stored[0]['parameters']['percent']:.3f}%"
    assert not (place / "again").exists()
