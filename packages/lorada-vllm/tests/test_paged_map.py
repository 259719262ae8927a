"""The map's term from a paged cache, against the paper's own sum; needs no vLLM."""

from collections import Counter
from dataclasses import replace

import lorada_vllm.paged_map
import lorada_vllm.step
import pytest
import torch
from lorada_vllm.paged_map import PagedMap, stack_maps
from lorada_vllm.paged_values import PagedValues
from lorada_vllm.step import Cache, Joined, Part, Together, groups_of_step
from torch.utils._python_dispatch import TorchDispatchMode

from lorada.attention.learned_map import LearnedMap
from lorada.functional.maps import add_map_reference

HEADS, GROUPS, WIDTH, LENGTH, SIZE = 4, 2, 8, 12, 4
# How many tokens each sequence had before the step, and how many the step adds.
SEQUENCES = [(0, 5), (0, 20), (3, 6), (10, 7), (4, 1), (11, 1), (0, 1), (12, 1), (30, 2)]


def learned_map(ablation, maps):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    if ablation == "full_rank":
        return LearnedMap((draw(HEADS, LENGTH, LENGTH),), 2.0, "start", ablation)
    factors = (draw(maps, LENGTH, 3), draw(maps, 3, LENGTH))
    return LearnedMap(factors, 2.0, "start", ablation)


def paged(values, blocks):
    """A cache in which the blocks of all sequences are mixed, and the rest is NaN.

    Before the values of a block stand its keys, as in vLLM's cache on a CPU.
    """
    cache = torch.full((100, GROUPS, 2 * SIZE, WIDTH), torch.nan)[:, :, SIZE:]
    for sequence, used in zip(values, blocks, strict=True):
        for position, value in enumerate(sequence):
            cache[used[position // SIZE], :, position % SIZE] = value
    return cache


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What is computed on a GPU, from tensors of the CPU."""
    monkeypatch.setattr(lorada_vllm.step, "on_cpu", lambda blocks: False)


def without_vectors(values):
    """The values without what only a CPU does."""
    assert values.vectors is not None
    return replace(values, vectors=None)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("baked", [True, False], ids=["baked", "from factors"])
@pytest.mark.parametrize("maps", [1, 2, HEADS])
@pytest.mark.parametrize("ablation", [None, "no_position", "softmax", "full_rank"])
def test_a_step_adds_what_the_paper_adds_to_the_whole_attention_map(
    ablation, maps, baked, device, monkeypatch, request
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
    own = learned_map(ablation, maps)
    output = torch.zeros(starts[-1], HEADS, WIDTH)

    layer = PagedValues.of(cache)
    if device == "gpu":
        request.getfixturevalue("as_on_a_gpu")
        layer = without_vectors(layer)
    groups = groups_of_step(starts, lengths, table, Cache(SIZE, GROUPS, WIDTH), LENGTH)
    kinds = {Part, Together} if device == "cpu" else {Joined, Together}
    assert {type(group) for group in groups} == kinds
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
        maps = [LearnedMap((w,), 2.0, "start", "full_rank") for w in factors]
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
    own = PagedMap(learned_map(None, HEADS), HEADS, GROUPS)
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
    own = PagedMap(learned_map(None, HEADS), HEADS, GROUPS)
    wide = output.float()
    own.add(wide, PagedValues.of(cache.float()), groups)
    own.add(output, PagedValues.of(cache), groups)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), wide, rtol=2**-7, atol=2**-7)


def prompts_step(lengths, before=0, seed=7, dtype=torch.float32):
    """A step of prompts, each with so many tokens in the cache already: what adds their term.

    Returns:
        Starts, lengths, block table and values of the step.
    """
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(n, GROUPS, WIDTH, generator=generator) for n in lengths]
    used = [-(-n // SIZE) for n in lengths]
    places = torch.randperm(sum(used), generator=generator).split(used)
    table = torch.zeros(len(lengths), max(used), dtype=torch.long)
    cache = torch.full((sum(used), GROUPS, SIZE, WIDTH), torch.nan, dtype=dtype)
    for row, own, sequence in zip(table, places, values, strict=True):
        row[: len(own)] = own
        for position, value in enumerate(sequence):
            cache[own[position // SIZE], :, position % SIZE] = value
    starts = [0, *torch.tensor([n - before for n in lengths]).cumsum(0).tolist()]
    return starts, lengths, table, PagedValues.of(cache)


def added(own, step, rows):
    """What the term makes of an output that is not zero, and the groups that it was added by."""
    starts, lengths, table, values = step
    groups = groups_of_step(starts, lengths, table, Cache(SIZE, GROUPS, WIDTH), rows)
    generator = torch.Generator().manual_seed(8)
    output = torch.randn(starts[-1], HEADS, WIDTH, generator=generator).to(values.blocks.dtype)
    own.add(output, values, groups)
    return output, groups


LONG = 40  # of a map
STEPS = {
    "short": ([5, 7, 6, 5, 8], 0),
    "longer than a product": ([23, 17, 30, 35], 0),
    "past the map": ([50, 38, 45], 0),
    "behind what is cached": ([19, 12, 27, 50], 11),
    "of very different lengths": ([3, 40, 2, 4, 33, 3, 2], 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("baked", [True, False], ids=["baked", "from factors"])
@pytest.mark.parametrize("step", STEPS)
def test_prompts_computed_together_are_those_computed_one_by_one(step, baked, dtype, monkeypatch):
    monkeypatch.setattr(lorada_vllm.step, "MOST_ROWS", 16)
    if not baked:
        monkeypatch.setattr(lorada_vllm.paged_map, "BAKED_UP_TO", 0)
    generator = torch.Generator().manual_seed(2)
    factors = [torch.randn(2, *shape, generator=generator) for shape in ((LONG, 3), (3, LONG))]
    own = PagedMap(LearnedMap(tuple(factors), 2.0, "start", None), HEADS, GROUPS)
    given = prompts_step(*STEPS[step], dtype=dtype)
    expected, one_by_one = added(own, given, LONG)
    assert {type(group) for group in one_by_one} == {Part}
    monkeypatch.setattr(lorada_vllm.step, "on_cpu", lambda blocks: False)
    found, together = added(own, given, LONG)
    assert Joined in {type(group) for group in together}
    assert len(together) < len(one_by_one)
    # The sums have another order, and each is rounded once to the dtype of the output.
    exact = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(found.float(), expected.float(), rtol=exact, atol=exact)
    base, _ = added(own, given, 0)
    assert (expected - base).abs().max() > 0.1


class Kernels(TorchDispatchMode):
    """Counts the operations that are no view, and those in which the host waits for a copy."""

    VIEWS = ("view", "transpose", "slice", "select", "unsqueeze", "expand", "permute", "as_strided",
             "unbind", "detach", "_unsafe_view", "alias", "split", "unflatten")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.count = Counter()
        self.waits = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if not (func.is_view or name in self.VIEWS):
            self.count[name] += 1
        moves = name == "_to_copy" and kwargs.get("device") is not None
        if moves and not kwargs.get("non_blocking") and kwargs["device"] != args[0].device:
            self.waits[name] += 1
        return func(*args, **kwargs)


@pytest.mark.parametrize("baked", [True, False], ids=["baked", "from factors"])
def test_a_layer_launches_as_many_kernels_for_thirty_two_prompts_as_for_two(
    baked, as_on_a_gpu, monkeypatch
):
    if not baked:
        monkeypatch.setattr(lorada_vllm.paged_map, "BAKED_UP_TO", 0)
    own = PagedMap(learned_map(None, HEADS), HEADS, GROUPS)
    counts = {}
    for prompts in (2, 32):
        given = prompts_step([5 + i % 4 for i in range(prompts)])
        _, (group,) = added(own, given, LENGTH)  # what is made once a step is made
        output = torch.zeros(given[0][-1], HEADS, WIDTH)
        with Kernels() as kernels:
            own.add(output, without_vectors(given[3]), [group])
        counts[prompts] = kernels.count
    assert counts[2] == counts[32]
    assert counts[32].total() <= (10 if baked else 17)


def test_a_step_is_prepared_without_a_copy_that_the_host_waits_for(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # torch wants a GPU for it
    with Kernels() as kernels:
        table = torch.zeros(6, 4, dtype=torch.long, device="meta")  # a device that is no CPU
        # Two prompts, three tokens that are decoded, one beyond the map.
        lengths = [5, 7, 3, 9, 6, 40]
        groups = groups_of_step(
            [0, 5, 12, 13, 14, 15, 16], lengths, table, Cache(SIZE, GROUPS, WIDTH), LENGTH
        )
    assert [type(group) for group in groups] == [Joined, Together]
    assert kernels.count["_to_copy"] == 2
    assert not kernels.waits
