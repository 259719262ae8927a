"""Every method at its smallest size, where a budget may lead, trains, loads and is scored."""

import math

import pytest
from folders import bert_folder, rows_file

from lorada import METHODS
from lorada.compare.sizes import size_for
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

LABELS = [{"text": "ab" * (i % 5 + 1), "label": "ny"[i % 2]} for i in range(16)]
STEPS = ["max_steps=3", "max_length=16", "per_device_train_batch_size=8", "training.report_to=[]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("smallest")
    bert_folder(place / "bert")
    rows_file(place / "rows.jsonl", LABELS)
    return place


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.parts])
def test_the_smallest_size_trains_and_is_scored(place, tmp_path, name):
    rows = str(place / "rows.jsonl")
    given = {
        "method": name, "model": str(place / "bert"), "data": rows, "eval_data": rows,
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    recipe = load_recipe(None, STEPS, given)
    sized = size_for(recipe, "1")
    trained = train(recipe.model_copy(update={"parts": sized.parts}), quiet=True)
    assert trained.result["parameters"]["trainable"] == sized.counts["trainable"]
    assert math.isfinite(evaluate(load_run(trained.run))["loss"])
