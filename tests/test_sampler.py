"""Batches of rows of like length: every row once, little padding, no order of lengths."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from lorada.run.sampler import LikeLengths


@given(lengths=st.lists(st.integers(1, 50), max_size=60), size=st.integers(1, 7))
def test_every_row_comes_once_and_an_epoch_has_its_own_order(lengths, size):
    sampler = LikeLengths(lengths, size, seed=3)
    first, again = [*sampler], [*sampler]
    assert sorted(first) == list(range(len(lengths)))
    assert first == again
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(first)
    assert len(lengths) < 30 or [*sampler] != first


def test_rows_of_a_batch_are_of_like_length_and_batches_in_no_order():
    lengths = torch.randint(1, 100, (800,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [*LikeLengths(lengths, 8, seed=0)]
    batches = [[lengths[row] for row in rows[at : at + 8]] for at in range(0, 800, 8)]
    padded = sum(8 * max(batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    longest = [max(batch) for batch in batches]
    rises = sum(b > a for a, b in pairwise(longest))
    assert 35 < rises < 65  # half of the steps, as in a random order
