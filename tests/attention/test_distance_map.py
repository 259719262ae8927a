"""The map by distance in one attention call, by every route, against sums by hand."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from conftest import assert_same_gradients
from test_add_term import GROUPS, HEADS, POSITIONS, WIDTH, call, tensors_in
from torch import Tensor, nn

from lorada.attention.add_term import Term, add_term
from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.distance_map import (
    DistanceMap,
    VisiblePairs,
    rule,
    visible,
    whole_sequences,
)
from lorada.attention.under_map import UnderMap
from lorada.experiments.map_costs import kept_bytes
from lorada.functional.distance import first_distance

pytestmark = pytest.mark.fp64


def distance_map(**options) -> DistanceMap:
    torch.manual_seed(1)
    return DistanceMap((torch.randn(2, 5, requires_grad=True),), 2.0, **options)


@dataclass(frozen=True)
class Reached:
    """What the map of one call reaches, in the form of the call and as visible pairs."""

    shape: CallShape
    form: UnderMap | VisiblePairs
    pairs: VisiblePairs

    def term(self, own: DistanceMap) -> Term:
        queries = self.form.queries if isinstance(self.form, UnderMap) else None
        return Term(partial(own.term, self.shape, self.form), queries)


def reached_in(name: str, causal: bool, window: int | None, mask: bool) -> Reached:
    """One call; with ``mask`` the pairs come as a matrix that breaks the rule."""
    positions, queries, keys, batch = POSITIONS[name]
    shape = CallShape(queries, keys, HEADS, causal, window)
    table = positions.table(queries, keys, torch.device("cpu"))
    seen = rule(table, shape)
    if mask:
        seen = seen.expand(batch, -1, -1).clone()
        seen[:, ::2, ::3] = False
    pairs = VisiblePairs(table, seen)
    return Reached(shape, pairs if mask else whole_sequences(positions, shape) or pairs, pairs)


def by_hand(own: DistanceMap, reached: Reached, value: Tensor) -> Tensor:
    """The term (B, T, H, D), from its definition and the matrix of visible pairs."""
    batch, shape, pairs = len(value), reached.shape, reached.pairs
    (taps,), table = own.factors, pairs.table
    rows, columns = (x.expand(batch, -1).tolist() for x in (table.rows, table.columns))
    first = first_distance(taps.shape[1], shape.causal)
    term = torch.zeros(batch, HEADS, shape.queries, WIDTH)
    for n, i, j in pairs.seen.expand(batch, -1, -1).nonzero().tolist():
        tap = columns[n][j] - rows[n][i] - first
        if 0 <= tap < taps.shape[1]:
            weights = taps[:, tap].repeat(HEADS // 2)[:, None]
            term[n, :, i] += weights * value[n, :, j].repeat_interleave(HEADS // GROUPS, 0)
    return term.transpose(1, 2) / own.inverse_scale


CALLS = [
    *((name, True, None, False) for name in POSITIONS if "end" not in name),
    *((name, True, 4, False) for name in ("whole", "padded", "packed", "a chunk behind a cache")),
    *((name, False, None, False) for name in ("whole", "padded", "packed")),
    *((name, False, 4, False) for name in ("whole", "padded")),
    *((name, True, None, True) for name in ("whole", "padded", "packed", "padded, a token")),
]


@pytest.mark.parametrize(("name", "causal", "window", "mask"), CALLS, ids=str)
def test_every_route_is_the_sum_by_hand_in_values_and_gradients(name, causal, window, mask):
    own, reached = distance_map(), reached_in(name, causal, window, mask)
    _, _, value, output = call(name)
    found = add_term(output, reached.term(own), value)
    expected = output + by_hand(own, reached, value)
    assert_same_gradients(found, expected, [output, value, *own.factors])


def test_nothing_is_kept_for_the_backward_pass_but_what_the_term_is_computed_from():
    own, reached = distance_map(), reached_in("padded", True, None, False)
    _, _, value, output = call("padded")
    term = reached.term(own)
    where = [term.queries.index, term.queries.real]  # found once for all layers
    assert kept_bytes(lambda: add_term(output, term, value), [value, *own.factors, *where]) == 0
    assert kept_bytes(lambda: term.compute(value), [value, *own.factors]) > 0
    floating = [x for x in tensors_in(vars(term)) if x.is_floating_point()]
    assert all(any(x is factor for factor in own.factors) for x in floating)


def call_with(mask: Tensor | None, size: int, causal: bool = True) -> AttentionCall:
    shape = CallShape(size, size, HEADS, causal)
    return AttentionCall(nn.Module(), shape, torch.zeros(2, GROUPS, size, WIDTH), mask)


@pytest.mark.parametrize("pads", [0, 2])
def test_a_mask_that_follows_the_rule_is_not_needed_and_any_other_is_kept(pads):
    real = torch.ones(2, 6).bool()
    real[0, :pads] = False
    triangle = torch.ones(6, 6).tril().bool() & real[:, None, None, :]
    assert isinstance(visible(call_with(triangle, 6)), UnderMap)
    ahead = triangle.clone()
    ahead[1, 0, 2, 4] = True  # as tokens of an image see each other
    pairs = visible(call_with(ahead, 6))
    assert isinstance(pairs, VisiblePairs)
    own = real[:, :, None]  # padding sees nothing
    assert torch.equal(pairs.seen, ahead[:, 0] & own)
