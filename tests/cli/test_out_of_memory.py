"""The line where memory runs out: it names what helps with what was being done."""

import pytest
import torch
from trained_runs import QUICK
from transformers import LlamaForCausalLM, PreTrainedModel

from lorada.compare.jobs.job import last_line

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


def full(*args, **kwargs):
    raise torch.OutOfMemoryError(FULL)


SETTINGS = [*QUICK, "max_steps=1", "save_strategy=no", "training.disable_tqdm=true"]
RUNS = {"run": ("llama", "lora", "rows", [])}


@pytest.fixture
def train(place, tmp_path):
    """The words of a command that trains."""
    words = ["--model", place / "llama", "--data", place / "rows.jsonl"]
    return ["train", *words, "--output", tmp_path / "new", *SETTINGS]


def test_while_loading_fewer_bits_or_more_cards_help(folder, train, mistake, monkeypatch):
    run = folder("run")
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", full)
    for words in (train, ["evaluate", run, "--data", run.parent / "rows.jsonl"]):
        line = mistake(*words)
        assert "out of memory: the model does not fit: take quantization=nf4, or device_map" in line
        assert f"({FULL})" in line


def test_in_a_step_smaller_batches_help(train, mistake, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "forward", full)
    line = mistake(*train)
    assert "out of memory: take a smaller training.per_device_train_batch_size" in line


def test_while_held_out_rows_are_measured_their_batches_count(train, call, monkeypatch):
    forward = LlamaForCausalLM.forward

    def full_in_evaluation(self, *args, **kwargs):
        return forward(self, *args, **kwargs) if self.training else full()

    monkeypatch.setattr(LlamaForCausalLM, "forward", full_in_evaluation)
    monkeypatch.setattr("lorada.training.trainer.find_labelled_loss", lambda *given: None)
    code, _, line = call(*train, "dev_rows=4")
    assert code == 2
    assert "out of memory: take a smaller training.per_device_eval_batch_size" in line


@pytest.mark.parametrize("words", [["evaluate"], ["predict", "--text", "1 + 1 ="]])
def test_while_scoring_the_rows_at_once_count(folder, mistake, monkeypatch, words):
    run = folder("run")
    monkeypatch.setattr(LlamaForCausalLM, "forward", full)
    command, *options = words
    data = ["--data", run.parent / "rows.jsonl"] if command == "evaluate" else []
    line = mistake(command, run, *options, *data)
    assert "out of memory: take a smaller eval_batch_size (of a finished run, in its rec" in line


def test_a_job_of_a_comparison_says_it_too():
    assert last_line(torch.OutOfMemoryError(FULL)).startswith("out of memory: take a smaller train")
