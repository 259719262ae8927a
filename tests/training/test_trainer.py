"""``group_by_length``: every row once, little padding, no order of lengths.

    torchrun --nproc-per-node 2 test_trainer.py MODEL FOLDER [STOP]

trains in two processes, each of which writes down the batches that it makes.
"""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from folders import llama_folder, rows_file
from hypothesis import given
from hypothesis import strategies as st
from in_double import in_double
from programs import printed
from test_processes import TORCHRUN
from trained_runs import QUICK, PressCtrlC, run_recipe

from lorada.data.batches import collator
from lorada.training import setup as training
from lorada.training.train import train
from lorada.training.trainer import _GroupedByLength


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), size=st.integers(1, 7))
def test_every_row_comes_once_and_an_epoch_has_its_own_order(lengths, size):
    epoch = 0
    sampler = _GroupedByLength(size, lengths, 3, lambda: epoch)
    first, again = [*sampler], [*sampler]
    assert sorted(first) == list(range(len(lengths)))
    assert first == again
    epoch = 1
    assert sorted(sampler) == sorted(first)
    assert len(lengths) < 30 or [*sampler] != first
    resumed = _GroupedByLength(size, lengths, 3, lambda: 1)  # without the epoch before
    assert [*resumed] == [*sampler]


def test_rows_of_a_batch_are_of_like_length_and_batches_in_no_order():
    lengths = torch.randint(1, 100, (800,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [*_GroupedByLength(8, lengths, 0, lambda: 0)]
    batches = [[lengths[row] for row in rows[at : at + 8]] for at in range(0, 800, 8)]
    padded = sum(8 * max(batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    longest = [max(batch) for batch in batches]
    rises = sum(b > a for a, b in pairwise(longest))
    assert 35 < rises < 65  # half of the steps, as in a random order


ROWS = [{"prompt": "a" * (1 + 7 * n % 23), "response": " b"} for n in range(36)]
STEPS = 6  # of an epoch: two processes, three rows each


@pytest.mark.slow
@pytest.mark.fp64
def test_two_processes_share_the_rows_and_go_on_with_those_that_they_had_left(tmp_path):
    llama = str(llama_folder(tmp_path / "llama", attention_dropout=0.0))
    whole = in_two_processes(llama, tmp_path / "whole")
    for epoch in (slice(STEPS), slice(STEPS, 2 * STEPS)):
        rows = [row for seen, _ in whole for batch in seen[epoch] for row in batch]
        assert sorted(rows) == sorted(len(row["prompt"]) for row in ROWS)
    assert whole[0][0][:STEPS] != whole[0][0][STEPS:]
    at = STEPS + 2  # in the second epoch
    in_two_processes(llama, tmp_path / "part", str(at - 1))
    resumed = in_two_processes(llama, tmp_path / "part")
    for (seen, history), (expected, other) in zip(resumed, whole, strict=True):
        assert seen == expected[at:]
        assert [e["loss"] for e in history] == pytest.approx([e["loss"] for e in other], rel=1e-12)


def in_two_processes(llama, run, *stop):
    """What each process of a run saw, and its history; they stop or resume if that is asked."""
    run.mkdir(exist_ok=True)
    where = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    printed(*TORCHRUN, __file__, llama, run, *stop, **where)
    return [json.loads((run / f"seen{rank}.json").read_text()) for rank in (0, 1)]


@in_double()
def main(llama, folder, stop=None):
    """Train two epochs, or go on with a training, into ``FOLDER/run``; up to step ``stop``."""
    seen, folder = [], Path(folder)

    def noting(*args):
        pad = collator(*args)

        def note(features):
            hidden = (row["labels"] for row in features)
            seen.append([sum(label == -100 for label in labels) for labels in hidden])
            return pad(features)

        return note

    training.collator = noting
    rows_file(folder / "rows.jsonl", ROWS)
    own = ["num_train_epochs=2", "dtype=float64", "lora_dropout=0", "per_device_train_batch_size=3"]
    own += ["training.train_sampling_strategy=group_by_length"]
    given = {"model": llama, "rows": "rows", "method": "lora"}
    asked = run_recipe([*QUICK, *own], folder, folder / "run", **given)
    callbacks = [] if stop is None else [PressCtrlC(int(stop))]
    resume = (folder / "run" / "recipe.yaml").is_file()
    result = train(asked, resume=resume, quiet=True, callbacks=callbacks).result
    history = None if result is None else result.history
    rank = os.environ["RANK"]
    (folder / f"seen{rank}.json").write_text(json.dumps([seen, history]))


if __name__ == "__main__":
    main(*sys.argv[1:])


def test_batches_of_alike_lengths_come_in_another_order_in_each_epoch_and_for_each_seed():
    lengths = [*range(1, 41)]

    def order(seed, epoch):
        return [*_GroupedByLength(4, lengths, seed, lambda: epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) != order(3, 1) != order(3, 0)
