"""The quickstart, from one command to the table, with a tiny model."""

import re

import pytest
import yaml
from folders import llama_folder, rows_file

from lorada.experiments import quickstart
from lorada.runs.models.count import count_parameters


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
