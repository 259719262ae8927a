"""Choosing by likelihood: scores by hand, the shared cache beside whole sequences, training."""

import json
from itertools import chain

import pytest
import torch
from conftest import assert_close
from folders import byte_tokenizer, llama_folder
from peft import get_peft_model
from stacks import randomise
from trained_runs import run_recipe
from transformers import AutoModelForCausalLM

from lorada import LmamConfig, LoradaConfig, PrefixConfig
from lorada.data.batches import collator
from lorada.data.tokenize import EncodeOptions, encode
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.training.models.candidate_scores import (
    cached_scores,
    needs_whole,
    only_last,
    sequence_scores,
)
from lorada.training.train import train
from lorada.training.trainer import choice_loss

pytestmark = pytest.mark.fp64

ROWS = [
    {"prompt": "is ice cold?", "candidates": [" yes", " not at all"], "answer": 0},
    {"prompt": "2+2", "candidates": [" 3", " 4", " five"], "answer": 1},
    {"prompt": "the sun is a much longer question", "candidates": [" a star", " x"], "answer": 0},
]
TOKENIZER = byte_tokenizer()
FEATURES = [e.features for e in encode(ROWS, "choice", TOKENIZER, EncodeOptions(64))]
STACKS = {
    "base": None,
    "lmam": [LmamConfig(rank=2, length=40)],
    "lmam shorter than the prompts": [LmamConfig(rank=2, length=6)],
    "prefix": [PrefixConfig(length=3)],
}


@pytest.fixture
def base(tmp_path):
    return AutoModelForCausalLM.from_pretrained(llama_folder(tmp_path / "llama")).eval()


@pytest.fixture(params=STACKS)
def model(request, base):
    if STACKS[request.param] is None:
        return base
    adapted = get_peft_model(base, LoradaConfig(parts=STACKS[request.param])).eval()
    randomise(adapted)
    return adapted


@pytest.mark.parametrize(("norm", "divisors"), [
    ("tokens", [[4, 8], [2, 2, 6]]), ("none", [[1, 1], [1, 1, 1]]),
    ("characters", [[3, 6], [1, 1, 4]]),
])  # fmt: skip
@torch.no_grad()
def test_a_score_is_divided_as_length_norm_says(norm, divisors, model):
    rows = [
        {"prompt": "is ice cold?", "candidates": [" yes", " not hé"], "answer": 0},
        {"prompt": "2+2", "candidates": [" 3", " 4", " five "], "answer": 1},
    ]
    options = EncodeOptions(64, length_norm=norm)
    features = [e.features for e in encode(rows, "choice", TOKENIZER, options)]
    assert [f["divisors"] for f in features] == divisors
    batch = collator("choice", TOKENIZER)(features)
    summed = {**batch, "divisors": torch.ones_like(batch["divisors"])}
    expected = sequence_scores(model, summed) / torch.tensor([*chain(*divisors)])
    assert_close(sequence_scores(model, batch), expected)
    assert_close(cached_scores(model, batch), expected)


def test_the_loss_is_the_cross_entropy_of_the_scores_of_each_row():
    scores = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0])
    groups, answers = torch.tensor([2, 3]), torch.tensor([1, 0])
    first = -torch.log_softmax(torch.tensor([0.0, 1.0]), 0)[1]
    second = -torch.log_softmax(torch.tensor([2.0, 0.0, 0.0]), 0)[0]
    assert_close(choice_loss(scores, groups, answers), (first + second) / 2)


def test_a_model_that_cuts_logits_by_number_alone_gets_a_number():
    class Model:
        def forward(self, input_ids, logits_to_keep: int = 0):
            raise NotImplementedError

    assert only_last(Model(), 2, torch.device("cpu")) == {"logits_to_keep": 2}


def test_a_map_that_counts_from_the_end_reads_whole_sequences(base):
    assert not needs_whole(base)
    parts = [LmamConfig(rank=2, length=40, align="end")]
    assert needs_whole(get_peft_model(base, LoradaConfig(parts=parts)))


@torch.no_grad()
def test_scores_do_not_depend_on_the_rows_beside_them(model):
    pad = collator("choice", TOKENIZER)
    together = sequence_scores(model, pad(FEATURES))
    alone = torch.cat([sequence_scores(model, pad([features])) for features in FEATURES])
    assert_close(together, alone)


@torch.no_grad()
def test_candidates_of_one_token_need_no_second_pass(model):
    candidates = [[[7], [9]], [[3], [4], [5]], [[6], [8]]]
    prompts = [f["prompt"] for f in FEATURES]
    features = [
        {"prompt": p, "candidates": c, "answer": 0, "divisors": list(map(len, c))}
        for p, c in zip(prompts, candidates, strict=True)
    ]
    batch = collator("choice", TOKENIZER)(features)
    assert_close(cached_scores(model, batch), sequence_scores(model, batch))


CANDIDATES = [" no", " yes", " so"]
ROW_FILES = {"llama": [{"prompt": "ab"[n % 2] * 4, "candidates": CANDIDATES[: 2 + n % 2],
                        "answer": n % 2} for n in range(8)]}  # fmt: skip


@pytest.mark.fp64(False)
def test_a_run_learns_which_candidate_is_right_and_keeps_the_best_model(place, tmp_path):
    data = str(place / "llama.jsonl")
    pairs = ["learning_rate=1e-2", "report_to=[]", "lora.r=8", "lora.lora_dropout=0"]
    pairs += ["eval_strategy=steps", "eval_steps=1", "save_steps=1", "load_best_model_at_end=true"]
    pairs += ["max_steps=12", "per_device_eval_batch_size=3", "metric_for_best_model=accuracy"]
    pairs += ["training.train_sampling_strategy=group_by_length"]
    asked = run_recipe(pairs, place, tmp_path / "run", method="lorada_la", eval_data=data)
    result = train(asked, quiet=True).result
    assert result.form == "choice"
    measured = [e["eval_accuracy"] for e in result.history if "eval_accuracy" in e]
    assert len(measured) == 12
    assert min(measured) < max(measured) == 100
    assert evaluate(load_run(tmp_path / "run"), data)["accuracy"] == 100
    state = json.loads((tmp_path / "run" / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_metric"] == 100  # and not a loss
