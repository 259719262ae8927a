"""Whole runs of methods by PEFT's names, and of sums with them."""

from functools import partial

import pytest
import torch
from folders import adapter_weights, llama_folder, refused, rows_file
from trained import QUICK, assert_same, before_its_end, run_recipe

from lorada.inference.load import load_run
from lorada.runs.result import read_result
from lorada.training.train import train

SUM = "vblora+unilora+tinylora+lora+lmam"


@pytest.fixture
def make(tmp_path):
    """Makes a recipe of a method on a tiny model with a few rows."""
    llama_folder(tmp_path / "llama")
    rows_file(tmp_path / "llama.jsonl")
    return partial(run_recipe, [*QUICK, "learning_rate=1e-2"], tmp_path)


@pytest.mark.parametrize("method", ["ia3", "frod", SUM])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(make, tmp_path, method):
    settings = ("max_steps=6", "save_steps=3")
    run = train(make(tmp_path / "run", *settings, method=method), quiet=True).run
    assert read_result(run)["settings_from"].startswith("not from the paper")
    cut = before_its_end(run, tmp_path / "cut")
    resumed = train(make(cut, *settings, method=method), resume=True, quiet=True)
    assert resumed.result["resumed_from"] == "checkpoint-3"
    assert_same(adapter_weights(cut), adapter_weights(run))


def test_a_run_is_loaded_and_another_starts_from_its_adapter(make, tmp_path):
    first = train(make(tmp_path / "first", "max_steps=3", method=SUM), quiet=True)
    ids = torch.arange(3, 23).reshape(2, 10)
    with torch.no_grad():
        expected = load_run(first.run).model(input_ids=ids).logits
    options = {"method": SUM, "from_adapter": str(first.run / "adapter")}
    still = make(tmp_path / "second", "max_steps=1", "learning_rate=0", **options)
    second = train(still, quiet=True)
    with torch.no_grad():
        assert torch.equal(load_run(second.run).model(input_ids=ids).logits, expected)
    third = make(tmp_path / "third", "vblora.topk=3", **options)
    refused("brings its own vblora part as it was trained", lambda: train(third, quiet=True))
