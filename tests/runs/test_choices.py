"""Choosing by likelihood: scores by hand, the shared cache beside whole sequences, training."""

import json

import pytest
import torch
from conftest import assert_close
from datasets import Dataset
from folders import byte_tokenizer, llama_folder, rows_file
from peft import get_peft_model
from stacks import randomise
from transformers import AutoModelForCausalLM

from lorada import LmamConfig, LoradaConfig, PrefixConfig
from lorada.attention.observation import observe, ratio_of, squared_norms
from lorada.inference.evaluate import alike, evaluate
from lorada.inference.load import load_run
from lorada.methods.callbacks.longlora import ShiftedAttention
from lorada.runs.data.dataset import ChoiceCollator
from lorada.runs.models.candidate_scores import (
    cached_scores,
    mean_log_likelihoods,
    needs_whole,
    only_last,
    sequence_scores,
    shares_prompts,
)
from lorada.runs.recipe import load_recipe
from lorada.runs.training.choice_trainer import choice_loss
from lorada.runs.training.train import train
from lorada.tasks.tokenize import IGNORED, EncodeOptions, encode

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


@pytest.fixture(params=STACKS)
def model(request, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(llama_folder(tmp_path / "llama")).eval()
    if STACKS[request.param] is None:
        return base
    adapted = get_peft_model(base, LoradaConfig(parts=STACKS[request.param])).eval()
    randomise(adapted)
    return adapted


def test_a_score_is_the_mean_log_probability_of_the_candidates_tokens():
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [5.0, 5.0]]])
    labels = torch.tensor([[IGNORED, 1, 0]])
    by_hand = (
        1 - torch.log1p(torch.tensor(1.0).exp()) + 2 - torch.log1p(torch.tensor(2.0).exp())
    ) / 2
    assert_close(mean_log_likelihoods(logits, labels), by_hand[None])


def test_the_loss_is_the_cross_entropy_of_the_scores_of_each_row():
    scores = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0])
    groups, answers = torch.tensor([2, 3]), torch.tensor([1, 0])
    first = -torch.log_softmax(torch.tensor([0.0, 1.0]), 0)[1]
    second = -torch.log_softmax(torch.tensor([2.0, 0.0, 0.0]), 0)[0]
    assert_close(choice_loss(scores, groups, answers), (first + second) / 2)


def gradients(score, model, batch):
    """Scores, and the gradients of their loss on everything that may train."""
    model.zero_grad()
    scores = score(model, batch)
    choice_loss(scores, batch["groups"], batch["answers"]).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return scores.detach(), found


def test_a_shared_cache_gives_the_scores_and_gradients_of_whole_sequences(model):
    batch = ChoiceCollator(TOKENIZER)(FEATURES)
    whole, expected = gradients(sequence_scores, model, batch)
    shared, found = gradients(cached_scores, model, batch)
    assert_close(shared, whole)
    assert found.keys() == expected.keys()
    assert any(g.abs().max() > 0 for g in found.values())
    for name, gradient in expected.items():
        assert_close(found[name], gradient)


@pytest.mark.parametrize("score", [cached_scores, sequence_scores])
def test_the_head_reads_tokens_of_all_rows_as_one_product(score, tmp_path):
    """A view of them would be multiplied with the frozen head sequence by sequence."""
    base = AutoModelForCausalLM.from_pretrained(llama_folder(tmp_path / "llama"))
    given = []
    base.lm_head.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        score(base, ChoiceCollator(TOKENIZER)(FEATURES))
    # The longest candidate has 11 tokens, and is predicted from those before each of them.
    assert [len(hidden[0]) for hidden in given] == ([1, 10] if score is cached_scores else [12])
    assert all(hidden.is_contiguous() for hidden in given)


def test_a_model_that_cuts_logits_by_number_alone_gets_a_number():
    class Model:
        def forward(self, input_ids, logits_to_keep: int = 0):
            raise NotImplementedError

    assert only_last(Model(), 2, torch.device("cpu")) == {"logits_to_keep": 2}


def test_a_map_that_counts_pads_needs_whole_sequences(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(llama_folder(tmp_path / "llama"))
    parts = [LmamConfig(rank=2, length=40, positions="raw")]
    assert needs_whole(get_peft_model(base, LoradaConfig(parts=parts)))


def test_a_map_on_the_end_needs_whole_sequences(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(llama_folder(tmp_path / "llama"))
    assert shares_prompts(base)
    parts = [LmamConfig(rank=2, length=40, align="end")]
    adapted = get_peft_model(base, LoradaConfig(parts=parts))
    assert needs_whole(adapted)
    assert not shares_prompts(adapted)
    assert not shares_prompts(torch.nn.DataParallel(base))


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_run_again_share_prompts_unless_they_are_reentrant(reentrant, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(llama_folder(tmp_path / "llama"))
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert shares_prompts(base) != reentrant


def test_longlora_trains_on_whole_sequences(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(llama_folder(tmp_path / "llama"))
    sparse = ShiftedAttention()
    sparse.on_train_begin(None, None, None, model=base)
    assert not shares_prompts(base)
    sparse.on_train_end(None, None, None, model=base)
    assert shares_prompts(base)


@torch.no_grad()
def test_scores_do_not_depend_on_the_rows_beside_them(model):
    pad = ChoiceCollator(TOKENIZER)
    together = sequence_scores(model, pad(FEATURES))
    alone = torch.cat([sequence_scores(model, pad([features])) for features in FEATURES])
    assert_close(together, alone)


@torch.no_grad()
def test_candidates_of_one_token_need_no_second_pass(model):
    candidates = [[[7], [9]], [[3], [4], [5]], [[6], [8]]]
    prompts = [f["prompt"] for f in FEATURES]
    features = [
        {"prompt": p, "candidates": c, "answer": 0}
        for p, c in zip(prompts, candidates, strict=True)
    ]
    batch = ChoiceCollator(TOKENIZER)(features)
    assert_close(cached_scores(model, batch), sequence_scores(model, batch))


def test_rows_are_scored_beside_rows_of_alike_length_and_candidates_of_alike_length():
    """Lengths of prompts and candidates; the longest rows come first, so that memory ends early."""
    sizes = [(30, 2), (20, 9), (10, 2), (40, 10), (20, 2), (10, 9)]
    dataset = Dataset.from_list(
        [{"candidates": [[7] * n, [8]], "length": prompt + n} for prompt, n in sizes]
    )
    assert alike(dataset, 2) == [[1, 3], [0, 4], [2, 5]]
    assert alike(dataset.remove_columns("candidates"), 2) == [[3, 0], [1, 4], [5, 2]]
    assert alike(dataset.select([]), 2) == []


@pytest.mark.fp64(False)
@pytest.mark.parametrize(
    "method",
    ["lorada_la", *(pytest.param(m, marks=pytest.mark.slow) for m in ("lora", "ist", "shira"))],
)
def test_a_run_learns_which_candidate_is_right(method, tmp_path):
    rows = [
        {"prompt": "ab"[n % 2] * 4, "candidates": [" no", " yes"], "answer": n % 2}
        for n in range(8)
    ]  # fmt: skip
    data = rows_file(tmp_path / "rows.jsonl", rows)
    small = ["shira.r=8"] if method == "shira" else ["lora.r=8", "lora.lora_dropout=0"]
    recipe = load_recipe(
        None,
        ["max_steps=60", "training.learning_rate=1e-2", "report_to=[]", *small,
         "training.train_sampling_strategy=group_by_length"],
        {"method": method, "model": str(llama_folder(tmp_path / "llama", num_hidden_layers=4)),
         "data": str(data), "output": str(tmp_path / "run")},
    )  # fmt: skip
    result = train(recipe, quiet=True).result
    assert result["form"] == "choice"
    assert evaluate(load_run(tmp_path / "run"), str(data))["accuracy"] == 100


@pytest.mark.fp64(False)
def test_the_best_model_is_the_one_that_chooses_right_most_often(tmp_path):
    rows = [
        {"prompt": "ab"[n % 2] * 4, "candidates": [" no", " yes", " so"][: 2 + n % 2],
         "answer": n % 2}
        for n in range(8)
    ]  # fmt: skip
    data = str(rows_file(tmp_path / "rows.jsonl", rows))
    every = ["eval_strategy=steps", "eval_steps=1", "save_steps=1", "load_best_model_at_end=true"]
    recipe = load_recipe(
        None,
        ["max_steps=8", "learning_rate=1e-2", "report_to=[]", "per_device_eval_batch_size=3",
         "lora.r=8", "lora.lora_dropout=0",
         "metric_for_best_model=accuracy", *every],
        {"method": "lora", "model": str(llama_folder(tmp_path / "llama")), "data": data,
         "eval_data": data, "output": str(tmp_path / "run")},
    )  # fmt: skip
    history = train(recipe, quiet=True).result["history"]
    measured = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    assert len(measured) == 8
    assert max(measured) > min(measured)
    assert evaluate(load_run(tmp_path / "run"), data)["accuracy"] == pytest.approx(max(measured))
    (last,) = (tmp_path / "run").glob("checkpoint-8")
    state = json.loads((last / "trainer_state.json").read_text())
    assert state["best_metric"] == pytest.approx(max(measured))  # and not a loss


@pytest.mark.fp64(False)
def test_rows_are_scored_in_batches_of_like_length_that_share_their_prompts(tmp_path, monkeypatch):
    rows = [
        {"prompt": "a" * size, "candidates": [" b", " c"], "answer": 0}
        for size in (9, 2, 14, 5, 11, 3, 7)
    ]
    data = str(rows_file(tmp_path / "rows.jsonl", rows))
    recipe = load_recipe(
        None,
        ["max_steps=1", "eval_batch_size=3", "report_to=[]"],
        {"method": "lora", "model": str(llama_folder(tmp_path / "llama")), "data": data,
         "output": str(tmp_path / "run")},
    )  # fmt: skip
    train(recipe, quiet=True)
    batches = []

    def shared(model, batch):
        batches.append(batch["attention_mask"].sum(-1).tolist())
        return cached_scores(model, batch)

    monkeypatch.setattr("lorada.inference.evaluate.cached_scores", shared)
    evaluate(load_run(tmp_path / "run"), data)
    assert [len(lengths) for lengths in batches] == [6, 6, 2]  # two candidates a row
    every = [length for lengths in batches for length in lengths]
    assert every == sorted(every, reverse=True)


def test_the_effect_size_is_that_of_whole_sequences(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(
        llama_folder(tmp_path / "llama", attention_dropout=0.0)
    )
    model = get_peft_model(base, LoradaConfig(parts=STACKS["lmam shorter than the prompts"]))
    randomise(model)
    model.train()
    batch, found = ChoiceCollator(TOKENIZER)(FEATURES[:1]), []
    for score in (sequence_scores, cached_scores):
        calls = []
        with observe(lambda seen, calls=calls: calls.append(squared_norms(seen))):
            score(model, batch)
        found.append(ratio_of(calls))
    # Whole sequences count the prompt once for each candidate.
    assert 0.8 < found[1] / found[0] < 1.25
