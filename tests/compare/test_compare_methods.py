"""``lorada.compare_methods``: what the command does, from Python."""

import json

import pytest
from comparisons import model_and_rows
from folders import refused

import lorada

SETTINGS = ["max_steps=2", "max_length=32", "max_new_tokens=2", "training.report_to=[]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return model_and_rows(tmp_path_factory.mktemp("compare_methods"))


def call(place, output, **changes):
    """Compare on the tiny model, without a search."""
    options = {
        "data": str(place / "train.jsonl"), "held_out": str(place / "test.jsonl"), "seeds": [1],
        "trials": 0, "output": output, "settings": SETTINGS, "report": lambda line: None, **changes,
    }  # fmt: skip
    return lorada.compare_methods(str(place / "llama"), ["lora"], **options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1, 1]}, "--seeds names 1 twice"),
        ({"sedes": [1]}, "--sedes .*: extra inputs are not permitted"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(place, tmp_path, changes, said):
    refused(said, lambda: call(place, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_missing_is_named(place, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data file at none\.jsonl: pass --data FILE"):
        call(place, tmp_path / "out", data="none.jsonl")
    assert not (tmp_path / "out").exists()


@pytest.mark.more
def test_it_returns_what_the_report_holds_and_goes_on(place, tmp_path, jobs_here):
    first = call(place, tmp_path / "out")
    assert first == json.loads((tmp_path / "out" / "report.json").read_text())
    assert [line["label"] for line in first["lines"]] == ["lora"]
    refused("already holds a comparison", lambda: call(place, tmp_path / "out"))
    again = call(place, tmp_path / "out", resume=True)
    assert again["lines"] == first["lines"]
    refused("had --seeds=1, not 2", lambda: call(place, tmp_path / "out", resume=True, seeds=[2]))
