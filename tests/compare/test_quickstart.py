"""The quickstart, from one command to the table, with a tiny model."""

import os
import re
import signal
from types import SimpleNamespace

import pytest
import yaml
from folders import adapter_weights, llama_folder, rows_file
from trained import assert_same
from transformers import TrainerCallback

from lorada.compare import quickstart
from lorada.runs.result import read_result
from lorada.training.parameter_counts import count_parameters


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    rows = str(rows_file(tmp_path / "rows.jsonl"))
    recipe = {
        "method": "lorada_la", "model": str(llama_folder(tmp_path / "llama")), "data": rows,
        "eval_data": rows, "output": "unused", "max_new_tokens": 4,
        "training": {"max_steps": 3, "logging_steps": 1, "report_to": []},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(quickstart, "RECIPE", str(tmp_path / "tiny.yaml"))
    return tmp_path


def test_the_quickstart_compares(tiny, works):
    out, _ = works("quickstart", "--output", tiny / "out", "--overwrite")
    assert "next: lorada generate" in out
    assert re.findall(r"│ (before|lora|lorada_la) ", out) == ["before", "lora", "lorada_la"]
    assert "36 held-out rows" in out
    for method in ("lora", "lorada_la"):
        assert (tiny / "out" / method / "adapter" / "adapter_model.safetensors").is_file()


class Press(TrainerCallback):
    """Presses Ctrl-C after the first step, when the others have been told of its end."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def watched(monkeypatch):
    """The methods that are trained; one at a time may be interrupted."""
    seen, plain = SimpleNamespace(trained=[], pressed=None), quickstart.train

    def train(recipe, **options):
        seen.trained.append(recipe.method)
        return plain(recipe, **options, callbacks=[Press()] * (recipe.method == seen.pressed))

    monkeypatch.setattr(quickstart, "train", train)
    return seen


@pytest.mark.parametrize("pressed", ["lora", "lorada_la"])
def test_a_quickstart_that_was_interrupted_goes_on_where_it_was(
    tiny, watched, call, works, pressed
):
    words = "quickstart", "--overwrite", "--output", tiny / "out"
    watched.pressed = pressed
    code, _, err = call(*words)
    assert (code, "stopped and saved: the same command goes on" in err) == (130, True)
    watched.pressed = None
    watched.trained.clear()
    works(*words)
    assert watched.trained == (["lora", "lorada_la"] if pressed == "lora" else ["lorada_la"])
    assert read_result(tiny / "out" / pressed)["resumed_from"] == "checkpoint-2"
    works("quickstart", "--output", tiny / "whole")
    for method in ("lora", "lorada_la"):
        found, whole = (adapter_weights(tiny / name / method) for name in ("out", "whole"))
        assert_same(found, whole)


def test_a_quickstart_that_has_finished_is_shown_again_or_begun_anew(tiny, watched, works, mistake):
    words = "quickstart", "--output", tiny / "out"
    works(*words)
    assert "36 held-out rows" in works(*words)[0]
    assert watched.trained == ["lora", "lorada_la"]
    works(*words, "--overwrite")
    assert watched.trained == ["lora", "lorada_la"] * 2
    recipe = tiny / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("max_steps: 3", "max_steps: 2"))
    (tiny / "out" / "lorada_la" / "result.json").unlink()
    assert "start again with --overwrite" in mistake(*words)
    works(*words, "--overwrite")
    assert watched.trained == ["lora", "lorada_la"] * 3


def test_the_quickstart_as_json_has_every_number_of_the_table(tiny, json_of):
    comparison = json_of("quickstart", "--output", tiny / "out")
    before, lora, ours = comparison["rows"]
    assert before["parameters"] == 0
    assert 0 < lora["parameters"] <= ours["parameters"]
    assert ours["effect_size"] > 0


def test_lora_gets_the_largest_rank_within_the_budget(tiny):
    model = str(tiny / "llama")
    budget = count_parameters("lorada_la", model, [])["trainable"]
    rank = int(quickstart.largest_lora(model, budget)[0].partition("=")[2])
    within, above = (
        count_parameters("lora", model, [f"lora.r={r}"])["trainable"] for r in (rank, rank + 1)
    )
    assert within <= budget < above
