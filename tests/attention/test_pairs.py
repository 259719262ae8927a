"""The term of a padded batch in which each row decodes one token: sums of values where they lie."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from test_add_term import GROUPS, HEADS, LENGTH, WIDTH, attention_map, by_hand
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lorada.attention import pairs
from lorada.attention.add_term import add_term
from lorada.attention.call import CallShape
from lorada.attention.map_term import map_term
from lorada.attention.positions import NO_TOKEN, TokenTable

pytestmark = pytest.mark.fp64


@st.composite
def tables(draw: st.DrawFn) -> TokenTable:
    """Rows with pads on both sides and between tokens, and one query each, some of them a pad."""
    keys = draw(st.integers(1, LENGTH + 6))
    columns, rows = [], []
    for _ in range(draw(st.integers(1, 4))):
        real = draw(st.lists(st.booleans(), min_size=keys, max_size=keys))
        lost = draw(st.integers(0, 3))  # keys that a sliding window has dropped
        columns.append([lost + sum(real[:k]) if real[k] else NO_TOKEN for k in range(keys)])
        rows.append([columns[-1][-1]])
    return TokenTable(torch.tensor(columns), torch.tensor(rows))


def values(table: TokenTable, how: str, dtype: torch.dtype | None = None) -> Tensor:
    """Values (B, G, K, D) as a cache may hold them."""
    torch.manual_seed(0)
    batch, keys = table.columns.shape
    if how == "with room behind":
        return torch.randn(batch, GROUPS, keys + 5, WIDTH, dtype=dtype)[:, :, :keys]
    if how == "with room before":
        return torch.randn(batch + 1, GROUPS + 1, keys + 5, WIDTH, dtype=dtype)[1:, 1:, 5:]
    if how == "head by head":
        return torch.randn(batch, keys, GROUPS, WIDTH, dtype=dtype).transpose(1, 2)
    if how == "one for all":
        return torch.randn(1, GROUPS, keys, WIDTH, dtype=dtype).expand(batch, -1, -1, -1)
    if how == "number by number":
        return torch.randn(batch, GROUPS, WIDTH, keys, dtype=dtype).mT
    return torch.randn(batch, GROUPS, keys, WIDTH + 1, dtype=dtype)[..., 1:]  # rows are not alike


LAYOUTS = ["with room behind", "with room before", "head by head", "one for all"]
OTHER_LAYOUTS = ["number by number", "part of each row"]


@settings(deadline=None, max_examples=200)
@given(tables(), st.sampled_from([*LAYOUTS, *OTHER_LAYOUTS]),
       st.sampled_from([None, "full_rank", "no_position"]), st.sampled_from(["start", "end"]),
       st.booleans(), st.none() | st.integers(1, 4),
       st.sampled_from(["factors", "finished", "finished with others"]))  # fmt: skip
def test_the_term_is_a_sum_over_pairs(table, layout, ablation, align, causal, window, kept):
    table = table.at_end(LENGTH) if align == "end" else table
    value, own = values(table, layout), attention_map(ablation, align)
    shape = CallShape(1, table.columns.shape[1], HEADS, causal, window)
    with torch.no_grad():
        if kept != "factors":
            own = replace(own, baked=own.dense())
        if kept == "finished with others":
            own = replace(own, layers=(torch.stack([-own.dense(), own.dense()]), 1))
        found = pairs.pairs_of_table(own, table, shape, value)
        assert (found is None) == (layout in OTHER_LAYOUTS and value.numel() > WIDTH)
        term = map_term(own, table, shape, value)
        assert_close(term, by_hand(own, table, shape, value))
        with pytest.MonkeyPatch.context() as patch:  # as on a device
            patch.setattr(pairs, "can_be_read", lambda numbers: False)
            assert pairs.pairs_of_table(own, table, shape, value) is None
            assert_close(term, map_term(own, table, shape, value))


TABLE = TokenTable(torch.tensor([[NO_TOKEN, *range(7)], [*range(8)]]), torch.tensor([[6], [7]]))
SHAPE = CallShape(1, 8, HEADS, True)


@pytest.mark.parametrize("why", ["softmax", "half precision", "gradients", "several queries"])
def test_what_cannot_be_summed_is_gathered(why):
    dtype = torch.bfloat16 if why == "half precision" else None
    value = values(TABLE, "with room behind", dtype)
    own = attention_map("softmax" if why == "softmax" else None)
    queries = 2 if why == "several queries" else 1
    with torch.set_grad_enabled(why == "gradients"):
        shape = replace(SHAPE, queries=queries)
        assert pairs.pairs_of_table(own, TABLE, shape, value) is None


def test_samples_of_other_adapters_get_nothing():
    own = attention_map(samples=torch.tensor([False, True]))
    value, output = values(TABLE, "head by head"), torch.randn(2, 1, HEADS, WIDTH)
    with torch.no_grad():
        found = add_term(output, own, TABLE, SHAPE, value)
        assert_close(found, output + by_hand(own, TABLE, SHAPE, value))
    assert torch.equal(found[0], output[0])
    assert not torch.equal(found[1], output[1])


@pytest.mark.fp64(False)
def test_values_in_fp64_meet_a_map_in_fp32():
    own, value = attention_map(), values(TABLE, "with room behind", torch.float64)
    with torch.no_grad():
        term = map_term(own, TABLE, SHAPE, value)
        sums = by_hand(own, TABLE, SHAPE, value)
        sizes = by_hand(replace(own, baked=own.dense().abs()), TABLE, SHAPE, value.abs())
        assert pairs.pairs_of_table(own, TABLE, SHAPE, value) is not None
    assert (value.dtype, own.dense().dtype) == (torch.float64, torch.float32)
    assert_close(term.float(), sums, terms=LENGTH, size=sizes)


class Largest(TorchDispatchMode):
    """The most numbers of a tensor that any operation makes, outside the memory of the values."""

    def __init__(self, value):
        super().__init__()
        self.values, self.size = value.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() != self.values:
            self.size = max(self.size, made.numel())
        return made


def test_values_are_not_copied():
    width, table = 1000, TokenTable(TABLE.columns, TABLE.rows)
    value = torch.randn(2, GROUPS, 16, width)[:, :, :8]
    with torch.no_grad(), Largest(value) as made:
        term = map_term(attention_map(), table, SHAPE, value)
    assert made.size == term.numel()


def test_layers_share_the_pairs_of_a_forward():
    table = TokenTable(TABLE.columns, TABLE.rows)
    one, other = (values(table, "with room behind") for _ in range(2))
    with torch.no_grad():
        found = pairs.pairs_of_table(attention_map(), table, SHAPE, one)
        assert pairs.pairs_of_table(attention_map(), table, SHAPE, other) is found
        # Values that lie otherwise have other pairs, as have maps with more heads.
        assert pairs.pairs_of_table(attention_map(), table, SHAPE, one.contiguous()) is not found
        assert pairs.pairs_of_table(attention_map(heads=4), table, SHAPE, one) is not found
