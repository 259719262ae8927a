"""Scores in any unit are learned alike, and every output is in the unit of the rows."""

import json
import sys
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from folders import bert_folder, byte_tokenizer, llama_folder, refused, rows_file
from programs import printed
from safetensors.torch import load_file
from trained_runs import QUICK, assert_same, before_its_end, run_recipe

from lorada.inference.evaluate import evaluate
from lorada.inference.export import export
from lorada.inference.load import load_run
from lorada.runs.result import read_result
from lorada.training.train import train
from lorada.training.trainer import ScoreScale

WORDS = ("awful", "poor", "fair", "good", "great")
UNITS = {
    "1 to 5": (1, 0), "1500 to 5500": (1000, 500), "1000 to 5000": (1000, 0), "years": (9, 1980),
}  # fmt: skip
# Model, method, and a unit beside 1 to 5: a head in an adapter, one of two layers, one that trains
# with all weights, and one without a bias, which cannot hold a shift.
CASES = {
    "bert-lora": ("bert", "lora", "1500 to 5500"),
    "roberta-lora": ("roberta", "lora", "1500 to 5500"),
    "bert-full": ("bert", "full", "1500 to 5500"),
    "llama-lora": ("llama", "lora", "1000 to 5000"),
}
SETTINGS = [
    *QUICK, "max_steps=60", "learning_rate=1e-2", "save_steps=20", "lr_scheduler_type=constant",
    "eval_strategy=steps", "eval_steps=20", "per_device_train_batch_size=10",
]  # fmt: skip


def graded(times: float, plus: float) -> list[dict]:
    """Texts of which one word decides the grade."""
    return [
        {"text": f"{WORDS[i % 5]} {'abc'[i % 3]}", "score": times * (1 + i % 5) + plus}
        for i in range(40)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("scores")
    bert_folder(place / "bert")
    llama_folder(place / "llama")
    ARCHITECTURES["roberta"](vocab_size=259, pad_token_id=0).save_pretrained(place / "roberta")
    byte_tokenizer().save_pretrained(place / "roberta")
    for unit, how in UNITS.items():
        rows_file(place / f"{unit}.jsonl", graded(*how))
    return place


def recipe(place: Path, case: str, unit: str, *pairs: str, output: object = "", **options: str):
    model, method, _ = CASES[case]
    given = {"model": model, "rows": unit, "method": method, **options}
    given["eval_data"] = str(place / f"{unit}.jsonl")
    return run_recipe(SETTINGS, place, place / (output or f"{case} {unit}"), *pairs, **given)


@pytest.fixture(scope="module")
def run(place):
    """The folder of a run, which is trained at its first use."""

    def trained(case: str, unit: str) -> Path:
        asked = recipe(place, case, unit)
        if not Path(asked.output).is_dir():
            train(asked, quiet=True)
        return Path(asked.output)

    return trained


@pytest.mark.more
@pytest.mark.parametrize("case", CASES)
def test_grades_are_learned_alike_in_every_unit(run, case):
    units = ("1 to 5", CASES[case][2])
    found = {unit: evaluate(load_run(run(case, unit))) for unit in units}
    first = found["1 to 5"]
    assert first["pearson"] > 90
    for unit in units:
        assert found[unit]["pearson"] == pytest.approx(first["pearson"], abs=0.2)
        result, (times, plus) = read_result(run(case, unit)), UNITS[unit]
        scale, sd = result.learned_scores, times * 2**0.5  # 2 is the variance of 1, 2, 3, 4, 5
        assert scale["sd"] == pytest.approx(sd)
        assert scale["mean"] == (0 if case == "llama-lora" else 3 * times + plus)
        losses = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
        assert found[unit]["loss"] == pytest.approx(losses[-1] * sd**2, rel=1e-3)


OTHERS = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, texts = sys.argv[1], sys.argv[2:]
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    found = [float(model(**tokenizer(text, return_tensors="pt")).logits) for text in texts]
assert not any(name.startswith("lorada") for name in sys.modules)
print(json.dumps(found))
"""


@pytest.mark.more
@pytest.mark.parametrize("case", CASES)
def test_an_exported_model_answers_in_the_unit_of_the_rows_without_lorada(run, tmp_path, case):
    folder = run(case, CASES[case][2])
    export(folder, tmp_path / "model")
    evaluate(load_run(folder))
    lines = (folder / "predictions.jsonl").read_text().splitlines()[:5]
    ours = [json.loads(line)["answer"] for line in lines]
    texts = [row["text"] for row in graded(1, 0)[:5]]
    found = json.loads(printed(sys.executable, "-c", OTHERS, tmp_path / "model", *texts))
    assert found == pytest.approx(ours, rel=1e-4)
    assert found[0] < 2000
    assert found[-1] > 4000


@pytest.mark.parametrize("case", ["bert-lora", "bert-full", "llama-lora"])
def test_a_run_that_was_resumed_is_the_same(run, place, tmp_path, case):
    whole = run(case, CASES[case][2])
    begun = before_its_end(whole, tmp_path / "begun")
    (checkpoint,) = begun.glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-40"
    asked = recipe(place, case, CASES[case][2], output=begun)
    assert train(asked, quiet=True, resume=True).result.resumed_from == checkpoint.name
    assert_same(weights_of(begun), weights_of(whole))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a run."""
    adapter = folder / "adapter" / "adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else folder / "model" / "model.safetensors")


@pytest.mark.more
def test_the_best_checkpoint_is_loaded_with_its_own_head(place, tmp_path):
    pairs = ("load_best_model_at_end=true", "eval_steps=10", "save_steps=10", "max_steps=30")
    asked = recipe(place, "bert-lora", "1500 to 5500", *pairs, output=tmp_path / "run")
    history = train(asked, quiet=True).result.history
    best = min(entry["eval_loss"] for entry in history if "eval_loss" in entry)
    found = evaluate(load_run(tmp_path / "run"))
    assert found["loss"] == pytest.approx(best * 2e6, rel=1e-3)


@pytest.mark.parametrize("case", ["bert-lora", "llama-lora"])
@pytest.mark.parametrize("source", ["adapter", "model"])
def test_a_run_that_starts_from_another_begins_where_that_ended(run, place, tmp_path, case, source):
    before = run(case, CASES[case][2])
    if source == "model":
        export(before, tmp_path / "model")
        changed = {"model": str(tmp_path / "model")}
    else:
        changed = {"from_adapter": str(before / "adapter")}
    slow = ("max_steps=1", "learning_rate=1e-9")
    asked = recipe(place, case, CASES[case][2], *slow, output=tmp_path / "again", **changed)
    train(asked, quiet=True)
    again, first = evaluate(load_run(tmp_path / "again")), evaluate(load_run(before))
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-3)


def test_scores_that_are_all_the_same_are_refused(place, tmp_path):
    rows = rows_file(tmp_path / "same.jsonl", [{"text": "a", "score": 3}] * 4)
    asked = recipe(place, "bert-lora", "1 to 5", data=str(rows), output="same")
    refused("same.jsonl has only the score 3: nothing can be learned", lambda: train(asked))


def test_checkpoints_whose_scores_are_standardised_are_not_uploaded(place):
    asked = recipe(place, "bert-lora", "1 to 5", "push_to_hub=true", output="pushed")
    refused("push_to_hub=true uploads checkpoints", lambda: train(asked))


def test_a_checkpoint_whose_head_has_no_unit_is_no_start(run, place, tmp_path):
    begun = before_its_end(run("bert-lora", "1500 to 5500"), tmp_path / "begun")
    (checkpoint,) = begun.glob("checkpoint-*")
    asked = recipe(place, "bert-lora", "1500 to 5500", output="from", from_adapter=str(checkpoint))
    refused("is a checkpoint, whose head learns other numbers", lambda: train(asked, quiet=True))


def test_a_decoder_says_that_it_cannot_hold_a_mean_far_from_0(place, caplog):
    train(recipe(place, "llama-lora", "years", "max_steps=1"), quiet=True)
    assert any("158 standard deviations from 0" in said for said in caplog.messages)


def test_a_model_that_has_learned_deviations_answers_in_the_unit_of_the_rows():
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 1)), torch.randn(5, 3)
    learned = model(x).detach()
    ScoreScale("0", mean=100.0, sd=10.0).fold(model)
    assert model(x).detach() == pytest.approx(100 + 10 * learned, rel=1e-5)
