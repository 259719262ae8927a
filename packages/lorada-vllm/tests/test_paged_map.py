"""The map's term from a paged cache, against the paper's own sum; needs no vLLM."""

from dataclasses import replace

import lorada_vllm.paged_map
import pytest
import torch
from lorada_vllm.paged_map import PagedMap, stack_maps
from lorada_vllm.paged_values import PagedValues
from lorada_vllm.step import Cache, Together, groups_of_step

from lorada.attention.attention_map import AttentionMap
from lorada.functional.maps import add_map_reference

HEADS, GROUPS, WIDTH, LENGTH, SIZE = 4, 2, 8, 12, 4
# How many tokens each sequence had before the step, and how many the step adds.
SEQUENCES = [(0, 5), (0, 20), (3, 6), (10, 7), (4, 1), (11, 1), (0, 1), (12, 1), (30, 2)]


def attention_map(ablation, maps):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    if ablation == "full_rank":
        return AttentionMap((draw(HEADS, LENGTH, LENGTH),), 2.0, "start", "token", ablation)
    factors = (draw(maps, LENGTH, 3), draw(maps, 3, LENGTH))
    return AttentionMap(factors, 2.0, "start", "token", ablation)


def paged(values, blocks):
    """A cache in which the blocks of all sequences are mixed, and the rest is NaN.

    Before the values of a block stand its keys, as in vLLM's cache on a CPU.
    """
    cache = torch.full((100, GROUPS, 2 * SIZE, WIDTH), torch.nan)[:, :, SIZE:]
    for sequence, used in zip(values, blocks, strict=True):
        for position, value in enumerate(sequence):
            cache[used[position // SIZE], :, position % SIZE] = value
    return cache


def as_on_a_gpu(values, groups):
    """The values and the groups without what only a CPU does."""
    changed = [replace(g, on_cpu=False) if isinstance(g, Together) else g for g in groups]
    assert any(isinstance(group, Together) for group in groups)
    assert values.vectors is not None
    return replace(values, vectors=None), changed


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("baked", [True, False], ids=["baked", "from factors"])
@pytest.mark.parametrize("maps", [1, 2, HEADS])
@pytest.mark.parametrize("ablation", [None, "no_position", "softmax", "full_rank"])
def test_a_step_adds_what_the_paper_adds_to_the_whole_attention_map(
    ablation, maps, baked, device, monkeypatch
):
    if not baked:
        monkeypatch.setattr(lorada_vllm.paged_map, "BAKED_UP_TO", 0)
    generator = torch.Generator().manual_seed(1)
    lengths = [before + added for before, added in SEQUENCES]
    values = [torch.randn(n, GROUPS, WIDTH, generator=generator) for n in lengths]
    places = torch.randperm(100, generator=generator)
    table = torch.zeros(len(lengths), 10, dtype=torch.long)
    for i, n in enumerate(lengths):
        used = -(-n // SIZE)
        table[i, :used], places = places[:used], places[used:]
    cache = paged(values, table.tolist())
    starts = [0, *torch.tensor([added for _, added in SEQUENCES]).cumsum(0).tolist()]
    own = attention_map(ablation, maps)
    output = torch.zeros(starts[-1], HEADS, WIDTH)

    groups = groups_of_step(starts, lengths, table, Cache(SIZE, GROUPS, WIDTH), LENGTH)
    layer = PagedValues.of(cache)
    if device == "gpu":
        layer, groups = as_on_a_gpu(layer, groups)
    PagedMap(own, HEADS, GROUPS).add(output, layer, groups)

    for i, (_, added) in enumerate(SEQUENCES):
        n = lengths[i]
        fused = add_map_reference(
            torch.zeros(1, HEADS, n, n),
            own.dense(),
            causal=True,
            ablation=ablation if ablation == "softmax" else None,
        )[0]
        value = values[i].transpose(0, 1).repeat_interleave(HEADS // GROUPS, 0)
        expected = (fused @ value).transpose(0, 1)[n - added :]
        torch.testing.assert_close(output[starts[i] : starts[i + 1]], expected)


def test_layers_whose_maps_are_one_tensor_add_each_its_own():
    generator = torch.Generator().manual_seed(5)
    cache = PagedValues.of(torch.randn(6, GROUPS, SIZE, WIDTH, generator=generator))
    table = torch.tensor([[3, 1], [0, 2], [5, 4]])
    factors = torch.randn(3, HEADS, LENGTH, LENGTH, generator=generator)

    def layers():
        maps = [AttentionMap((w,), 2.0, "start", "token", "full_rank") for w in factors]
        return [PagedMap(map_, HEADS, GROUPS) for map_ in maps]

    def terms(maps):
        sizes = Cache(SIZE, GROUPS, WIDTH)
        groups = groups_of_step([0, 1, 4, 5], [6, 3, 7], table, sizes, LENGTH)
        outputs = torch.zeros(3, 5, HEADS, WIDTH)
        for own, output in zip(maps, outputs, strict=True):
            own.add(output, cache, groups)
        return outputs

    expected, together = terms(layers()), layers()
    stack_maps(together)
    assert len({map_.rows(slice(0, 1), 1).untyped_storage().data_ptr() for map_ in together}) == 1
    torch.testing.assert_close(terms(together), expected)
    assert not torch.equal(expected[0], expected[1])


def test_values_that_do_not_lie_side_by_side_give_the_same():
    generator = torch.Generator().manual_seed(3)
    cache = torch.randn(6, GROUPS, SIZE, WIDTH + 1, generator=generator)[..., :WIDTH]
    table = torch.tensor([[3, 1], [0, 2], [5, 4]])
    groups = groups_of_step([0, 1, 2, 3], [6, 3, 7], table, Cache(SIZE, GROUPS, WIDTH), LENGTH)
    own = PagedMap(attention_map(None, HEADS), HEADS, GROUPS)
    found, expected = (torch.zeros(3, HEADS, WIDTH) for _ in range(2))
    own.add(found, PagedValues.of(cache), groups)
    own.add(expected, PagedValues.of(cache.contiguous()), groups)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected)


def test_half_precision_rounds_only_the_sum():
    generator = torch.Generator().manual_seed(3)
    cache = torch.randn(6, GROUPS, SIZE, WIDTH, generator=generator).bfloat16()
    output = torch.randn(4, HEADS, WIDTH, generator=generator).bfloat16()
    table = torch.tensor([[3, 1], [0, 2], [5, 4]])
    sizes = Cache(SIZE, GROUPS, WIDTH)
    groups = groups_of_step([0, 2, 3, 4], [6, 3, 7], table, sizes, LENGTH)
    own = PagedMap(attention_map(None, HEADS), HEADS, GROUPS)
    wide = output.float()
    own.add(wide, PagedValues.of(cache.float()), groups)
    own.add(output, PagedValues.of(cache), groups)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), wide, rtol=2**-7, atol=2**-7)
