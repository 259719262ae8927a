"""Batches by tokens: every row once an epoch, none too large, the same again from the same seed.

    torchrun --nproc-per-node 2 test_token_batches.py MODEL FOLDER [STOP]

trains in two processes, each of which writes down the batches that it makes.
"""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from double import in_double
from folders import bart_folder, llama_folder, rows_file
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_train import PressCtrlC, with_callback
from transformers import AutoModelForCausalLM

from lorada.runs.data.dataset import collator
from lorada.runs.data.token_batches import TokenBatches
from lorada.runs.recipe import load_recipe
from lorada.runs.training import setup
from lorada.runs.training.train import train
from lorada.runs.training.trainer import RunTrainer
from lorada.tasks.tokenize import IGNORED

TOKENS = 60
SEED = 8  # of the run in two processes
# Prompts of many lengths; the responses too, so that batches differ in how many tokens count.
LONG = [
    {"prompt": "a" * (1 + 7 * n % 23), "response": " " + "b" * (1 + 5 * n % 7)} for n in range(40)
]


def size_of(rows, lengths):
    """Tokens of a batch, with the pads of each of its tensors."""
    return len(rows) * sum(
        max(column) for column in zip(*(lengths[row] for row in rows), strict=True)
    )


@st.composite
def rows_and_tokens(draw):
    tensors, tokens = draw(st.integers(1, 2)), draw(st.integers(20, 90))
    length = st.tuples(*[st.integers(1, 20 // tensors)] * tensors)
    return draw(st.lists(length, min_size=1, max_size=150)), tokens


@given(rows_and_tokens(), st.integers(0, 5), st.integers(1, 3))
def test_every_row_comes_once_an_epoch_and_no_batch_is_too_large(drawn, seed, processes):
    lengths, tokens = drawn
    if len(lengths) < processes:
        return
    batches = TokenBatches(lengths, tokens, seed, processes)
    epochs = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        epochs.append([*batches])
        assert len(epochs[-1]) == len(batches)  # what the Trainer computes the steps from
        assert sorted(row for batch in epochs[-1] for row in batch) == list(range(len(lengths)))
        assert max(size_of(batch, lengths) for batch in epochs[-1]) <= tokens
    assert len(batches) % processes == 0
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    again = TokenBatches(lengths, tokens, seed, processes)
    again.set_epoch(2)  # without those before, as in a run that resumes
    assert [*again] == epochs[2]


def random_lengths(count):
    generator = torch.Generator().manual_seed(0)
    return [(n,) for n in torch.randint(1, 100, (count,), generator=generator).tolist()]


def test_seeds_and_epochs_have_orders_of_their_own():
    lengths = random_lengths(400)
    one, other = (TokenBatches(lengths, 500, seed) for seed in (0, 1))
    first = [*one]
    assert sorted(first) != sorted(other)
    one.set_epoch(1)
    assert [*one] != first


def test_batches_are_filled_with_rows_of_like_length():
    lengths = random_lengths(2000)
    batches = [*TokenBatches(lengths, 1000, seed=0)]
    computed = sum(size_of(batch, lengths) for batch in batches)
    assert computed < 1.05 * sum(map(sum, lengths))
    assert computed > 0.93 * 1000 * len(batches)
    longest = [max(lengths[row] for row in batch) for batch in batches]
    rises = sum(b > a for a, b in pairwise(longest))
    assert 0.4 < rises / len(batches) < 0.6  # as in a random order


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"is less than the 61 tokens .*: give 61 or more, or lower"
    ):
        TokenBatches([(3,), (61,)], 60, 0)
    with pytest.raises(ValueError, match="3 processes have no batch each of 2 rows"):
        TokenBatches([(3,), (5,)], 60, 0, 3)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    return str(llama_folder(folder, attention_dropout=0.0))


def recipe(llama, output, *overrides, rows=LONG, method="lorada_la"):
    data = rows_file(output.parent / "rows.jsonl", rows)
    fixed = [f"tokens_per_batch={TOKENS}", "max_length=32", "logging_steps=1", "report_to=[]"]
    return load_recipe(
        None, [*fixed, *overrides],
        {"method": method, "model": llama, "data": str(data), "output": str(output)},
    )  # fmt: skip


def noting(found):
    """The collator, for which each batch is noted in ``found``: rows, and shapes of its tensors."""

    def build(*args):
        pad = collator(*args)

        def note(features):
            batch = pad(features)
            keys = "input_ids", "labels"
            rows = [tuple(tuple(row[key]) for key in keys) for row in features]
            found.append((rows, [tuple(batch[key].shape) for key in keys]))
            return batch

        return note

    return build


@pytest.fixture
def seen(monkeypatch):
    """The batches that a training makes."""
    found = []
    monkeypatch.setattr(setup, "collator", noting(found))
    return found


def weights(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_a_run_trains_on_every_row_once_an_epoch_in_batches_within_the_number(
    llama, tmp_path, seen
):
    result = train(recipe(llama, tmp_path / "run", "num_train_epochs=2"), quiet=True).result
    half = len(seen) // 2
    assert result["steps"] == len(seen) == 2 * half
    first, second = (
        [row for rows, _ in part for row in rows] for part in (seen[:half], seen[half:])
    )
    assert len(first) == len(LONG)
    assert sorted(first) == sorted(second)
    assert first != second
    sizes = [rows * longest for _, ((rows, longest), _) in seen]
    assert max(sizes) <= TOKENS
    assert len({rows for _, ((rows, _), _) in seen}) > 3  # short rows are many in a batch
    assert [entry["step"] for entry in result["history"]] == [*range(1, 2 * half + 1)]


def test_steps_epochs_and_learning_rates_go_by_the_number_of_batches(llama, tmp_path):
    asked = recipe(llama, tmp_path / "run", "num_train_epochs=2", "gradient_accumulation_steps=3")
    run = train(asked, quiet=True).run
    (checkpoint,) = run.glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    batches = len(TokenBatches(encoded_lengths(), TOKENS, 42))
    steps = -(-batches // 3)
    assert state["global_step"] == state["max_steps"] == 2 * steps
    logged = [entry for entry in state["log_history"] if "loss" in entry]
    assert [e["epoch"] for e in logged][steps - 1 :: steps] == [1.0, 2.0]
    rates = [entry["learning_rate"] for entry in logged]
    assert rates[-1] < 1.5 * rates[-2] / 2  # a line to 0 after the last step


def encoded_lengths():
    """Tokens of the rows: one a letter, and the end of the text."""
    return [(len(row["prompt"] + row["response"]) + 1,) for row in LONG]


def loss_of(llama, batches):
    """The mean loss over the labelled tokens of all rows, each read alone, without pads."""
    counts = [sum(x != IGNORED for _, labels in rows for x in labels[1:]) for rows, _ in batches]
    assert len(set(counts)) > 1  # or a mean of the batches' means would be the same
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64)
    total = 0.0
    for ids, labels in (row for rows, _ in batches for row in rows):
        logits = model(torch.tensor([ids])).logits[0, :-1]
        aims = torch.tensor(labels[1:])
        total += F.cross_entropy(logits, aims, ignore_index=IGNORED, reduction="sum").item()
    return torch.tensor(total / sum(counts))


@pytest.mark.fp64
def test_each_labelled_token_of_a_step_counts_the_same(llama, tmp_path, seen):
    settings = ("gradient_accumulation_steps=3", "max_steps=1", "seed=5", "dtype=float64")
    asked = recipe(llama, tmp_path / "run", *settings, method="lora")  # LoRA starts with no effect
    (entry,) = train(asked, quiet=True).result["history"]
    # More are made ahead than a step takes.
    assert_close(torch.tensor(entry["loss"]), loss_of(llama, seen[:3]))


def test_a_run_goes_on_with_the_batches_that_it_had_left(llama, tmp_path, monkeypatch, seen):
    settings = ("num_train_epochs=2",)
    whole = train(recipe(llama, tmp_path / "whole", *settings), quiet=True)
    steps, batches = whole.result["steps"], seen.copy()
    part = recipe(llama, tmp_path / "part", *settings)
    at = steps // 2 + 3  # in the second epoch
    with monkeypatch.context() as patch:
        with_callback(patch, PressCtrlC(at - 1))
        assert train(part, quiet=True).interrupted
    seen.clear()
    resumed = train(part, resume=True, quiet=True)
    assert seen == batches[at:]
    expected, actual = weights(whole.run), weights(resumed.run)
    assert all(torch.equal(expected[key], actual[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.fp64
def test_two_processes_share_the_batches_and_go_on_with_their_own(llama, tmp_path):
    """None is lost and none comes twice, also where one process would have an odd number."""
    alone, steps = (len(TokenBatches(encoded_lengths(), TOKENS, SEED, n)) for n in (1, 2))
    assert (alone % 2, steps) == (1, alone + 1)  # of two epochs, in two processes
    whole = in_two_processes(llama, tmp_path / "whole")
    for epoch in (slice(steps // 2), slice(steps // 2, steps)):
        rows = [json.dumps(row) for seen, _ in whole for batch, _ in seen[epoch] for row in batch]
        assert len(rows) == len(set(rows)) == len(LONG)
    for seen, history in whole:
        assert len(seen) == len(history) == steps
    loss = whole[0][1][0]["loss"]
    assert_close(torch.tensor(loss), loss_of(llama, [seen[0] for seen, _ in whole]))
    at = steps // 2 + 2  # in the second epoch
    in_two_processes(llama, tmp_path / "part", str(at - 1))
    resumed = in_two_processes(llama, tmp_path / "part")
    for (seen, history), (expected, other) in zip(resumed, whole, strict=True):
        assert seen == expected[at:]
        assert [e["loss"] for e in history] == pytest.approx([e["loss"] for e in other], rel=1e-12)


def in_two_processes(llama, run, *stop):
    """What each process of a run saw, and its history; they stop or resume if that is asked."""
    run.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "--standalone", __file__, llama, str(run), *stop],
        capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((run / f"seen{rank}.json").read_text()) for rank in (0, 1)]


def test_of_texts_that_an_encoder_decoder_writes_both_sides_count(tmp_path, seen):
    bart = str(bart_folder(tmp_path / "bart"))
    train(recipe(bart, tmp_path / "run", "max_steps=6", method="lora"), quiet=True)
    sizes = [rows * (longest + target) for _, ((rows, longest), (_, target)) in seen]
    assert max(sizes) <= TOKENS
    assert max(rows for _, ((rows, _), _) in seen) > 1


@pytest.mark.parametrize(
    "batches", [f"tokens_per_batch={TOKENS}", "per_device_train_batch_size=3", "packing=true"]
)
def test_worker_processes_make_the_batches_of_the_main_one(llama, tmp_path, batches):
    found = []
    for workers in (0, 2):
        place = tmp_path / str(workers)
        place.mkdir()
        settings = ["max_steps=3", f"training.dataloader_num_workers={workers}"]
        asked = recipe(llama, place / "run", "tokens_per_batch=null", batches, *settings)
        found.append(train(asked, quiet=True).result["history"])
    assert found[0] == found[1]


REFUSED = {
    "packing=true": "packing=true exclude each other: leave one out",
    "per_device_train_batch_size=8": "training.per_device_train_batch_size=8 exclude each other",
    "training.train_sampling_strategy=group_by_length": "strategy=group_by_length exclude",
    "dataloader_drop_last=true": "training.dataloader_drop_last=True exclude",
    "auto_find_batch_size=true": "training.auto_find_batch_size=True exclude",
    "tokens_per_batch=25": "tokens_per_batch=25 is less than the 31 tokens of the longest row",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_does_not_go_with_it_is_refused(llama, tmp_path, setting):
    with pytest.raises(ValueError, match=REFUSED[setting]) as caught:
        train(recipe(llama, tmp_path / "run", setting), quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_rows_with_candidates_are_refused(llama, tmp_path):
    rows = [{"prompt": "a", "candidates": [" b", " c"], "answer": 0}] * 4
    with pytest.raises(ValueError, match="is not for rows with candidates"):
        train(recipe(llama, tmp_path / "run", rows=rows), quiet=True)


def test_the_speed_that_is_logged_is_of_the_rows_of_a_step(llama, tmp_path, monkeypatch):
    made = []
    build = setup.make_trainer
    monkeypatch.setattr(setup, "make_trainer", lambda *a: made.append(build(*a)) or made[-1])
    train(recipe(llama, tmp_path / "run", "max_steps=2"), quiet=True)
    (trainer,) = made
    assert isinstance(trainer, RunTrainer)
    batches = len(TokenBatches(encoded_lengths(), TOKENS, 42))
    assert trainer.get_total_train_batch_size(trainer.args) == len(LONG) // batches


@in_double()
def main(llama, folder, stop=None):
    """Train two epochs, or go on with a training, into ``FOLDER/run``; up to step ``stop``."""
    seen, folder = [], Path(folder)
    setup.collator = noting(seen)
    asked = recipe(
        llama, folder / "run", "num_train_epochs=2", "dtype=float64", "lora_dropout=0",
        f"seed={SEED}",
        method="lora",
    )  # fmt: skip
    callbacks = [] if stop is None else [PressCtrlC(int(stop))]
    resume = (folder / "run" / "recipe.yaml").is_file()
    result = train(asked, resume=resume, quiet=True, callbacks=callbacks).result
    rank = os.environ["RANK"]
    (folder / f"seen{rank}.json").write_text(json.dumps([seen, result.get("history")]))


if __name__ == "__main__":
    main(*sys.argv[1:])
