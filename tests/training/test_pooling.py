"""``pooling=mean|cls`` of a run: trained, saved, resumed, loaded, exported, and refused."""

import json
import re
import shutil
import sys
from functools import partial

import pytest
import torch
from conftest import assert_close
from folders import (
    ROWS,
    SIZES,
    bart_folder,
    byte_tokenizer,
    llama_folder,
    refused,
    rows_file,
    saved,
)
from paths import HELPERS
from programs import printed
from safetensors.torch import load_file
from trained_runs import QUICK, before_its_end, run_recipe
from transformers import BertForSequenceClassification, RobertaForSequenceClassification

from lorada.inference.export import export
from lorada.inference.load import load_run
from lorada.training.inputs import prepare_training
from lorada.training.train import train
from lorada.tuners.pooling import PoolingLayer

CLASSIFIER = {
    **SIZES, "max_position_embeddings": 80, "pad_token_id": 0, "initializer_range": 0.2
}  # fmt: skip
SETTINGS = [*QUICK, "max_steps=2", "save_strategy=no", "max_length=48", "learning_rate=1e-2"]
recipe = partial(run_recipe, SETTINGS, model="bert", method="lora", rows="labels")
LABELS = [{"text": "ab" * (i % 5 + 1), "label": "yn"[i % 2]} for i in range(12)]
SCORES = [{"text": "ab" * (i % 5 + 1), "text_pair": "c" * i, "score": i / 4} for i in range(12)]
RUNS = {
    "bert-lora": ("bert", "lora", "labels", ["pooling=mean"]),
    "bert-full": ("bert", "full", "labels", ["pooling=mean"]),
    "roberta-stack": ("roberta", "lorada_la", "labels", ["pooling=cls"]),
    "roberta-shira": ("roberta", "shira", "labels", ["pooling=mean"]),
}
# In a process of its own: what transformers loads from folders before and after lorada is imported.
ELSEWHERE = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification as Auto

torch.set_num_threads(1)
tests, *folders = sys.argv[1:]
sys.path.insert(0, tests)
from in_double import in_double

def load(folder):
    try:
        with in_double():
            model = Auto.from_pretrained(folder).eval()
            return model(torch.arange(5, 12)[None]).logits[0].tolist()
    except (KeyError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

before = [load(folder) for folder in folders]
assert "lorada" not in sys.modules
import lorada
print(json.dumps([before, [load(folder) for folder in folders]]))
"""
pytestmark = pytest.mark.fp64


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Classifiers with as many classes as ``LABELS``; for ``SCORES`` a new head is drawn."""
    place = tmp_path_factory.mktemp("place")
    for model in (BertForSequenceClassification, RobertaForSequenceClassification):
        saved(place / model.config_class.model_type, model, byte_tokenizer(), CLASSIFIER)
    rows_file(place / "labels.jsonl", LABELS)
    rows_file(place / "scores.jsonl", SCORES)
    return place


@pytest.fixture(scope="module")
def elsewhere(folder, place):
    """Folders with a model and its pooling → their logits here, and what the process printed."""
    wanted = {}
    for name in RUNS:
        run = folder(name)
        done = export(run, place / f"{name}-exported")
        assert done.adapter[-1] == "POOLING"
        folders = [path for path in (place / done.folder, run / "model") if path.is_dir()]
        wanted |= dict.fromkeys(map(str, folders), logits(load_run(run).model))
    said = printed(sys.executable, "-c", ELSEWHERE, HELPERS, *wanted)
    return wanted, json.loads(said.splitlines()[-1])


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(5, 12)[None]).logits[0]


def poolings(model):
    layers = [module for module in model.modules() if isinstance(module, PoolingLayer)]
    return [config.pooling for layer in layers for config in layer.configs.values()]


@pytest.mark.parametrize("name", RUNS)
def test_a_loaded_run_has_the_pooling_of_its_recipe(name, folder):
    run, (asked,) = load_run(folder(name)), RUNS[name][3]
    pooling = asked.removeprefix("pooling=")
    assert poolings(run.model) == [run.recipe.pooling] == [pooling]
    kept = run.folder / ("model" if RUNS[name][1] == "full" else "adapter")
    config = json.loads((kept / "adapter_config.json").read_text())
    assert config["parts"][-1]["pooling"] == pooling
    card = (kept / "README.md").read_text()
    assert "POOLING" in card
    assert "import lorada" in card


@pytest.mark.more
@pytest.mark.fp64(False)
def test_the_head_is_drawn_as_without_a_pooling_whatever_the_method(place, tmp_path):
    heads = []
    for method, pooling in (("lora", None), ("lora", "mean"), ("full", "cls")):
        asked = recipe(
            place, tmp_path / f"{method}-{pooling}", "learning_rate=0", "seed=3", "max_steps=1",
            method=method, pooling=pooling, rows="scores",
        )  # fmt: skip
        run = train(asked, quiet=True).run
        files = [path for path in run.glob("*/*.safetensors") if path.stat().st_size > 1000]
        saved = load_file(files[0])
        heads += [value for key, value in saved.items() if key.endswith("classifier.weight")]
    assert len(heads) == 3
    assert all(torch.equal(head, heads[0]) for head in heads)


@pytest.mark.more
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_run_comes_to_the_same_end(method, place, tmp_path):
    pairs = ("pooling=mean", "max_steps=4", "save_strategy=steps", "save_steps=2")
    whole = train(recipe(place, tmp_path / "whole", *pairs, method=method), quiet=True)
    cut = before_its_end(whole.run, tmp_path / "cut")
    again = train(recipe(place, cut, *pairs, method=method), resume=True, quiet=True)
    assert again.result.resumed_from == "checkpoint-2"
    assert again.result.train_loss == whole.result.train_loss
    assert torch.equal(logits(load_run(cut).model), logits(load_run(whole.run).model))
    saved = json.loads((cut / "checkpoint-4" / "adapter_config.json").read_text())
    assert saved["parts"][-1]["pooling"] == "mean"

    other = recipe(place, cut, *pairs, "pooling=cls", method=method)
    (cut / "result.json").unlink()
    refused("the run to resume had pooling='mean', not 'cls'", lambda: train(other, resume=True))


@pytest.mark.more
def test_an_adapter_to_start_from_keeps_its_pooling(folder, place, tmp_path):
    start = {"from_adapter": str(folder("bert-lora") / "adapter")}
    asked = recipe(place, tmp_path / "run", "pooling=mean", "learning_rate=0", **start)
    run = train(asked, quiet=True).run
    assert torch.equal(logits(load_run(run).model), logits(load_run(folder("bert-lora")).model))
    other = recipe(place, tmp_path / "other", "pooling=cls", **start)
    message = "adapter was trained with pooling=mean, and the recipe has pooling=cls"
    refused(message, lambda: train(other, quiet=True))
    unsaid = recipe(place, tmp_path / "unsaid", "learning_rate=0", **start)
    kept = train(unsaid, quiet=True).run  # taken over from the run of the adapter
    assert torch.equal(logits(load_run(kept).model), logits(load_run(folder("bert-lora")).model))


@pytest.mark.more
def test_what_is_exported_scores_the_same_with_lorada_and_is_refused_without(elsewhere):
    wanted, (before, after) = elsewhere
    for said in before:
        assert re.match("KeyError: 'LORADA'|ValueError: .* model type `lorada`", said)
    for found, expected in zip(after, wanted.values(), strict=True):
        assert_close(torch.tensor(found), expected)


@pytest.mark.parametrize("name", ["bert-lora", "bert-full"])
def test_a_recipe_with_another_pooling_than_the_weights_is_refused(name, folder, tmp_path):
    copy = shutil.copytree(folder(name), tmp_path / "run")
    recipe = (copy / "recipe.yaml").read_text()
    said = "was trained with pooling=mean, and the recipe has|holds an adapter beside its base"
    for pooling in ("null", "cls"):
        (copy / "recipe.yaml").write_text(recipe.replace("pooling: mean", f"pooling: {pooling}"))
        refused(said, lambda: load_run(copy))


def test_a_pooling_from_nowhere_is_refused(folder, place, tmp_path):
    copy = shutil.copytree(folder("bert-lora"), tmp_path / "run")
    path = copy / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace('"pooling": "mean"', '"pooling": "max"'))
    refused("pooling='max': input should be 'mean' or 'cls'", lambda: load_run(copy))
    given = "pooling='max': input should be 'mean' or 'cls'"
    refused(given, lambda: recipe(place, tmp_path / "new", "pooling=max"))


def test_models_and_rows_without_such_a_head_are_refused_before_weights_are_read(place, tmp_path):
    llama_folder(place / "llama")
    bart_folder(place / "bart")
    rows_file(place / "prompts.jsonl", ROWS[:4])
    for folder in ("llama", "bart"):  # so that reading them would be another error
        (place / folder / "model.safetensors").write_bytes(b"")
    cases = {
        ("llama", "labels"): "pooling is for the heads of bert, .*, not of llama: leave it out",
        ("bart", "labels"): "pooling is for the heads of bert, .*, not of bart: leave it out",
        ("llama", "prompts"): "pooling=mean is what a head for classes or scores reads, and "
        ".*prompts.jsonl has prompt rows, which need none: leave it out",
    }
    for (model, rows), message in cases.items():
        asked = recipe(place, tmp_path / "run", "pooling=mean", model=model, rows=rows)
        refused(message, lambda asked=asked: prepare_training(asked))
        assert not (tmp_path / "run").exists()
