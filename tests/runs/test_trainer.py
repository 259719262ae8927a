"""``group_by_length``: every row once, little padding, no order of lengths."""

from itertools import pairwise

import torch
from conftest import TINY
from datasets import Dataset
from folders import byte_tokenizer, llama_folder, rows_file
from hypothesis import given
from hypothesis import strategies as st

from lorada.runs.recipe import load_recipe
from lorada.runs.training.arguments import training_arguments
from lorada.runs.training.setup import make_trainer
from lorada.runs.training.trainer import RunTrainer, _GroupedByLength
from lorada.tasks.tokenize import EncodeOptions, encode


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), size=st.integers(1, 7))
def test_every_row_comes_once_and_an_epoch_has_its_own_order(lengths, size):
    sampler = _GroupedByLength(size, lengths, seed=3)
    first, again = [*sampler], [*sampler]
    assert sorted(first) == list(range(len(lengths)))
    assert first == again
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(first)
    assert len(lengths) < 30 or [*sampler] != first
    again = _GroupedByLength(size, lengths, seed=3)
    again.set_epoch(1)  # without the one before, as in a run that resumes
    assert [*again] == [*sampler]


def test_rows_of_a_batch_are_of_like_length_and_batches_in_no_order():
    lengths = torch.randint(1, 100, (800,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [*_GroupedByLength(8, lengths, seed=0)]
    batches = [[lengths[row] for row in rows[at : at + 8]] for at in range(0, 800, 8)]
    padded = sum(8 * max(batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    longest = [max(batch) for batch in batches]
    rises = sum(b > a for a, b in pairwise(longest))
    assert 35 < rises < 65  # half of the steps, as in a random order


def test_held_out_rows_keep_their_order(tmp_path):
    rows = [{"prompt": "a" * size, "response": " b"} for size in (9, 2, 7, 3, 8, 1)]
    asked = load_recipe(
        None, ["training.train_sampling_strategy=group_by_length", "report_to=[]"],
        {"method": "lora", "model": str(llama_folder(tmp_path / "llama")), "output": "run",
         "data": str(rows_file(tmp_path / "rows.jsonl", rows))},
    )  # fmt: skip
    held = Dataset.from_list(
        [e.features for e in encode(rows, "prompt", byte_tokenizer(), EncodeOptions(20))]
    )
    args = training_arguments(asked, quiet=True)
    made = make_trainer(TINY["llama"](), args, (held, held), lambda x: x, [], RunTrainer)
    assert [*made._get_eval_sampler(held)] == [*range(6)]
    assert isinstance(made._get_train_sampler(), _GroupedByLength)
    assert [*made._get_train_sampler()] != [*range(6)]
