"""The programs of examples/ do what they say."""

import runpy

import pytest
import torch
from folders import ROWS, adapter_weights, llama_folder, rows_file
from paths import ROOT
from safetensors.torch import load_file
from trained_runs import run_recipe

from lorada.training.train import train


@pytest.mark.fp64(False)
def test_a_training_by_hand_learns_what_the_command_learns(tmp_path):
    llama_folder(tmp_path / "llama", attention_dropout=0.0)
    rows_file(tmp_path / "llama.jsonl", ROWS)
    program = runpy.run_path(str(ROOT / "examples/train_by_hand.py"))
    by_hand = tmp_path / "by hand"
    program["main"](tmp_path / "llama", tmp_path / "llama.jsonl", by_hand)
    recipe = run_recipe(["report_to=[]"], tmp_path, tmp_path / "run", method="lorada_la")
    train(recipe, quiet=True)
    learned = load_file(by_hand / "adapter_model.safetensors")
    expected = adapter_weights(tmp_path / "run")
    assert learned.keys() == expected.keys()
    # 15 steps of 1e-3 move a weight by up to 0.015; rounding is 1e-8 of a weight near 1.
    for name, weight in learned.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0, msg=name)
