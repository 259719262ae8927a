"""The smallest run of scripts that measure one thing: what it compares and what it writes."""

import json
import sys

import measure_generated_answers
import measure_training_growth
import planted_mistakes
import pytest
import train_every_method
from folders import bert_folder, llama_folder, split_file
from library.measuring import Request
from programs import printed


@pytest.mark.slow
def test_refilled_answers_are_those_of_padded_batches(tmp_path):
    settings = measure_generated_answers.Settings(
        count=6, shortest=4, longest=20, limit=6, batch=2, size=3, layers=1, repetitions=1,
        threads=1,
    )  # fmt: skip
    file, page = tmp_path / "rows.json", tmp_path / "page.md"
    measure_generated_answers.run(Request(settings, file, page, ["even"]))
    row = json.loads(file.read_text())["rows"]["even"]
    assert row["same"] == row["rows"] == 6
    assert row["changed_by_adapter"]
    assert "| 1 to 6 tokens" in page.read_text()
    assert "6 of 6" in page.read_text()


@pytest.mark.more
def test_a_curve_of_a_training_step_has_both_losses_at_each_point(tmp_path, monkeypatch):
    few = measure_training_growth.Curve("vocabulary", [(4, 128, 64), (4, 128, 128)])
    monkeypatch.setattr(measure_training_growth, "CURVES", {"vocabulary": few})
    settings = measure_training_growth.Settings(layers=1, repetitions=1, threads=1, factor=8)
    file, page = tmp_path / "growth.json", tmp_path / "growth.md"
    measure_training_growth.run(Request(settings, file, page))
    points = json.loads(file.read_text())["rows"]["vocabulary"]["points"]
    sizes = [(p["rows"], p["length"], p["vocabulary"]) for p in points]
    assert sizes == [(1, 16, 64), (1, 16, 128)]
    assert all(p["lorada_ms"] > 0 and p["plain_ms"] > 0 for p in points)
    assert "| vocabulary | 64 to 128 |" in page.read_text()
    assert (tmp_path / "training-vocabulary.png").is_file()


@pytest.mark.slow
def test_each_method_is_trained_for_a_row_and_what_is_done_is_not_repeated(tmp_path):
    asked = [{"instruction": f"is {n} even?", "output": "true"} for n in range(16)]
    judged = [{"sentence": f"{n} stars", "label": int(n > 3)} for n in range(16)]
    for split in ("train", "test"):
        split_file(tmp_path / "data/commonsense_llm_adapters/boolq", split, asked)
    for split in ("train", "validation"):
        split_file(tmp_path / "data/glue/sst2", split, judged)
    llama = llama_folder(tmp_path / "llama", num_hidden_layers=1)
    bert = bert_folder(tmp_path / "bert")
    file, page = tmp_path / "methods.json", tmp_path / "methods.md"
    command = [sys.executable, train_every_method.__file__, "--results", file, "--page", page]
    command += ["--decoder", llama, "--encoder", bert, "--data-dir", tmp_path / "data"]
    command += ["--steps", 2, "--methods"]
    printed(*command, "ist,adalora")
    results = json.loads(file.read_text())
    assert results["rows"]["ist"]["error"].startswith("exit code")  # IST has no choice of one layer
    row = results["rows"]["adalora"]
    assert (row["model"], row["steps"], row["rates"]) == ("bert", 2, [1e-3])
    assert min(row["trainable"], row["seconds_per_step"], row["peak_memory_bytes"]) > 0
    assert row["loss_after"] != row["loss_before"]
    assert ") | failed: exit code 1" in page.read_text()
    row["loss_after"] = 0.0
    file.write_text(json.dumps(results))
    assert "| 0.0000 | yes |" in printed(*command, "adalora")


@pytest.mark.parametrize("room", sorted({one.room for one in planted_mistakes.read_mistakes()}))
def test_each_planted_mistake_can_still_be_planted_and_is_python(room):
    mistakes = [one for one in planted_mistakes.read_mistakes() if one.room == room]
    assert len({one.key for one in mistakes}) == len(mistakes)
    for mistake in mistakes:
        path = planted_mistakes.HOME / planted_mistakes.SOURCE / mistake.file
        assert mistake.file.startswith(f"{room}/")
        compile(mistake.planted(path.read_text(encoding="utf-8")), mistake.file, "exec")
        for name in (room, *mistake.tests, *mistake.further):
            assert (planted_mistakes.HOME / "tests" / name).exists(), name


def test_a_planted_mistake_is_caught_by_a_test_and_taken_out_again(tmp_path):
    (tmp_path / "src/lorada/sums").mkdir(parents=True)
    (tmp_path / "tests/sums").mkdir(parents=True)
    source = tmp_path / "src/lorada/sums/add.py"
    source.write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests/sums/test_add.py").write_text(
        "import pytest\nfrom add import add\n\n\n"
        "def test_of_zero():\n    assert add(1, 0) == 1\n\n\n"
        "@pytest.mark.more\ndef test_of_two():\n    assert add(1, 2) == 3\n"
    )
    (tmp_path / "conftest.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "sys.path.insert(0, str(Path(__file__).parent / 'src/lorada/sums'))\n"
    )
    outcomes = {}
    for after in ("a - b", "b + a", "a * b"):
        mistake = planted_mistakes.Mistake("sums", "sums/add.py", "a + b", after, "wrong sums")
        outcomes[after] = planted_mistakes.try_mistake(tmp_path, mistake)
    assert [one.caught_by for one in outcomes.values()] == ["second", None, "first"]
    assert outcomes["a * b"].test == "tests/sums/test_add.py::test_of_zero"
    assert source.read_text() == "def add(a, b):\n    return a + b\n"
    caught = outcomes["a - b"].test, outcomes["a * b"].test
    assert planted_mistakes.refuted(tmp_path, outcomes.values()) == set()
    source.write_text("def add(a, b):\n    return a * b\n")
    assert planted_mistakes.refuted(tmp_path, outcomes.values()) == {*caught}


def test_a_mistake_whose_text_is_gone_or_there_twice_is_not_planted(tmp_path, capsys):
    (tmp_path / "src/lorada/sums").mkdir(parents=True)
    (tmp_path / "src/lorada/sums/add.py").write_text("a + b\n")
    fits, gone, nowhere = (
        planted_mistakes.Mistake("sums", file, before, "0", "wrong sums")
        for file, before in (("sums/add.py", "a + b"), ("sums/add.py", "c"), ("sums/no.py", "a"))
    )
    assert [*planted_mistakes.plantable([gone, fits, nowhere], tmp_path)] == [fits]
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("planted_mistakes.yaml: sums/add.py has 0 times: c")
    assert "no.py" in said[1]
    mistake = planted_mistakes.Mistake("sums", "sums/add.py", "a + b", "a - b", "wrong sums")
    with pytest.raises(ValueError, match=r"has 2 times: a \+ b"):
        mistake.planted("a + b\na + b\n")
    table = planted_mistakes.table([mistake], {mistake.key: planted_mistakes.Outcome(None)})
    assert table.splitlines()[1].split() == ["sums", "1", "0", "0", "1", "0", "0"]
    assert "survives: sums/add.py: a + b" in table
