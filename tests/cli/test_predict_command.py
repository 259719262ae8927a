"""The command ``lorada predict``: where texts come from, what is printed, mistakes in one line."""

import re
import shlex
import shutil

import pytest
from folders import ROWS, rows_file

from lorada.cli.shared import app

SETTINGS = ["max_steps=2", "report_to=[]", "max_length=32", "max_new_tokens=4"]
RUNS = {
    "label": ("bert", "lora", "labels", []),
    "score": ("bert", "lora", "scores", []),
    "prompt": ("llama", "lora", "rows", []),
    "choice": ("llama", "lora", "choices", []),
    "pair": ("bert", "lora", "pairs", []),
}
ROW_FILES = {
    "choices": [{"prompt": "p", "candidates": ["a", "b"], "answer": 0}] * 4,
    "pairs": [{"text": "a" * n, "text_pair": "b", "label": n % 2} for n in range(1, 5)],
}


@pytest.mark.more
def test_texts_come_from_the_command_or_a_file(json_of, folder, tmp_path):
    run, texts = folder("label"), ["ab", "abab", "a\u2028b"]
    words = [word for text in texts for word in ("--text", text)]
    found = json_of("predict", run, *words)
    assert [one["row"] for one in found] == [1, 2, 3]
    assert {*found[0]["probs"]} == {"n", "y"}
    data = rows_file(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    assert json_of("predict", run, "--data", data) == found


def test_labels_are_printed_as_a_table_with_the_next_command(works, folder):
    run = folder("label")
    out, _ = works("predict", run, "--text", "ab [/x]", "--text", "b")
    assert "probability" in out
    assert "ab [/x]" in out
    assert f"next: lorada predict {run} --data FILE --output answers.csv" in out.replace("\n", "")


@pytest.mark.more
def test_scores_and_answers_are_printed(works, folder, place):
    out, _ = works("predict", folder("score"), "--text", "ab")
    assert "score" in out
    asked = ROWS[1]["prompt"]
    out, _ = works("predict", folder("prompt"), "--text", asked)
    written = works("generate", folder("prompt"), "--prompt", asked)[0].partition("next:")[0]
    assert out.partition("next:")[0] == written != ""
    out, _ = works("predict", folder("choice"), "--data", place / "choices.jsonl")
    assert out.split()[:2] in (["0", "a"], ["1", "b"])


def test_a_file_is_written_and_named(works, json_of, mistake, folder, place, tmp_path):
    run, output = folder("label"), tmp_path / "new" / "answers.csv"
    words = ["predict", run, "--data", place / "labels.jsonl", "--output", output]
    columns = "row,text,label,predicted_label,prob_n,prob_y"
    out, _ = works(*words)
    assert f"{output}: 9 rows" in out
    assert "next: lorada export" in out  # no server answers with a class
    first = output.read_text()
    assert first.splitlines()[0] == columns
    there = f"{output} is there already: choose another --output, or pass --overwrite"
    assert there in mistake(*words)
    assert output.read_text() == first
    found = json_of(*words, "--overwrite")
    assert found == {"output": str(output), "rows": 9, "answered_before": 0}
    assert output.read_text() == first
    one = rows_file(tmp_path / "one.jsonl", [{"text": "ab"}])
    out, _ = works("predict", run, "--data", one, "--output", tmp_path / "one.csv")
    assert out.startswith(f"{tmp_path / 'one.csv'}: 1 row\n")


MISTAKES = {
    "label --data rows.jsonl": "row 1 has fields prompt, response;",
    "pair --text a": "--text row 1 has no text_pair, and this run has learned pairs of texts: pass",
    "choice --text a": "has fields text; each needs prompt/candidates",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line(typed, mistake, folder, place, monkeypatch):
    monkeypatch.chdir(place)
    name, *words = shlex.split(typed)
    assert MISTAKES[typed] in mistake("predict", folder(name), *words)


@pytest.mark.parametrize("command", [one.callback.__name__ for one in app.registered_commands])
def test_a_flag_that_is_off_anyway_has_no_twin(command, works):
    out, _ = works(command, "--help")
    # Texts of rows are neither on nor off: a page has them unless --no-text is given.
    assert set(re.findall(r"--no-[a-z-]+", out)) <= {"--no-text"}


@pytest.mark.more
def test_several_runs_vote_and_those_that_learned_something_else_are_refused(
    works, json_of, mistake, folder, place, tmp_path
):
    run, texts = folder("label"), ("--text", "ab", "--text", "abab")
    copy = shutil.copytree(run, tmp_path / "seed2")
    alone, together = json_of("predict", run, *texts), json_of("predict", f"{run},{copy}", *texts)
    for one, both in zip(alone, together, strict=True):
        assert both["votes"] == 2
        assert both["label"] == one["label"]
        assert both["probs"] == pytest.approx(one["probs"])
    output = tmp_path / "answers.csv"
    words = ("predict", f"{run},{copy}", "--data", place / "labels.jsonl", "--output", output)
    out, _ = works(*words)
    assert f"{output}: " in out.replace("\n", "")
    assert output.read_text().splitlines()[0].endswith("votes,prob_n,prob_y")
    assert "is there already" in mistake(*words)
    said = mistake("predict", f"{run},{folder('score')}", *texts)
    assert "a vote is of runs that learned the same" in said
    assert "is named twice" in mistake("predict", f"{run},{run}", *texts)
