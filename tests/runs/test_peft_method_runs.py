"""Whole runs of methods by PEFT's names, and of sums with them."""

import pytest
import torch
from folders import adapter_weights, bert_folder, llama_folder, rows_file

from lorada.inference.load import load_run
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


def test_a_run_is_loaded_and_another_starts_from_its_adapter(make):
    first = train(make(SUM, "first", "max_steps=3"), quiet=True)
    ids = torch.arange(3, 23).reshape(2, 10)
    with torch.no_grad():
        expected = load_run(first.run).model(input_ids=ids).logits
    adapter = str(first.run / "adapter")
    options = {"from_adapter": adapter}
    second = train(make(SUM, "second", "max_steps=1", "learning_rate=0", **options), quiet=True)
    with torch.no_grad():
        assert torch.equal(load_run(second.run).model(input_ids=ids).logits, expected)
    with pytest.raises(ValueError, match="brings its own vblora part as it was trained"):
        train(make(SUM, "third", "vblora.topk=3", **options), quiet=True)
