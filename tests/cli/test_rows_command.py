"""``lorada rows``: what no method gets right, from a comparison that is there."""

import csv
import json

import numpy as np
import pytest
from made_up_rows import made_up_answers, write_classifiers


@pytest.fixture
def comparison(tmp_path):
    answers = made_up_answers(np.random.default_rng(3), clear=3.0)
    return answers, write_classifiers(tmp_path, answers)


def test_the_command_lists_rows_parts_and_votes_and_writes_a_table(call, comparison, tmp_path):
    answers, folder = comparison
    table = tmp_path / "rows.csv"
    code, shown, _ = call("rows", folder, "--by", "source", "--output", table)
    assert code == 0
    plain = " ".join(shown.split())
    assert "Of 300 held-out rows," in plain
    assert "look at these labels first" in plain
    assert "Only held-out rows are in this list" in plain
    assert "source book" in plain
    assert "class valid" in plain
    assert "What the seeds of a method answer together" in plain
    assert f"next: lorada report {folder}" in shown
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    first = [answers.flipped[int(row["row"]) - 1] for row in rows[:15]]
    assert np.mean(first) >= 0.9
    assert rows[0]["share_of_runs"] == "1.0"
    assert rows[0]["text"].startswith("Sentence ")


def test_json_has_all_of_it(call, comparison):
    _, folder = comparison
    found = json.loads(call("rows", folder, "--json")[1])
    assert found["metric"] == "accuracy"
    assert found["findings"]["runs"] == 6
    assert found["findings"]["rows"][0]["findings"] == ["wrong everywhere", "same wrong answer"]
    assert {one["by"] for one in found["slices"]} == {"class", "length"}
    assert found["votes"][0]["by"] == "mean probability"


def test_a_mistake_is_one_line(mistake, comparison, tmp_path):
    _, folder = comparison
    said = mistake("rows", folder, "--by", "sauce")
    assert (
        "no held-out row has a field 'sauce': their fields are label, source, text, words" in said
    )
    assert "rows.txt is no .csv file" in mistake("rows", folder, "--output", tmp_path / "rows.txt")
    (tmp_path / "rows.csv").touch()
    assert "is there already" in mistake("rows", folder, "--output", tmp_path / "rows.csv")
    assert "holds no comparison" in mistake("rows", tmp_path)
    (tmp_path / "test.jsonl").unlink()
    assert "are not as they were" in mistake("rows", folder)
