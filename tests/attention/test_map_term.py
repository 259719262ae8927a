"""``add_term`` against a sum over pairs of tokens, and what it keeps for the backward pass."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_close, assert_same_gradients, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from in_double import in_double
from library.llama_layer import kept_bytes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lorada.attention import learned_map as learned_maps
from lorada.attention import map_term as adding
from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.covered_tokens import covered_tokens, find_covered_tokens
from lorada.attention.learned_map import LearnedMap
from lorada.attention.map_term import Term
from lorada.attention.positions import NO_TOKEN, TokenPositions, TokenSpan, TokenTable
from lorada.functional import causal as causal_product
from lorada.functional import maps
from lorada.functional.maps import position_factors

pytestmark = pytest.mark.fp64

LENGTH, HEADS, GROUPS, WIDTH = 9, 4, 2, 3


def learned_map(ablation: str | None = None, align: str = "start", heads: int = 2, **kwargs):
    torch.manual_seed(1)
    shapes = [(heads, LENGTH, 2), (heads, 2, LENGTH)]
    if ablation == "full_rank":
        shapes = [(HEADS, LENGTH, LENGTH)]
    factors = tuple(torch.randn(shape, requires_grad=True) for shape in shapes)
    return LearnedMap(factors, 2.0, align, ablation, **kwargs)


def table(*samples: list[int | None], queries: int | None = None) -> TokenTable:
    """Samples by the map column of each key slot; None is a pad. The queries come last."""
    columns = torch.tensor([[NO_TOKEN if at is None else at for at in row] for row in samples])
    return TokenTable(columns, columns if queries is None else columns[:, -queries:])


PADDED = table([None, None, *range(10)], [*range(7), *[None] * 5])
OWNER = torch.tensor([[0] * 5 + [1] * 7])
PACKED = TokenTable(torch.tensor([[*range(5), *range(7)]]), torch.tensor([[*range(5), *range(7)]]),
                    2, OWNER, OWNER)  # fmt: skip
# Tables by name; two samples each, but for the packed row.
TABLES = {
    "padded": PADDED,
    "padded, long": table([None, *range(19)], [*range(17), *[None] * 3]),
    "padded, long, nothing but pads": table([*range(20)], [None] * 20),
    "padded, long, all alike": table([None, *range(19)]),
    "padded, long, on the end": table([None, *range(-10, 9)], [*range(-8, 9), *[None] * 3]),
    "long, other rows than columns": TokenTable(torch.arange(20)[None], torch.arange(4, 24)[None]),
    "other rows than columns": TokenTable(torch.arange(12)[None], torch.arange(4, 16)[None]),
    "padded, a chunk": table([None, *range(7)], [*range(8)], queries=3),
    "padded, a token": table([None, *range(7)], [*range(8)], queries=1),
    "padded, past the map": table([None, *range(10)], [*range(11)], queries=1),
    "packed": PACKED,
}
# By name: where the tokens are, how many queries, keys and samples there are.
POSITIONS = {
    "whole": (TokenSpan(12, 0), 12, 12, 2),
    "one sample": (TokenSpan(12, 0), 12, 12, 1),
    "shorter than the map": (TokenSpan(6, 0), 6, 6, 2),
    "on the end": (TokenSpan(12, 0), 12, 12, 2),
    "shorter than the map, on the end": (TokenSpan(6, 0), 6, 6, 2),
    "a chunk behind a cache": (TokenSpan(7, 4), 3, 7, 2),
    "a static cache": (TokenSpan(7, 0), 7, 12, 2),
    "one token": (TokenSpan(5, 4), 1, 5, 2),
    **{
        name: (at, at.rows.shape[1], at.columns.shape[1], 1 if name == "packed" else 2)
        for name, at in TABLES.items()
    },
}


def term_of(
    own: LearnedMap, positions: TokenPositions, shape: CallShape, value: Tensor
) -> Term | None:
    """The term of a map whose tokens are at these positions."""
    under = find_covered_tokens(positions, own, shape, value)
    return under and Term(own, under, shape)


def add_term(output: Tensor, *given) -> Tensor:
    """``output`` plus ``term_of`` what is given."""
    term = term_of(*given)
    return output if term is None else adding.add_term(output, term, given[-1])


def call(name: str, *, causal: bool = True, window: int | None = None, dtype=torch.float32):
    """Positions, shape, values and output of one call."""
    positions, queries, keys, batch = POSITIONS[name]
    torch.manual_seed(0)
    value = torch.randn(batch, GROUPS, keys, WIDTH).to(dtype).requires_grad_()
    output = torch.randn(batch, queries, HEADS, WIDTH).to(dtype).requires_grad_()
    return positions, CallShape(queries, keys, HEADS, causal, window), value, output


def by_hand(held: LearnedMap, positions, shape: CallShape, value: Tensor) -> Tensor:
    """The term as a sum over pairs of tokens, (B, T, H, D)."""
    at = positions.table(shape.queries, shape.keys, value.device)
    at = at.at_end(LENGTH) if held.align == "end" else at
    rows, columns = (x.expand(len(value), -1) for x in (at.rows, at.columns))
    seen = (rows[:, :, None] >= 0) & (rows[:, :, None] < LENGTH)
    seen = seen & (columns[:, None] >= 0) & (columns[:, None] < LENGTH)
    distance = rows[:, :, None] - columns[:, None]
    if shape.causal:
        seen = seen & (distance >= 0)
    if shape.window is not None:
        seen = seen & (distance.abs() < shape.window)
    if at.row_owner is not None:
        seen = seen & (at.row_owner[:, :, None] == at.column_owner[:, None])
    rows, columns = rows.clamp(0, LENGTH - 1), columns.clamp(0, LENGTH - 1)
    weights = held.dense()[:, rows[:, :, None], columns[:, None]].transpose(0, 1)
    seen = seen[:, None]
    if held.ablation == "softmax":  # of a row that sees nothing it is not a number
        weights = weights.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num()
    weights = weights * seen
    weights = weights.repeat(1, HEADS // weights.shape[1], 1, 1)
    values = value.float().repeat_interleave(HEADS // GROUPS, 1)
    return (weights @ values).transpose(1, 2)


def assert_sum_over_pairs(held: LearnedMap, positions, shape: CallShape, value, output) -> None:
    """Values without a graph, and values and gradients with one, are those of ``by_hand``."""
    expected = output + by_hand(held, positions, shape, value)
    with torch.no_grad():
        for form in (held, replace(held, baked=held.dense())):
            assert_close(add_term(output, form, positions, shape, value), expected)
    found = add_term(output, held, positions, shape, value)
    assert_same_gradients(found, expected, [output, value, *held.factors])


@pytest.mark.parametrize("block", [2, 32])
@pytest.mark.parametrize("ablation", [None, "softmax", "full_rank", "no_position"])
@pytest.mark.parametrize(("name", "causal"), [
    *((name, True) for name in POSITIONS),
    *((name, False) for name in (
        "whole", "one sample", "padded", "padded, long", "padded, long, on the end",
    )),
])  # fmt: skip
@pytest.mark.parametrize("window", [None, 4])
def test_values_and_gradients_are_those_of_a_sum_over_pairs(
    name, causal, ablation, window, block, monkeypatch
):
    monkeypatch.setattr(causal_product, "BLOCK", block)
    positions, shape, value, output = call(name, causal=causal, window=window)
    held = learned_map(ablation, "end" if "end" in name else "start")
    assert_sum_over_pairs(held, positions, shape, value, output)


@pytest.mark.fp64(False)
@pytest.mark.parametrize("name", ["whole", "padded", "padded, long", "shorter than the map"])
def test_the_sum_is_rounded_once(name):
    positions, shape, value, output = call(name, dtype=torch.bfloat16)
    held = learned_map()
    found = add_term(output, held, positions, shape, value)
    with torch.no_grad(), in_double():
        factors = [factor.double() for factor in held.factors]
        exact = output + by_hand(replace(held, factors=factors), positions, shape, value)
        # Without signs a sum is the size of its terms; the position is above zero anyway.
        held = replace(held, factors=[factor.abs() for factor in factors])
        size = output.abs() + by_hand(held, positions, shape, value.abs())
        # Rank, values, position, scale and the sum in fp32, then once in bf16.
        allowed = rounding(torch.float32, LENGTH + 2 + 4) * size
        allowed += rounding(torch.bfloat16, 1) * (exact.abs() + allowed)
        assert ((found - exact).abs() <= allowed).all()
    found.sum().backward()
    assert value.grad.dtype == torch.bfloat16


class Sizes(TorchDispatchMode):
    """How many numbers each floating tensor that an operation makes has room for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.is_floating_point():
            self.found.append(made.untyped_storage().nbytes() // made.itemsize)
        return made


def test_past_the_map_the_output_itself_comes_back():
    shape = CallShape(1, 11, HEADS, True, None)
    one_inside = table([*[None] * (11 - LENGTH), *range(LENGTH)], [*range(11)], queries=1)
    value, output = torch.randn(2, 2, 11, 8), torch.randn(2, 1, HEADS, 8)
    past = TokenSpan(LENGTH + 1, LENGTH)
    assert add_term(output, learned_map(), past, shape, value) is output
    with torch.no_grad():
        past = TABLES["padded, past the map"]
        assert add_term(output, learned_map(), past, shape, value) is output
        added = add_term(output, learned_map(), one_inside, shape, value)
    assert not torch.equal(added[0], output[0])
    assert torch.equal(added[1], output[1])


def test_frozen_factors_and_values_get_no_gradient():
    positions, shape, value, output = call("whole")
    held = learned_map()
    frozen = replace(held, factors=tuple(x.detach() for x in held.factors))
    add_term(output, frozen, positions, shape, value.detach()).sum().backward()
    assert output.grad is not None
    add_term(output, held, positions, shape, value.detach()).sum().backward()
    assert value.grad is None
    assert all(x.grad.abs().sum() > 0 for x in held.factors)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["whole", "padded, long", "shorter than the map, on the end"])
def test_a_changed_map_keeps_right_gradients_without_formulas_of_its_own(name, causal, monkeypatch):
    def bent(w_a, w_b, pe=None):
        w_a, w_b = position_factors(w_a, w_b, pe)
        return w_a.tanh() * w_b.mean(), w_b.exp()

    for module in (maps, learned_maps):
        monkeypatch.setattr(module, "position_factors", bent)
    positions, shape, value, output = call(name, causal=causal)
    held = learned_map(align="end" if "end" in name else "start")
    assert_sum_over_pairs(held, positions, shape, value, output)


@pytest.mark.parametrize(("name", "ablation", "calls"), [
    ("whole", None, 2), ("padded, long", None, 2), ("on the end", "no_position", 2),
    ("packed", None, 2), ("a chunk behind a cache", None, 3), ("whole", "full_rank", 3),
])  # fmt: skip
def test_within_recomputed_activations_formulas_spare_a_term(name, ablation, calls, monkeypatch):
    """The layer computes its term twice; torch's checkpoint of a term, once more."""
    positions, shape, value, output = call(name)
    held = learned_map(ablation, "end" if "end" in name else "start")
    made = []
    for way in ("compute", "product"):  # by torch's checkpoint, by formulas
        original = getattr(Term, way)
        counted = lambda *given, original=original: made.append(0) or original(*given)  # noqa: E731
        monkeypatch.setattr(Term, way, counted)

    def layer(value, output):
        return add_term(output, held, positions, shape, value).sin()  # which keeps its input

    inputs = [output, value, *held.factors]
    expected = torch.autograd.grad(layer(value, output).sum(), inputs)
    made.clear()
    found = checkpoint(layer, value, output, use_reentrant=False).sum()
    assert all(map(torch.equal, torch.autograd.grad(found, inputs), expected))
    assert len(made) == calls


@pytest.mark.fp64(False)
@pytest.mark.parametrize("name", ["whole", "padded, long"])
def test_autocast_changes_no_bit_of_the_term_and_its_gradients(name):
    positions, shape, value, output = call(name)
    held = learned_map()

    def gradients():
        found = add_term(output, held, positions, shape, value)
        return found, *torch.autograd.grad(found.sin().sum(), [output, value, *held.factors])

    plain = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, gradients(), plain))


@pytest.mark.parametrize("tokens", [96, 512])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("padded", [False, True])
def test_nothing_that_grows_with_the_batch_or_the_sequence_is_kept(batch, tokens, padded):
    factors = tuple(torch.randn(s, requires_grad=True) for s in [(32, 128, 2), (32, 2, 128)])
    held = LearnedMap(factors, 2.0, "start", None)
    value = torch.randn(batch, 8, tokens, 16, requires_grad=True)
    output = torch.randn(batch, tokens, 32, 16, requires_grad=True)
    positions = TokenSpan(tokens, 0)
    if padded:
        columns = torch.arange(tokens).expand(batch, -1) - torch.arange(batch)[:, None]
        columns = torch.where(columns < 0, NO_TOKEN, columns)
        positions = TokenTable(columns, columns)
    shape = CallShape(tokens, tokens, 32, True, None)

    def fast():
        return add_term(output, held, positions, shape, value)

    def plain():
        return term_of(held, positions, shape, value).compute(value)

    assert kept_bytes(fast, [*factors, value]) == 0
    assert kept_bytes(plain, [*factors, value]) > 4 * sum(x.nbytes for x in factors)


@pytest.mark.parametrize("name", ["padded", "padded, long", "packed"])
def test_an_empty_batch_passes(name):
    positions, shape, value, output = call(name)
    none = torch.zeros(0, positions.columns.shape[1], dtype=torch.long)
    empty = TokenTable(none, none)
    found = add_term(output[:0], learned_map(), empty, shape, value[:0])
    assert found.shape == (0, *output.shape[1:])


@pytest.mark.parametrize("name", ["whole", "shorter than the map", "padded", "padded, long"])
@pytest.mark.parametrize("block", [1, 32])
def test_the_sum_may_be_changed_in_place(name, block, monkeypatch):
    monkeypatch.setattr(causal_product, "BLOCK", block)
    positions, shape, value, output = call(name)
    add_term(output, learned_map(), positions, shape, value).mul_(2).sum().backward()
    assert torch.equal(output.grad, torch.full_like(output, 2))


def test_transforms_of_functions_pass():
    positions, shape, value, output = call("whole")
    held = learned_map()

    def loss(value):
        return add_term(output, held, positions, shape, value).square().sum()

    (expected,) = torch.autograd.grad(loss(value), value)
    assert_close(torch.func.grad(loss)(value.detach()), expected)


@pytest.mark.parametrize("ablation", [None, "full_rank"])
def test_a_gradient_of_a_gradient_is_refused(ablation):
    positions, shape, value, output = call("whole")
    found = add_term(output, learned_map(ablation), positions, shape, value)
    (first,) = torch.autograd.grad(found.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# Tokens that lie anywhere: random tables.

ALIGNS = st.sampled_from(["start", "end"])
ABLATIONS = st.sampled_from([None, "softmax", "full_rank", "no_position"])


def compare(
    table: TokenTable, ablation: str | None, align: str, shape: CallShape, value: Tensor
) -> None:
    """The term of a random map, against the sum over pairs."""
    value = value.detach().requires_grad_()
    output = torch.randn(len(value), shape.queries, HEADS, WIDTH, requires_grad=True)
    assert_sum_over_pairs(learned_map(ablation, align), table, shape, value, output)


def packed(seen: list[int], asked: list[int], lost: list[int], unused: int) -> TokenTable:
    """Sequences one after the other: tokens seen, how many of them ask, how many keys are lost."""
    columns, rows, column_owner, row_owner = [], [], [], []
    for number, (size, queries, gone) in enumerate(zip(seen, asked, lost, strict=True)):
        columns += range(min(gone, size - queries), size)
        rows += range(size - queries, size)
        column_owner += [number] * (len(columns) - len(column_owner))
        row_owner += [number] * queries
    last = len(seen) - 1  # slots that nothing uses count as the last sequence's
    columns, rows = columns + [NO_TOKEN] * unused, rows + [NO_TOKEN] * unused
    column_owner, row_owner = column_owner + [last] * unused, row_owner + [last] * unused
    found = (torch.tensor([numbers]) for numbers in (columns, rows, column_owner, row_owner))
    first, second, *owners = found
    return TokenTable(first, second, len(seen), *owners, max(seen))


@st.composite
def packed_tables(draw: st.DrawFn) -> TokenTable:
    seen = draw(st.lists(st.integers(1, LENGTH + 4), min_size=2, max_size=5))
    asked = [draw(st.sampled_from([1, size, draw(st.integers(1, size))])) for size in seen]
    lost = [draw(st.integers(0, 2)) for _ in seen]
    return packed(seen, asked, lost, draw(st.integers(0, 2)))


@pytest.mark.more
@settings(deadline=None, max_examples=60)
@given(packed_tables(), ABLATIONS, ALIGNS)
def test_sequences_of_a_row_have_a_map_each(table, ablation, align):
    queries, keys = table.rows.shape[1], table.columns.shape[1]
    value = torch.randn(1, GROUPS, keys, WIDTH)
    compare(table, ablation, align, CallShape(queries, keys, HEADS, True), value)


@st.composite
def padded_tables(draw: st.DrawFn) -> TokenTable:
    """Rows with pads on both sides and between tokens; their last queries may be pads too."""
    keys = draw(st.integers(1, LENGTH + 6))
    columns, queries = [], draw(st.sampled_from([1, draw(st.integers(1, keys))]))
    for _ in range(draw(st.integers(1, 4))):
        real = draw(st.lists(st.booleans(), min_size=keys, max_size=keys))
        lost = draw(st.integers(0, 3))  # keys that a sliding window has dropped
        columns.append([lost + sum(real[:k]) if real[k] else NO_TOKEN for k in range(keys)])
    numbers = torch.tensor(columns)
    return TokenTable(numbers, numbers[:, keys - queries :])


def laid_out(table: TokenTable, how: str) -> Tensor:
    """Values (B, G, K, D) as a cache may hold them."""
    torch.manual_seed(0)
    batch, keys = table.columns.shape
    if how == "with room behind":
        return torch.randn(batch, GROUPS, keys + 5, WIDTH)[:, :, :keys]
    if how == "head by head":
        return torch.randn(batch, keys, GROUPS, WIDTH).transpose(1, 2)
    return torch.randn(1, GROUPS, keys, WIDTH).expand(batch, -1, -1, -1)


@pytest.mark.more
@settings(deadline=None, max_examples=100)
@given(padded_tables(), st.sampled_from(["with room behind", "head by head", "one for all"]),
       ABLATIONS, ALIGNS, st.booleans(), st.none() | st.integers(1, 4))  # fmt: skip
def test_pads_may_lie_anywhere(table, layout, ablation, align, causal, window):
    queries, keys = table.rows.shape[1], table.columns.shape[1]
    shape = CallShape(queries, keys, HEADS, causal, window)
    compare(table, ablation, align, shape, laid_out(table, layout))


@pytest.mark.parametrize("told", ["by the caller", "by position_ids"])
def test_short_sequences_of_a_row_take_no_room_for_a_long_map(told):
    rows, tokens, length = 16, 4, 64
    factors = torch.randn(HEADS, length, 2), torch.randn(HEADS, 2, length)
    own = LearnedMap(factors, 2.0, "start", None)
    kwargs = {"position_ids": torch.arange(tokens).repeat(rows)[None]}
    if told == "by the caller":
        kwargs |= {"cu_seq_lens_q": torch.arange(rows + 1) * tokens, "max_length_k": tokens}
    shape = CallShape(rows * tokens, rows * tokens, HEADS, True)
    value, mask = torch.randn(1, GROUPS, shape.keys, WIDTH), torch.ones(1, 1, *[shape.keys] * 2)
    packed_row = AttentionCall(torch.nn.Module(), shape, value, mask, kwargs=kwargs)
    with torch.no_grad():
        under = covered_tokens(packed_row, own)
        assert under.size == tokens
        with Sizes() as made:
            Term(own, under, shape).compute(value)
    # The values of all tokens once for each head at the most.
    assert max(made.found) <= rows * tokens * HEADS * WIDTH


def test_only_rows_of_queries_are_computed_behind_a_cache():
    table = packed([5, 7, 6], [1, 1, 1], [0, 0, 0], 0)
    shape = CallShape(3, table.columns.shape[1], HEADS, True)
    value = torch.randn(1, GROUPS, shape.keys, WIDTH)
    under = find_covered_tokens(table, learned_map(), shape, value)
    assert under.rows.tolist() == [[4], [6], [5]]
    padded = TokenTable(torch.arange(8)[None], torch.tensor([[6, 7]]))
    under = find_covered_tokens(padded, learned_map(), replace(shape, queries=2, keys=8), value)
    assert under.rows.tolist() == [[6, 7]]
