"""The command ``lorada predict``: where texts come from, what is printed, mistakes in one line."""

import io
import json
import sys

import pytest
from folders import ROWS, bert_folder, llama_folder, rows_file

SETTINGS = ["max_steps=2", "report_to=[]", "max_length=32", "max_new_tokens=4"]
LABELS = [{"text": "ab" * (i % 3 + 1), "label": "yn"[i % 2]} for i in range(8)]
RUNS = {
    "label": ("bert", "lora", "labels", []),
    "score": ("bert", "lora", "scores", []),
    "prompt": ("llama", "lora", "rows", []),
    "choice": ("llama", "lora", "choices", []),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("predict-command")
    llama_folder(place / "llama")
    bert_folder(place / "bert")
    rows_file(place / "rows.jsonl")
    rows_file(place / "labels.jsonl", LABELS)
    rows_file(place / "scores.jsonl", [{"text": row["text"], "score": 1} for row in LABELS])
    choice = {"prompt": "p", "candidates": ["a", "b"], "answer": 0}
    rows_file(place / "choices.jsonl", [choice] * 4)
    return place


def pipe(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_texts_come_from_the_command_a_file_or_a_pipe(call, folder, tmp_path, monkeypatch):
    run, texts = folder("label"), ["ab", "abab", "a\u2028b"]
    words = [word for text in texts for word in ("--text", text)]
    code, out, err = call("predict", run, *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [one["row"] for one in found] == [1, 2, 3]
    assert {*found[0]["probs"]} == {"n", "y"}
    data = rows_file(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    assert json.loads(call("predict", run, "--data", data, "--json")[1]) == found
    pipe(monkeypatch, "\n".join(texts) + "\n")
    assert json.loads(call("predict", run, "--json")[1]) == found


def test_labels_are_printed_as_a_table_with_the_next_command(call, folder):
    run = folder("label")
    code, out, err = call("predict", run, "--text", "ab [/x]", "--text", "b")
    assert code == 0, err
    assert "probability" in out
    assert "ab [/x]" in out
    assert f"next: lorada predict {run} --data FILE --output answers.csv" in out.replace("\n", "")


def test_scores_and_answers_are_printed(call, folder, place):
    code, out, err = call("predict", folder("score"), "--text", "ab")
    assert code == 0, err
    assert "score" in out
    asked = ROWS[1]["prompt"]
    code, out, err = call("predict", folder("prompt"), "--text", asked)
    assert code == 0, err
    written = call("generate", folder("prompt"), "--prompt", asked)[1].partition("next:")[0]
    assert out.partition("next:")[0] == written != ""
    code, out, err = call("predict", folder("choice"), "--data", place / "choices.jsonl")
    assert out.split()[0] in ("0", "1"), err


def test_a_file_is_written_and_named(call, folder, place, tmp_path):
    run, output = folder("label"), tmp_path / "new" / "answers.csv"
    words = ["predict", run, "--data", place / "labels.jsonl", "--output", output]
    code, out, err = call(*words)
    assert code == 0, err
    assert f"{output}: 8 rows" in out
    assert "next: lorada serve" in out
    first = output.read_text()
    code, _, err = call(*words)
    assert code == 2
    assert f"{output} is there already: choose another --output, or pass --overwrite" in err
    assert output.read_text() == first
    code, out, err = call(*words, "--overwrite", "--json")
    assert json.loads(out) == {"output": str(output), "rows": 8, "answered_before": 0}, err
    assert output.read_text() == first


MISTAKES = {
    "rows without a text": (
        "label",
        ["--data", "rows.jsonl"],
        "row 1 has fields prompt, response;",
    ),
    "no candidates": ("choice", ["--text", "a"], "has fields prompt; each needs prompt/candidates"),
    "an empty prompt": ("prompt", ["--text", ""], "a prompt is empty"),
    "nothing": ("label", [], "there is nothing to answer: pass --text TEXT, --data FILE, or a"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, call, folder, place, monkeypatch):
    monkeypatch.chdir(place)
    name, words, message = MISTAKES[case]
    pipe(monkeypatch, "")
    code, out, err = call("predict", folder(name), *words)
    assert (code, out) == (2, "")
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert message in line
    assert "Traceback" not in err
