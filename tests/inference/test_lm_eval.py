"""Candidates are chosen as lm-evaluation-harness chooses them, on rows that need no hub."""

import dataclasses
import importlib.util

import pytest
from lm_eval_task import CHOICES, task_file

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval not installed"
)

SETTINGS = ["lmam.length=6", "max_steps=8", "report_to=[]", "lmam.map_learning_rate=0.5"]
RUNS = {"choices": ("llama", "lmam", "choices", ["max_length=64"])}
ROW_FILES = {
    "choices": [{**row, "candidates": [f" {one}" for one in row["candidates"]]} for row in CHOICES]
}


@pytest.mark.more
def test_length_norm_chooses_as_lm_evals_acc_and_acc_norm_do(folder, place, tmp_path, monkeypatch):
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    picks = str(task_file(tmp_path).with_name("picks.yaml"))
    run = load_run(folder("choices"))
    model = HFLM(pretrained=run.model, tokenizer=run.tokenizer, batch_size=1)
    manager = TaskManager(include_defaults=False)
    theirs = simple_evaluate(model, tasks=[picks], task_manager=manager)["results"]["picks"]
    assert len({theirs[f"{name},none"] for name in ("acc", "acc_norm", "acc_bytes")}) == 3
    for norm, name in (("none", "acc"), ("characters", "acc_norm")):
        recipe = run.recipe.model_copy(update={"length_norm": norm})
        ours = evaluate(dataclasses.replace(run, recipe=recipe), str(place / "choices.jsonl"))
        assert ours["accuracy"] == pytest.approx(100 * theirs[f"{name},none"])
