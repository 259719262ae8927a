"""Which tokens of a step lie under the map; needs no vLLM."""

import lorada_vllm.step
import torch
from lorada_vllm.step import MOST_COMPUTED, MOST_ROWS, Cache, Joined, Part, groups_of_step

BLOCKS = torch.arange(40).view(4, 10)
CACHE = Cache(block=4, heads=2, width=3)


def tokens_and_rows(groups):
    """Place of each token under the map → its row."""
    found = {}
    for group in groups:
        tokens, rows = group.tokens, group.rows
        if isinstance(group, Part):
            tokens = range(tokens.start, tokens.stop)
            rows = range(rows.start, rows.stop)
        elif isinstance(group, Joined):
            tokens, rows = tokens.tolist(), (rows.start + group.own).tolist()
        else:
            tokens, rows = tokens.tolist(), rows.tolist()
        found.update(zip(tokens, rows, strict=True))
    return found


def test_every_token_below_the_length_has_a_group_and_no_other():
    # A prompt, a chunk that crosses the end of the map, a decoded token under it, one beyond it.
    counts, lengths, reach = [5, 6, 1, 1], [5, 14, 3, 30], 12
    starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
    found = tokens_and_rows(groups_of_step(starts, lengths, BLOCKS, CACHE, reach))
    expected = {}
    for start, count, length in zip(starts, counts, lengths, strict=False):
        for i in range(count):
            if length - count + i < reach:
                expected[start + i] = length - count + i
    assert found == expected
    assert len(expected) == 5 + 4 + 1


def test_a_step_beyond_the_map_has_no_groups():
    assert groups_of_step([0, 1, 2, 5], [13, 40, 16], BLOCKS, CACHE, 12) == []


def test_a_sequence_without_tokens_in_the_step_has_no_group():
    assert groups_of_step([0, 0, 1], [0, 13], BLOCKS, CACHE, 12) == []


def test_blocks_hold_all_values_that_the_rows_read():
    chunk, alone = groups_of_step([0, 6, 7], [9, 5], BLOCKS, CACHE, 12)
    assert (chunk.keys, chunk.blocks.tolist()) == (9, [0, 1, 2])
    assert (alone.keys, alone.blocks.tolist()) == (5, [10, 11])


def test_decoded_tokens_are_put_together():
    (group,) = groups_of_step([0, 1, 2, 3], [3, 20, 5], BLOCKS, CACHE, 12)
    assert tokens_and_rows([group]) == {0: 2, 2: 4}
    assert (group.keys, group.blocks.tolist()) == (5, [[0, 1], [20, 21]])
    assert group.beyond[:, 0, :, 0].tolist() == [[False] * 3 + [True] * 2, [False] * 5]
    assert [(block, count) for _, block, count in group.copies.parts] == [(0, 3), (20, 4), (21, 1)]


def test_a_long_prompt_is_cut_into_groups_of_the_same_rows_as_others():
    size = 3 * MOST_ROWS
    blocks = torch.arange(size)[None]
    groups = groups_of_step([0, size - 10], [size], blocks, Cache(1, 2, 3), size)
    assert [group.rows for group in groups] == [
        slice(10, MOST_ROWS),
        slice(MOST_ROWS, 2 * MOST_ROWS),
        slice(2 * MOST_ROWS, size),
    ]
    assert groups[0].tokens == slice(0, MOST_ROWS - 10)


def test_short_prompts_are_not_computed_to_the_end_of_a_long_one(monkeypatch):
    monkeypatch.setattr(lorada_vllm.step, "on_cpu", lambda blocks: False)
    counts = [3, 200, 2, 4, 3, 2, 150, 3]
    starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
    blocks = torch.zeros(len(counts), 50, dtype=torch.long)
    groups = groups_of_step(starts, counts, blocks, CACHE, 256)
    assert len(groups) == 2
    computed = sum((g.rows.stop - g.rows.start) * len(g.blocks) for g in groups)
    assert sum(counts) < computed <= MOST_COMPUTED * sum(counts)
    assert tokens_and_rows(groups) == {
        start + i: i for start, count in zip(starts, counts, strict=False) for i in range(count)
    }
