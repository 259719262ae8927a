"""GLUE: metrics by hand, and two runs."""

import json
from math import sqrt

import pytest
import torch
from conftest import SAME
from folders import bert_folder, split_file
from sample_rows import samples

from lorada.data.scoring.metrics import accuracy, accuracy_and_f1, correlations, matthews
from lorada.data.tasks import TASKS
from lorada.inference.evaluate import evaluate_tasks
from lorada.inference.load import load_run
from lorada.runs.result import read_predictions
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

ROWS = {name: samples(name)[0]["row"] for name in ("stsb", "mnli")}


def recipe(tmp_path, *settings, task):
    fixed = {"model": str(tmp_path / "bert"), "task": task, "data_dir": str(tmp_path),
             "method": "full", "output": str(tmp_path / "run")}  # fmt: skip
    common = ["report_to=[]", "save_strategy=no", "max_length=48", "max_steps=2"]
    return load_recipe(None, [*common, *settings], fixed)


def rows_of(labels):
    return [{"label": label} for label in labels]


# Of "yes": 3 found rightly, 1 wrongly, 2 missed; 4 rows are rightly "no".
GIVEN = ["yes"] * 3 + ["yes"] + ["no"] * 2 + ["no"] * 4
RIGHT = ["yes"] * 3 + ["no"] + ["yes"] * 2 + ["no"] * 4


def test_accuracy_f1_and_matthews_by_hand():
    assert accuracy(GIVEN, rows_of(RIGHT)) == {"accuracy": 70.0}
    for positive, hits, wrong in (("yes", 3, 3), ("no", 4, 3)):
        found = accuracy_and_f1(GIVEN, rows_of(RIGHT), positive)
        assert found["f1"] == pytest.approx(100 * 2 * hits / (2 * hits + wrong))
    by_hand = (3 * 4 - 1 * 2) / sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    assert matthews(GIVEN, rows_of(RIGHT))["matthews"] == pytest.approx(100 * by_hand)


def test_correlations_by_hand():
    given, right = [1.0, 2.0, 4.0, 3.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]
    found = correlations(given, [{"score": score} for score in right])
    # Deviations from the means 2.6 and 2: the sum of products is 5, those of squares 5.2 and 10.
    assert found["pearson"] == pytest.approx(100 * 5 / sqrt(5.2 * 10))
    # Ranks 1, 2, 5, 3.5, 3.5 of what was given, for the two threes share theirs.
    assert found["spearman"] == pytest.approx(100 * 6.5 / sqrt(9.5 * 10))


@pytest.mark.parametrize("same", ["yes", "no"])
def test_one_class_alone_has_no_matthews_correlation_and_f1_of_none_is_nothing(same):
    given = [same] * len(RIGHT)
    assert matthews(given, rows_of(RIGHT)) == {"matthews": 0.0, "accuracy": 50.0}
    assert matthews(given, rows_of(given)) == {"matthews": 0.0, "accuracy": 100.0}
    f1 = accuracy_and_f1(given, rows_of(RIGHT), "yes")["f1"]
    assert f1 == pytest.approx(100 * 2 * 5 / 15 if same == "yes" else 0)


@pytest.mark.fp64
def test_sts_b_is_trained_and_scored_as_a_regression(tmp_path):
    bert_folder(tmp_path / "bert")
    rows = [{**ROWS["stsb"], "sentence2": "a" * n, "label": n / 2} for n in range(1, 9)]
    for split in ("train", "validation"):
        split_file(tmp_path / "glue" / "stsb", split, rows)
    train(recipe(tmp_path, "dtype=float64", task="stsb"), quiet=True)
    run = load_run(tmp_path / "run")
    assert (run.form, run.labels, run.model.config.num_labels) == ("score", (), 1)
    scores = evaluate_tasks(run)["stsb"]
    assert list(scores) == ["n", "pearson", "spearman", "loss", "sha256", "answers_sha256"]
    read = [TASKS["stsb"].protocols["classify"].convert(row) for row in rows]
    batch = run.tokenizer(
        [row["text"] for row in read], [row["text_pair"] for row in read],
        padding=True, return_tensors="pt",
    ).to(run.device)  # fmt: skip
    with torch.no_grad():
        given = run.model(**batch).logits.flatten().cpu()
    right = torch.tensor([row["score"] for row in read])
    assert scores["loss"] == pytest.approx(float(((given - right) ** 2).mean()), rel=SAME)
    assert scores["pearson"] == pytest.approx(correlations(given.tolist(), read)["pearson"])


def test_mnli_is_trained_once_and_scored_on_both_of_its_splits(tmp_path):
    bert_folder(tmp_path / "bert")
    row = ROWS["mnli"]
    split_file(tmp_path / "glue" / "mnli", "train", [{**row, "label": n % 3} for n in range(6)])
    # One text throughout, so one class is given throughout: the splits cannot be mixed up.
    matched = [{**row, "label": n % 3} for n in range(3)]
    split_file(tmp_path / "glue" / "mnli", "validation_matched", matched)
    train(recipe(tmp_path, task="mnli"), quiet=True)
    run = load_run(tmp_path / "run")
    assert (run.form, run.model.config.num_labels) == ("label", 3)
    assert run.labels == TASKS["mnli"].protocols["classify"].labels
    batch = run.tokenizer(row["premise"], row["hypothesis"], return_tensors="pt").to(run.device)
    with torch.no_grad():
        given = int(run.model(**batch).logits.argmax())
    mismatched = [{**row, "label": given}] * 5
    split_file(tmp_path / "glue" / "mnli", "validation_mismatched", mismatched)
    scores = evaluate_tasks(run, with_text=True)
    assert list(scores) == ["mnli_matched", "mnli_mismatched"]
    lines = read_predictions(run.folder)
    assert [line.rows for line in lines] == ["mnli_matched"] * 3 + ["mnli_mismatched"] * 5
    assert {line.text for line in lines} == {f"{row['premise']}\n{row['hypothesis']}"}
    numbers = [(s["n"], s["accuracy"]) for s in scores.values()]
    assert numbers == [(3, pytest.approx(100 / 3)), (5, 100)]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"] == scores
