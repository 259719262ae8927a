"""Long sequences: windows against a loop, perplexity by hand, maps at the end, a whole run."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import SAME, assert_close
from folders import byte_tokenizer, llama_folder, refused, split_file
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lorada import LmamConfig
from lorada.cli.train_commands import show_training
from lorada.data.benchmarks.long_sequence import window_starts
from lorada.data.tokenize import EncodeOptions, document_ids, windows
from lorada.inference.evaluate import evaluate_tasks
from lorada.inference.load import load_run
from lorada.inference.perplexity import window_losses
from lorada.training.load_recipe import load_recipe
from lorada.training.models.loading import load_config, load_model, stretched
from lorada.training.train import train

TOKENIZER = byte_tokenizer()
TEXTS = ["Let x be a number.", "Then x + 1 is another number.", "Hence there is no last one."]


def starts_by_loop(tokens, length, stride):
    found, start = [], 0
    while start + length <= tokens:
        found.append(start)
        start += stride
    return found


@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 40))
def test_windows_begin_every_stride_tokens_as_long_as_they_are_full(tokens, length, stride):
    expected = starts_by_loop(tokens, length, stride)
    if not expected:
        with pytest.raises(ValueError, match=f"{tokens} tokens together, .* no window of {length}"):
            window_starts(tokens, length, stride)
    else:
        assert window_starts(tokens, length, stride) == expected


@given(st.integers(60, 4000), st.integers(1, 40), st.integers(1, 80))
def test_some_windows_are_spread_evenly_over_all_of_them(tokens, stride, most):
    every = window_starts(tokens, 60, stride)
    some = window_starts(tokens, 60, stride, most)
    assert len(some) == min(most, len(every))
    assert some[0] == 0
    assert set(some) <= set(every)
    steps = [(b - a) // stride for a, b in pairwise(some)]
    assert max(steps, default=0) - min(steps, default=0) <= 1
    # The last one is no farther from the end of all than the others from one another.
    assert (every[-1] - some[-1]) // stride <= math.ceil(len(every) / len(some))


def test_documents_are_joined_with_the_end_token_and_cut_into_windows_of_which_the_last_is_short():
    rows = [{"text": text} for text in TEXTS]
    stream = [i for row in rows for i in document_ids(row, TOKENIZER)]
    assert TOKENIZER.decode(stream) == "".join(f"{text}<e>" for text in TEXTS)
    starts = range(0, len(stream), 16)
    for full in (False, True):  # a benchmark leaves the last one out
        packed = list(windows(rows, TOKENIZER, EncodeOptions(16, full=full)))
        ids = [one.features["input_ids"] for one in packed]
        assert ids == [stream[start : start + 16] for start in starts][: -1 if full else None]
        assert all(one.features["labels"] == one.features["input_ids"] for one in packed)
    (alone,) = windows(rows, TOKENIZER, EncodeOptions(999, full=True))  # unless it is the only one
    assert alone.features["input_ids"] == stream


@pytest.mark.fp64
@pytest.mark.parametrize("slice_", [1, 5, 512])
def test_losses_in_slices_are_those_of_the_whole_window(slice_, monkeypatch):
    monkeypatch.setattr("lorada.inference.perplexity.SLICE", slice_)
    logits, ids = torch.randn(2, 12, 96), torch.randint(3, 96, (2, 12))
    log_p = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])
    assert_close(window_losses(logits, ids), -log_p.mean((1, 2)))


def recipe(tmp_path, *settings, method="longlora+lmam", **options):
    fixed = [
        "max_length=32", "max_steps=3", "training.report_to=[]", "eval_lengths=[16,48]",
        "training.logging_steps=1", *settings,
    ]  # fmt: skip
    given = {
        "method": method, "task": "proof_pile", "model": str(tmp_path / "llama"),
        "data_dir": str(tmp_path / "data"), "output": str(tmp_path / "run"), **options,
    }  # fmt: skip
    rows = [{"text": f"{n}: {text}", "meta": "{}"} for n in range(4) for text in TEXTS]
    for source in ("redpajama_arxiv", "proof_pile_books"):
        for split in ("train", "test"):
            split_file(tmp_path / "data/long_sequence" / source, split, rows)
    llama_folder(tmp_path / "llama")
    return load_recipe(None, fixed, given)


END = ("lmam.align=end", "lmam.length=12")


@pytest.mark.fp64
def test_a_run_of_longlora_with_a_map_at_the_end_is_scored_as_by_whole_forwards(tmp_path):
    settings = [*END, "training.learning_rate=1e-2", "dtype=float64"]
    trained = train(recipe(tmp_path, *settings), quiet=True)
    assert trained.result.form == "text"
    run = load_run(tmp_path / "run")
    (part,) = [p for p in run.model.peft_config["default"].parts if isinstance(p, LmamConfig)]
    assert (part.align, part.length) == ("end", 12)
    scores = evaluate_tasks(run)["proof_pile"]

    rows = [{"text": f"{number}: {text}"} for number in range(4) for text in TEXTS]
    stream = torch.tensor([i for row in rows for i in document_ids(row, run.tokenizer)])
    assert scores["n"] == 12
    for length in (16, 48):
        starts = starts_by_loop(len(stream), length, 256)
        means = [
            run.model(input_ids=ids[None], labels=ids[None]).loss.item()
            for ids in (stream[start : start + length] for start in starts)
        ]
        assert scores[f"windows_{length}"] == len(starts) > 1
        expected = math.exp(sum(means) / len(means))
        assert scores[f"perplexity_{length}"] == pytest.approx(expected, rel=SAME)

    saved = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["proof_pile"]
    assert saved == scores
    base = evaluate_tasks(run, base=True)["proof_pile"]
    assert base["perplexity_48"] != pytest.approx(scores["perplexity_48"], rel=1e-4)


BAD = {
    "a context that is too long": (["eval_lengths=[16,128]"], "context is 64 tokens"),
    "no number above 1": (["eval_lengths=[1]"], "eval_lengths.0=1"),
    "no lengths": (["eval_lengths=[]"], r"eval_lengths=\[\]"),
    "nothing to stretch": (["rope_factor=1"], "rope_factor=1"),
}


@pytest.mark.parametrize("case", BAD)
def test_lengths_that_do_not_fit_are_refused_before_training(case, tmp_path):
    settings, message = BAD[case]
    refused(message, lambda: train(recipe(tmp_path, *settings), quiet=True))
    assert not (tmp_path / "run" / "result.json").exists()


def test_windows_are_capped_and_lengths_of_the_protocol_beyond_the_context_left_out(
    tmp_path, caplog, monkeypatch
):
    trained = train(recipe(tmp_path, "eval_windows=1", "train_on=proof_pile", *END), quiet=True)
    assert trained.result.data.rows == 12
    run = load_run(tmp_path / "run")
    scores = evaluate_tasks(run)["proof_pile"]
    assert (scores["windows_16"], scores["windows_48"]) == (1, 1)
    usual = replace(run, recipe=run.recipe.model_copy(update={"eval_lengths": None}))
    refused("context of 64 tokens is shorter than 2048", lambda: evaluate_tasks(usual))
    monkeypatch.setitem(vars(run.protocol), "lengths", (32, 64, 4096))
    scores = evaluate_tasks(usual)["proof_pile"]
    assert [key for key in scores if "perplexity" in key] == ["perplexity_32", "perplexity_64"]
    assert "not scored at 4096 tokens" in caplog.text


@pytest.mark.fp64
@torch.no_grad()
def test_stretched_positions_are_the_models_own_at_fractions_of_them(tmp_path):
    folder = llama_folder(tmp_path / "llama")
    config = load_config(str(folder))
    model = load_model(str(folder), config=stretched(config, 2.0), dtype="float64")[0].eval()
    assert config.max_position_embeddings == 64
    assert model.config.max_position_embeddings == 128
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(3, 96, (1, 10))
    halves = torch.arange(10)[None] / 2
    assert_close(model(input_ids=ids).logits, plain(input_ids=ids, position_ids=halves).logits)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_with_stretched_positions_is_loaded_with_them(method, tmp_path):
    settings = ["rope_factor=2", "eval_lengths=[96]", "training.learning_rate=1e-4"]
    train(recipe(tmp_path, *settings, method=method), quiet=True)
    run = load_run(tmp_path / "run")
    assert run.model.config.rope_parameters["factor"] == 2.0
    assert run.model.config.max_position_embeddings == 128
    assert evaluate_tasks(run)["proof_pile"]["windows_96"] >= 1


def test_a_dry_run_reads_rows_as_long_as_stretched_positions_allow(tmp_path, capsys):
    def shown(*pairs):
        settings = ["rope_factor=2", "eval_lengths=[96]", *pairs]
        show_training(recipe(tmp_path, *settings, method="prefix"), as_json=True)
        return json.loads(capsys.readouterr().out)

    found = shown("max_length=100", "prefix.length=70")  # of 64 tokens without the factor
    assert found["first_row"]["tokens"] == 100
    refused("context is 128 tokens", lambda: shown("max_length=64", "eval_lengths=[129]"))


def test_only_plain_rotary_positions_can_be_stretched(tmp_path):
    config = load_config(str(llama_folder(tmp_path / "llama")))
    config.rope_parameters = {**config.rope_parameters, "rope_type": "yarn"}
    refused(
        "plain rotary positions, which this llama model does not have",
        lambda: stretched(config, 2.0),
    )
