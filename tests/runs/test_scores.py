"""Scores in any unit are learned alike, and every output is in the unit of the rows."""

import json
import sys
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from folders import adapter_weights, bert_folder, byte_tokenizer, llama_folder, refused, rows_file
from programs import printed
from safetensors.torch import load_file
from trained import QUICK, assert_same, before_its_end
from transformers import AutoModelForSequenceClassification

from lorada.inference.evaluate import evaluate
from lorada.inference.export import export
from lorada.inference.load import load_run
from lorada.runs.folder.result import read_result
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

WORDS = ("awful", "poor", "fair", "good", "great")
UNITS = {"1 to 5": (1, 0), "20 to 100": (20, 0), "1000 to 5000": (1000, 0), "years": (9, 1980)}
# Model and method: a head with a bias in an adapter, one of two layers, one that trains with all
# weights or with a part of them, one without a bias, one of which the base knows scores already.
CASES = {
    "bert-lora": ("bert", "lora"),
    "roberta-lora": ("roberta", "lora"),
    "bert-full": ("bert", "full"),
    "bert-bitfit": ("bert", "bitfit"),
    "llama-lora": ("llama", "lora"),
    "knows-lora": ("knows", "lora"),
}
SETTINGS = [
    *QUICK, "max_steps=60", "learning_rate=1e-2", "save_steps=20", "lr_scheduler_type=constant",
    "eval_strategy=steps", "eval_steps=20", "per_device_train_batch_size=10",
]  # fmt: skip


def graded(times: float, plus: float, count: int = 40) -> list[dict]:
    """Texts of which one word decides the grade."""
    return [
        {"text": f"{WORDS[i % 5]} {'abc'[i % 3]}", "score": times * (1 + i % 5) + plus}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("scores")
    bert_folder(place / "bert")
    bert_folder(place / "knows", num_labels=1)
    llama_folder(place / "llama")
    ARCHITECTURES["roberta"](vocab_size=259, pad_token_id=0).save_pretrained(place / "roberta")
    byte_tokenizer().save_pretrained(place / "roberta")
    for unit, how in UNITS.items():
        rows_file(place / f"{unit}.jsonl", graded(*how))
    return place


def recipe(place: Path, case: str, unit: str, *pairs: str, output: str = ""):
    model, method = CASES[case]
    rows = str(place / f"{unit}.jsonl")
    options = {
        "model": str(place / model), "method": method, "data": rows, "eval_data": rows,
        "output": str(place / (output or f"{case} {unit}")),
    }  # fmt: skip
    return load_recipe(None, [*SETTINGS, *pairs], options)


@pytest.fixture(scope="module")
def run(place):
    """The folder of a run, which is trained at its first use."""

    def trained(case: str, unit: str) -> Path:
        asked = recipe(place, case, unit)
        if not Path(asked.output).is_dir():
            train(asked, quiet=True)
        return Path(asked.output)

    return trained


def answers(run: Path) -> torch.Tensor:
    """What a run answers to its rows."""
    lines = (run / "predictions.jsonl").read_text().splitlines()
    return torch.tensor([json.loads(line)["answer"] for line in lines], dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_grades_are_learned_alike_in_every_unit(run, case):
    found = {unit: evaluate(load_run(run(case, unit))) for unit in UNITS}
    assert min(metrics["pearson"] for metrics in found.values()) > 98
    losses = {
        unit: read_result(run(case, unit))["history"][-1]["eval_loss"] for unit in UNITS
    }
    for unit, (times, _) in UNITS.items():
        sd = times * 2**0.5  # of the grades 1 to 5
        assert found[unit]["loss"] == pytest.approx(losses[unit] * sd**2, rel=1e-3)
        assert read_result(run(case, unit))["learned_scores"]["sd"] == pytest.approx(sd)
    if case not in ("llama-lora", "knows-lora"):
        first = answers(run(case, "1 to 5"))
        for unit, (times, plus) in UNITS.items():
            again = (answers(run(case, unit)) - plus) / times
            torch.testing.assert_close(again, first, atol=0.1, rtol=0)


