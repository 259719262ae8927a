"""Tokenizers that give a prompt no token, or have none to fill short rows with."""

import json

import pytest
from folders import CHAT, ROWS, bart_folder, byte_tokenizer, llama_folder, refused, rows_file
from tokenizers import normalizers
from trained_runs import QUICK, run_recipe
from transformers import PreTrainedTokenizerFast

from lorada.inference.evaluate import evaluate
from lorada.inference.generate import generate
from lorada.inference.load import load_run
from lorada.training.train import train

NOTHING = "☃☃"  # which the tokenizers here leave out
CHOICES = [
    {"prompt": "a" * (1 + n), "candidates": [" b", " cde"], "answer": n % 2} for n in range(4)
]
USUAL = {"pad_token": "<p>", "bos_token": "<s>", "eos_token": "<e>"}


def forgetful(folder, **special):
    """The byte tokenizer of a folder, which leaves snowmen out, with other special tokens."""
    backend = byte_tokenizer().backend_tokenizer
    backend.normalizer = normalizers.Replace("☃", "")
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {f"{name}_id": getattr(fast, f"{name}_id") for name in USUAL}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokens")
    forgetful(llama_folder(place / "llama"), **USUAL)
    forgetful(bart_folder(place / "bart"), **USUAL)
    forgetful(llama_folder(place / "unk"), unk_token="<s>")
    forgetful(llama_folder(place / "none"))
    rows_file(place / "rows.jsonl", ROWS[:8])
    rows_file(place / "choices.jsonl", CHOICES)
    return place


def trained(place, output, model, rows="rows", *pairs):
    settings = [*QUICK, "max_steps=2", "save_strategy=no", "max_new_tokens=2", *pairs]
    asked = run_recipe(settings, place, output, model=model, rows=rows, method="lora")
    return load_run(train(asked, quiet=True).run)


@pytest.mark.parametrize("model", ["llama", "bart"])
def test_a_prompt_without_a_token_is_named(place, tmp_path, model):
    run, said = trained(place, tmp_path / "run", model), f"the prompt '{NOTHING}' has no token"
    refused(said, lambda: generate(run, [NOTHING]))
    refused(said, lambda: generate(run, ["1 + 2 =", NOTHING, "a"]))
    assert len(generate(run, [f"a{NOTHING}b", "1"])) == 2


@pytest.mark.parametrize(("rows", "pairs"), [("choices", ()), ("rows", ("packing=true",))])
def test_a_tokenizer_without_pad_and_end_fills_rows_with_another_special_token(
    place, tmp_path, rows, pairs
):
    run = trained(place, tmp_path / "run", "unk", rows, *pairs)
    assert run.tokenizer.pad_token == "<s>"
    assert evaluate(run, str(place / f"{rows}.jsonl"))["n"] > 0


def test_a_tokenizer_without_any_special_token_is_refused_in_one_line(place, tmp_path):
    said = "no token to fill short rows with.*give it a pad_token"
    refused(said, lambda: trained(place, tmp_path / "run", "none", "choices"))
    assert not (tmp_path / "run").exists()
