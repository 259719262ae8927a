"""``lorada predict``: the answers are those of evaluate and generate, whatever ends a process."""

import csv
import json
import math
import random
import shutil
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from folders import ROWS, refused, rows_file

from lorada.data.files.read_rows import read_rows
from lorada.data.rows.own_rows import rows_to_answer
from lorada.inference import predict as module
from lorada.inference.answer_rows import RowAnswer
from lorada.inference.evaluate import evaluate
from lorada.inference.generate import generate
from lorada.inference.load import load_run
from lorada.inference.predict import predict, predict_to
from lorada.runs.result import read_predictions
from lorada.support.files import json_lines

SETTINGS = [
    "max_steps=3", "learning_rate=0.1", "report_to=[]", "max_length=64", "max_new_tokens=5",
    "eval_batch_size=2", "save_strategy=no",
]  # fmt: skip
LENGTHS = random.Random(0).choices((1, 2, 5, 20, 59), k=22)
LABELS = [{"text": "ab"[i % 2] * n, "label": "xyz"[i % 3]} for i, n in enumerate(LENGTHS)]
SCORES = [{"text": row["text"], "text_pair": "b", "score": i / 2} for i, row in enumerate(LABELS)]
CHOICES = [
    {"prompt": f"{n}?" * (n % 3 + 1), "candidates": [" a", " no", " c"], "answer": n % 3}
    for n in range(7)
]
RUNS = {
    "label": ("bert", "lora", "labels", []),
    "score": ("bert", "lora", "scores", []),
    "choice": ("llama", "lora", "choices", []),
    "prompt": ("llama", "lorada_la", "prompts", ["lmam.init_weights=false"]),
    "messages": ("llama", "lora", "turns", []),
    "seq2seq": ("bart", "lora", "prompts", []),
    "text": ("llama", "lora", "texts", []),
}
ROW_FILES = {
    "labels": LABELS, "scores": SCORES, "choices": CHOICES, "prompts": ROWS[:9],
    "texts": [{"text": row["prompt"] * 4} for row in ROWS],
}  # fmt: skip
UNANSWERED = ("label", "score", "answer", "response")
WRITERS = ("prompt", "messages", "seq2seq", "text")


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of four rows."""
    monkeypatch.setattr(module, "PART", 2)


def asked(run, rows):
    return rows_to_answer(rows, "rows", run.form, run.labels, pairs=run.pairs)


def without_answers(name, place):
    rows = read_rows(place / f"{RUNS[name][2]}.jsonl")
    return [{k: v for k, v in row.items() if k not in UNANSWERED} for row in rows]


def answered_to(run, rows, output, **options):
    """Write a file of answers; how many of them were there before."""
    return predict_to(run, asked(run, rows), rows, output, **options)


def answers(run, rows):
    return [answer for part in predict(run, asked(run, rows)) for answer in part]


@pytest.mark.more
@pytest.mark.parametrize("name", ["label", "score", "choice", "prompt", "messages", "seq2seq"])
def test_answers_are_those_of_evaluate_part_by_part(name, folder, place, small_parts):
    run, rows = load_run(folder(name)), without_answers(name, place)
    evaluate(run, str(place / f"{RUNS[name][2]}.jsonl"))
    assert len(next(predict(run, asked(run, rows)))) == 4
    found = answers(run, rows)
    scored = read_predictions(run.folder)
    assert [one["row"] for one in found] == [line.row for line in scored]
    field = name if name in ("label", "score") else "answer"
    assert [one[field] for one in found] == [line.answer for line in scored]
    assert [one.get("cut", False) for one in found] == [line.cut for line in scored]
    if name == "choice":
        for one, row in zip(found, CHOICES, strict=True):
            assert one["candidate"] == row["candidates"][one["answer"]]
    if name == "label":
        for one, line, row in zip(found, scored, LABELS, strict=True):
            assert math.isclose(sum(one["probs"].values()), 1, rel_tol=1e-5)
            assert -math.log(one["probs"][row["label"]]) == pytest.approx(line.loss, rel=1e-4)
            assert one["label"] == max(one["probs"], key=one["probs"].get)


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_answers_as_generate_does(name, folder):
    run = load_run(folder(name))
    prompts = ["1 + 1 =", "2 +", "9 + 9 = 18. 1 + 7 ="]
    found = answers(run, [{"prompt": prompt} for prompt in prompts])
    assert [one["answer"] for one in found] == generate(run, prompts)


CHILD = """
import os, signal, sys
from lorada import cli
from lorada.inference import predict as module

module.PART = 2
whole = module.predict

def killed(run, rows, done=0):
    for number, part in enumerate(whole(run, rows, done)):
        if number == 2:
            with open(sys.argv[-1] + ".lorada-part", "a") as file:
                file.write('{"row": 9, "label": "?"}\\n{"row": 10, "la')
            os.kill(os.getpid(), signal.SIGKILL)
        yield part

module.predict = killed
cli.main()
"""


@pytest.mark.more
def test_a_killed_run_goes_on_and_writes_the_same_file(folder, place, tmp_path, small_parts):
    rows = rows_file(tmp_path / "rows.jsonl", without_answers("label", place))
    output, again = tmp_path / "answers.csv", tmp_path / "again.csv"
    words = ["predict", folder("label"), "--data", rows, "--output", output]
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, words)], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert not output.exists()
    assert (tmp_path / f"{output.name}.lorada-part").read_text().endswith('{"row": 10, "la')
    run = load_run(folder("label"))
    whole = read_rows(rows)
    assert answered_to(run, whole, output) == 8
    assert sorted(tmp_path.iterdir()) == sorted([rows, output])
    assert answered_to(run, whole, again) == 0
    assert output.read_bytes() == again.read_bytes()


@pytest.mark.more
def test_what_was_begun_with_other_rows_or_another_run_is_not_continued(
    folder, place, tmp_path, small_parts
):
    output, run = tmp_path / "answers.jsonl", load_run(folder("label"))

    def stopped(*given):
        yield next(predict(*given))
        raise KeyboardInterrupt

    def begin():
        """Stop behind the first part."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "predict", stopped)
            with pytest.raises(KeyboardInterrupt):
                answered_to(run, LABELS, output, overwrite=True)

    begin()
    assert answered_to(run, LABELS[1:], output) == 0
    begin()
    assert answered_to(run, LABELS, output, overwrite=True) == 4
    begin()
    moved = shutil.copytree(run.folder, tmp_path / "moved")
    assert answered_to(load_run(moved), LABELS, output, overwrite=True) == 4
    begin()
    weights = next((run.folder / "adapter").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes())  # of another training, as far as anybody knows
    assert answered_to(run, LABELS, output, overwrite=True) == 0


def test_of_an_unfinished_file_whole_parts_count_and_only_of_the_same_weights(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_text("those of one training")
    (tmp_path / "recipe.yaml").write_text("method: lora")
    run = SimpleNamespace(folder=tmp_path, recipe=SimpleNamespace(max_new_tokens=8))
    rows = SimpleNamespace(fingerprint="12ab", form="prompt", labels=[])
    key, part = module._key(run, rows), tmp_path / "answers.lorada-part"
    answers = [{"row": row, "answer": "yes"} for row in range(1, 6)]
    part.write_text(json_lines([{"of": key}, *answers]))
    assert module._answered_before(part, key, 2) == answers[:4]  # whose batches are whole
    (tmp_path / "adapter" / "weights").write_text("and those of the next")
    assert module._answered_before(part, module._key(run, rows), 2) == []


def test_an_empty_prompt_is_named(folder):
    run, rows = load_run(folder("prompt")), [{"prompt": "1"}, {"prompt": ""}]
    refused("prompt 2 of . is empty", lambda: answers(run, rows))


TOLD = [{"id": f"n{i}", **row, "tags": ["ä", i]} for i, row in enumerate(LABELS[:7])]


def read_back(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_answers_stand_beside_the_columns_of_their_rows(folder, tmp_path, caplog):
    run = load_run(folder("label"))
    lines, table = tmp_path / "answers.jsonl", tmp_path / "answers.csv"
    for output in (lines, table):
        answered_to(run, TOLD, output)
    said = "the rows have label: what is predicted is in predicted_label"
    lines_of = [one.getMessage() for one in caplog.records if one.name == module.__name__]
    assert lines_of == [said, said]
    own = answers(run, TOLD)
    columns = ["row", "id", "text", "label", "tags", "predicted_label"]
    for number, line in enumerate(read_back(lines)):
        assert list(line) == [*columns, "probs"]
        assert {name: line[name] for name in TOLD[0]} == TOLD[number]
        assert line["row"] == number + 1
        assert (line["predicted_label"], line["probs"]) == (
            own[number]["label"], pytest.approx(own[number]["probs"], rel=1e-6)
        )  # fmt: skip
    for cells, line in zip(read_back(table), read_back(lines), strict=True):
        assert list(cells) == [*columns, "prob_x", "prob_y", "prob_z"]
        assert (cells["row"], cells["id"]) == (str(line["row"]), line["id"])
        assert json.loads(cells["tags"]) == line["tags"]
        assert {k: float(cells[f"prob_{k}"]) for k in "xyz"} == line["probs"]


def test_half_a_character_of_a_column_is_written_as_a_question_mark(folder, tmp_path):
    rows = [{**ROWS[0], "note": "a \ud83d"}]
    output = tmp_path / "answers.jsonl"
    answered_to(load_run(folder("prompt")), rows, output)
    assert json.loads(output.read_text())["note"] == "a ?"


def test_lines_of_an_answer_stay_one_cell_and_those_that_were_cut_are_counted(
    folder, tmp_path, monkeypatch, caplog
):
    run, output = load_run(folder("prompt")), tmp_path / "answers.csv"
    said = 'a "b",\r\nc\u2028d\re'
    some = [RowAnswer(said, cut=False), RowAnswer("b", cut=True), RowAnswer("", cut=True)]
    monkeypatch.setattr(module, "answer_rows", lambda *_: enumerate(some))
    answered_to(run, [{"prompt": str(n)} for n in range(3)], output)
    with output.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["row", "prompt", "answer", "cut"], ["1", "0", said, "False"],
            ["2", "1", "b", "True"], ["3", "2", "", "True"],
        ]  # fmt: skip
    assert "2 of 3 answers were cut at 5 tokens" in caplog.text  # SETTINGS' max_new_tokens


def test_the_rows_themselves_are_not_written_over(folder, place, tmp_path):
    data = rows_file(tmp_path / "rows.jsonl", without_answers("label", place))
    source = f"{place / 'labels.jsonl'},{data}"
    before, run, rows = data.read_bytes(), load_run(folder("label")), read_rows(data)
    made = rows_to_answer(rows, source, run.form, run.labels)
    said = f"is where the rows are, {data}: choose another"
    refused(said, lambda: predict_to(run, made, rows, data, overwrite=True))
    assert data.read_bytes() == before


def test_half_a_pair_is_refused_by_a_run_that_learned_pairs(folder):
    run = load_run(folder("score"))
    assert run.pairs
    assert not load_run(folder("label")).pairs
    for half in ({"text": "a"}, {"text": "a", "text_pair": ""}, {"text": "a", "text_pair": None}):
        one, other = [half, half], [{"text": "a", "text_pair": "b"}, half]
        refused("rows row 1 has no text_pair, and this run has learned", partial(answers, run, one))
        said = "rows row [12] has (no text_pair|text/text_pair and rows row 2 has text)"
        refused(said, partial(answers, run, other))
