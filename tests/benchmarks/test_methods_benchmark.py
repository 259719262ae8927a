"""``benchmarks/train_every_method.py`` as it is run, on tiny models and invented rows."""

import json
import sys

import pytest
import train_every_method
from folders import bert_folder, llama_folder, split_file
from methods.test_method_contract import PLUGGED
from programs import printed

from lorada import METHODS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data in the layout that the benchmark reads, and two tiny models."""
    place = tmp_path_factory.mktemp("bench")
    asked = [{"instruction": f"is {n} even?", "output": "true"} for n in range(16)]
    judged = [{"sentence": f"{n} stars", "label": int(n > 3)} for n in range(16)]
    for split in ("train", "test"):
        split_file(place / "data/commonsense_llm_adapters/boolq", split, asked)
    for split in ("train", "validation"):
        split_file(place / "data/glue/sst2", split, judged)
    llama_folder(place / "llama", num_hidden_layers=1)
    bert_folder(place / "bert")
    return place


def options(place):
    """Of a benchmark that writes and reads nothing but what is here."""
    found = ["--results", place / "methods.json", "--page", place / "methods.md"]
    return [str(x) for x in (*found, "--decoder", place / "llama", "--encoder", place / "bert")]


@pytest.mark.slow
def test_each_method_is_a_row_and_what_is_done_is_not_repeated(place):
    command = (sys.executable, train_every_method.__file__, *options(place))
    command += ("--data-dir", place / "data", "--steps", 2, "--methods")
    printed(*command, "ist,adalora")
    rows = json.loads((place / "methods.json").read_text())["rows"]
    assert rows["ist"]["error"].startswith("exit code")  # of one layer IST has nothing to choose
    assert "IST" in rows["ist"]["error"]
    row = rows["adalora"]
    assert (row["model"], row["steps"], row["rates"]) == ("bert", 2, [1e-3])
    assert row["trainable"] > 0
    assert row["seconds_per_step"] > 0
    assert row["peak_memory_bytes"] > 2**27
    assert row["loss_after"] != row["loss_before"]
    page = (place / "methods.md").read_text()
    assert "[`adalora`](https://arxiv.org/abs/2303.10512) | bert | SST-2 |" in page
    assert ") | failed: exit code 1" in page

    rows["adalora"]["loss_after"] = 0.0
    kept = {**json.loads((place / "methods.json").read_text()), "rows": rows}
    (place / "methods.json").write_text(json.dumps(kept))
    assert "| 0.0000 | yes |" in printed(*command, "adalora")


def test_no_method_is_left_out(place, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        train_every_method.main([*options(place), "--methods", "lorra"])
    said = capsys.readouterr().err.splitlines()[-1]
    names = said.partition("is none of ")[2].split(", ")
    assert set(names) == {*METHODS, *(f"{name}+lmam" for name in PLUGGED)}
