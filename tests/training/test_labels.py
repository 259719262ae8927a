"""Texts with several labels: a sigmoid for each, in training, scores, predictions and exports."""

import csv
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from folders import bert_folder, byte_tokenizer, llama_folder, refused, rows_file
from trained_runs import QUICK, run_recipe
from transformers import AutoModelForSequenceClassification, pipeline

from lorada.data.files.read_rows import read_rows
from lorada.data.forms.row_forms import convert_rows
from lorada.data.rows.own_rows import rows_to_answer
from lorada.explore.page_data import compute_page_data, pair_sentences
from lorada.inference.evaluate import evaluate
from lorada.inference.export import export
from lorada.inference.load import load_run
from lorada.inference.predict import predict
from lorada.runs.result import ScoringMetric, read_predictions, read_result
from lorada.training.inputs import prepare_training
from lorada.training.train import train

NAMES = ("cold", "loud", "red")
SETTINGS = [*QUICK, "max_steps=60", "learning_rate=1e-2", "per_device_train_batch_size=8"]


def labelled() -> list[dict]:
    """Texts of the names of their labels, in all eight sets of three, of several lengths."""
    sets = [[name for i, name in enumerate(NAMES) if number >> i & 1] for number in range(8)]
    return [
        {"text": " ".join(["a" * times, *labels]), "labels": labels}
        for times in range(1, 5)
        for labels in sets
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("labels")
    bert_folder(place / "bert")
    llama_folder(place / "llama")
    rows_file(place / "rows.jsonl", labelled())
    return place


@pytest.fixture(scope="module", params=["bert-lora", "llama-lora", "bert-full"])
def run(place, request) -> Path:
    model, method = request.param.split("-")
    output = place / request.param
    rows = str(place / "rows.jsonl")
    return train(
        run_recipe(SETTINGS, place, output, rows="rows", model=model, method=method,
                   eval_data=rows),
        quiet=True,
    ).run  # fmt: skip


def probabilities(run: Path, texts: list[str]) -> list[dict[str, float]]:
    """What ``lorada predict`` says of some texts."""
    loaded = load_run(run)
    given = [{"text": text} for text in texts]
    rows = rows_to_answer(given, "rows", "labels", loaded.labels)
    return [answer["probs"] for part in predict(loaded, rows) for answer in part]


def test_labels_are_learned_scored_and_kept_by_their_names(run):
    result = read_result(run)
    assert (result.form, result.labels) == ("labels", [*NAMES])
    assert result.metric == ScoringMetric(name="f1", reason="")
    losses = [entry["loss"] for entry in result.history]
    assert losses[-1] < losses[0] < 0.9  # at first about log 2 for each label
    scores = evaluate(load_run(run))
    assert [*scores][:3] == ["n", "f1", "micro_f1"]
    assert scores["threshold"] == 0.5
    assert {f"f1_{name}" for name in NAMES} <= scores.keys()
    lines = read_predictions(run)
    assert sum(line.score for line in lines) / len(lines) == pytest.approx(scores["f1"])
    assert all(set(line.answer) <= set(NAMES) for line in lines)


def test_the_loss_is_the_mean_log_loss_of_each_decision(run):
    rows = labelled()
    probs = probabilities(run, [row["text"] for row in rows])
    right = torch.tensor([[float(name in row["labels"]) for name in NAMES] for row in rows])
    found = torch.tensor([[each[name] for name in NAMES] for each in probs])
    loss = evaluate(load_run(run))["loss"]
    assert F.binary_cross_entropy(found, right).item() == pytest.approx(loss, rel=1e-4)


def test_an_export_gives_the_same_probabilities_in_plain_transformers(run, tmp_path):
    texts = ["aa cold", "aaa loud red", "a"]
    export(run, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {str(index): name for index, name in enumerate(NAMES)}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    label = pipeline("text-classification", model=model, tokenizer=byte_tokenizer(), top_k=None)
    for each, expected in zip(label(texts), probabilities(run, texts), strict=True):
        found = {one["label"]: one["score"] for one in each}
        assert found == pytest.approx(expected, abs=1e-4)


def test_explore_shows_the_probability_of_each_label_by_itself(place, run):
    if not (run / "adapter").is_dir():
        return  # explore is of adapters
    text = "a cold red"
    (shown,) = compute_page_data(load_run(run), pair_sentences([text], None))["run"]["shown"]
    expected = probabilities(run, [text])[0]
    assert dict(shown["next"]["with"]) == pytest.approx(expected, abs=1e-4)
    assert sum(expected.values()) > 1.2


def test_an_empty_cell_of_a_table_means_no_label(place, works, json_of, tmp_path):
    cells = [json.dumps(row["labels"]) if row["labels"] else "" for row in labelled()]
    texts = [row["text"] for row in labelled()]
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "labels"), *zip(texts, cells, strict=True)])
    read, form = convert_rows(read_rows(table), str(table))
    assert form == "labels"
    assert read == [{**row, "labels": sorted(row["labels"])} for row in labelled()]
    run = tmp_path / "run"
    works("train", "--method", "lora", "--model", place / "bert", "--data", table, "--output", run,
          *QUICK, "max_steps=1", f"eval_data={table}")  # fmt: skip
    assert json_of("evaluate", run)["n"] == 32
    answered = json_of("predict", run, "--data", table)
    assert answered[0]["text"] == texts[0]


def test_rows_with_nothing_to_tell_apart_are_refused_before_weights_are_loaded(place):
    """In the dry run too, which prepares a training and goes no further."""
    for rows, message in (
        ([{"text": "a", "labels": ["x", "y"]}] * 3, "same labels .x, y.: nothing can be learned"),
        ([{"text": "a", "labels": []}] * 3, "has the same labels .none."),
        ([{"text": "a", "label": "x"}] * 3, "only the label 'x': a classifier needs two or more"),
        ([{"text": "a", "score": 3}] * 3, "only the score 3: nothing can be learned"),
    ):
        rows_file(place / "same.jsonl", rows)
        recipe = run_recipe([], place, place / "none", rows="same", model="bert", method="lora")
        refused(f"same.jsonl.*{message}", lambda asked=recipe: prepare_training(asked))


def test_label_smoothing_is_refused_for_labels(place):
    settings = [*QUICK, "label_smoothing_factor=0.1"]
    recipe = run_recipe(settings, place, place / "none", rows="rows", model="bert", method="lora")
    refused("label_smoothing_factor=0.1 is for classes and texts, and .* has labels rows",
            lambda: train(recipe, quiet=True))  # fmt: skip


def test_a_label_that_training_did_not_know_is_refused(run, place):
    other = rows_file(place / "other.jsonl", [{"text": "a", "labels": ["blue"]}])
    refused("has the label 'blue'; training knew cold, loud, red",
            lambda: evaluate(load_run(run), str(other)))  # fmt: skip
