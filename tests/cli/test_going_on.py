"""``lorada train --from``: a training that goes on from an earlier run."""

import json
import re

import pytest
import yaml
from folders import ROWS, adapter_weights, rows_file
from torch import equal

RUNS = {"first": ("llama", "lora", "rows", ["lora.r=4"]), "whole": ("llama", "full", "rows", [])}
SETTINGS = ["max_steps=2", "report_to=[]", "max_length=24", "logging_steps=1", "save_strategy=no"]


@pytest.fixture
def new_rows(tmp_path):
    return rows_file(tmp_path / "new rows.jsonl", ROWS[::-1][:8])


@pytest.mark.parametrize("part", ["", "adapter"])
def test_a_run_is_gone_on_with_as_it_was_trained(
    folder, place, works, new_rows, tmp_path, part, caplog
):
    source = folder("first") / part
    words = ["train", "--from", source, "--data", new_rows, "--output", tmp_path / "run"]
    out, _ = works(*words, "max_steps=1", "report_to=[]", "learning_rate=1e-30")
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["from_adapter"] == str(folder("first") / "adapter")
    assert (recipe["model"], recipe["method"]) == (str(place / "llama"), "lora")
    assert recipe["max_length"] == 24
    assert f"taken over from {folder('first')}: method=lora model=" in caplog.text
    assert f"LORA from {folder('first') / 'adapter'} on" in out
    old, new = adapter_weights(folder("first")), adapter_weights(tmp_path / "run")
    assert all(equal(old[name], new[name]) for name in old)  # at this rate nothing moves


def test_what_is_said_wins_over_the_earlier_run(folder, works, new_rows, tmp_path):
    words = ["train", "--from", folder("first"), "--data", new_rows, "--output", tmp_path / "run"]
    out, _ = works(*words, "max_length=30", "--dry-run")
    assert "max_length=30" in out


@pytest.mark.parametrize("more", [["--dry-run"], ["max_steps=1", "report_to=[]"]])
def test_parts_that_the_method_does_not_have_are_said(
    folder, works, new_rows, tmp_path, more, caplog
):
    words = ["train", "--from", folder("first"), "--method", "ia3", "--data", new_rows]
    out, _ = works(*words, "--output", tmp_path / "run", *more)
    adapter = folder("first") / "adapter"
    said = f"this trains LORA from {adapter}, and new IA3 beside it: method=ia3 alone has no LORA"
    assert said in out + caplog.text
    if "--dry-run" not in more:
        saved = json.loads((tmp_path / "run" / "result.json").read_text())
        assert sorted(saved["adapter_parts"]) == ["IA3", "LORA"]
        assert re.search(r"(IA3 and LORA|LORA and IA3) from ", out)
        assert re.search(r"loss \d+\.\d+ in the first step\n", out)


def test_a_run_without_an_adapter_is_refused_with_what_to_do(folder, mistake, new_rows, tmp_path):
    words = ["--data", new_rows, "--output", tmp_path / "run"]
    line = mistake("train", "--from", folder("whole"), *words)
    assert f"give --model {folder('whole') / 'model'} in place of --from" in line
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "recipe.yaml").write_text((folder("first") / "recipe.yaml").read_text())
    assert f"train --resume --output {begun}" in mistake("train", "--from", begun, *words)


def test_one_logged_loss_is_said_once(place, works, tmp_path):
    words = ["--method", "lora", "--model", place / "llama", "--data", place / "rows.jsonl"]
    out, _ = works("train", *words, "--output", tmp_path / "run", "max_steps=3", "report_to=[]")
    assert re.search(r"loss \d+\.\d{3}, the mean of 3 steps \(logging_steps=1 logs each\)", out)
