"""Whole runs of methods by PEFT's names, and of sums with them."""

import pytest
import torch
from folders import adapter_weights, bert_folder, llama_folder, rows_file

from lorada.runs.folder.result import read_result
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

SETTINGS = [
    "training.per_device_train_batch_size=4", "training.report_to=[]", "training.logging_steps=1",
    "max_length=32", "training.learning_rate=1e-2",
]  # fmt: skip
SUM = "vblora+unilora+tinylora+lora+lmam"


@pytest.fixture
def make(tmp_path):
    """Makes a recipe of a method on a tiny model with a few rows."""
    models = {"llama": llama_folder(tmp_path / "llama"), "bert": bert_folder(tmp_path / "bert")}
    rows = rows_file(tmp_path / "rows.jsonl")

    def made(method, output, *overrides, model="llama", **options):
        given = {"method": method, "model": str(models[model]), "data": str(rows)}
        given |= {"output": str(tmp_path / output), **options}
        return load_recipe(None, [*SETTINGS, *overrides], given)

    return made


@pytest.mark.parametrize("method", ["ia3", "frod", SUM])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(make, method):
    recipe = make(method, "run", "max_steps=6", "save_steps=3")
    run = train(recipe, quiet=True).run
    expected = adapter_weights(run)
    assert read_result(run)["settings_from"].startswith("not from the paper")
    (run / "result.json").unlink()
    for checkpoint in run.glob("checkpoint-6"):
        checkpoint.rename(run / "left")
    resumed = train(recipe, resume=True, quiet=True)
    assert resumed.result["resumed_from"] == "checkpoint-3"
    assert expected.keys() == adapter_weights(run).keys()
    assert all(torch.equal(tensor, adapter_weights(run)[key]) for key, tensor in expected.items())
