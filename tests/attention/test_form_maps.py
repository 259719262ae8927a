"""The maps by distance and content in one attention call, by every route, against sums by hand."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_close
from test_add_term import GROUPS, HEADS, POSITIONS, WIDTH, tensors_in
from torch import Tensor, nn

from lorada.attention.add_term import add_form_term
from lorada.attention.attention_map import fitted
from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.content_map import BilinearMap, ContentMap
from lorada.attention.distance_map import DistanceMap
from lorada.attention.form_map import FormMap, FormTerm, form_weights
from lorada.attention.map_positions import map_positions
from lorada.attention.visible import VisiblePairs, rule, visible_pairs
from lorada.functional.content import bilinear_term_reference, content_term_reference
from lorada.functional.distance import first_distance

pytestmark = pytest.mark.fp64

FORMS = ("distance", "content", "bilinear")
every_form = pytest.mark.parametrize("form", FORMS)
C, SCALE = 5, 2.0  # width of a key, inverse_scale
SHAPES = {
    "distance": (DistanceMap, [(2, 5)]),
    "content": (ContentMap, [(2, C), (2,)]),
    "bilinear": (BilinearMap, [(2, C, 3), (2, 3, C)]),
}


def form_map(form: str, **options) -> FormMap:
    torch.manual_seed(1)
    cls, shapes = SHAPES[form]
    return cls(tuple(torch.randn(shape, requires_grad=True) for shape in shapes), SCALE, **options)


def pairs_of(name: str, causal: bool, window: int | None, mask: bool) -> VisiblePairs:
    """The visible pairs of one call; with ``mask`` they come as a matrix that breaks the rule."""
    positions, queries, keys, batch = POSITIONS[name]
    shape = CallShape(queries, keys, HEADS, causal, window)
    table = positions.table(queries, keys, torch.device("cpu"))
    if mask:
        seen = rule(table, shape).expand(batch, -1, -1).clone()
        seen[:, ::2, ::3] = False
        return VisiblePairs(positions, shape, seen, False)
    call = AttentionCall(nn.Module(), shape, torch.zeros(batch, GROUPS, keys, WIDTH), None)
    return visible_pairs(call, positions)


def tensors_of(own: FormMap, pairs: VisiblePairs, batch: int) -> list[Tensor]:
    """Random values, keys and queries, as many as the map reads, and an output."""
    torch.manual_seed(0)
    shapes = {
        "value": (batch, GROUPS, pairs.shape.keys, WIDTH),
        "key": (batch, GROUPS, pairs.shape.keys, C),
        "query": (batch, HEADS, pairs.shape.queries, C),
    }
    read = [torch.randn(shapes[name], requires_grad=True) for name in own.reads]
    return [*read, torch.randn(batch, pairs.shape.queries, HEADS, WIDTH, requires_grad=True)]


def by_hand(own: FormMap, pairs: VisiblePairs, *tensors: Tensor) -> Tensor:
    """The term (B, T, H, D), from its definition and the matrix of visible pairs."""
    value, batch = tensors[0], len(tensors[0])
    visible = pairs.pairs(value.device).expand(batch, -1, -1)
    if isinstance(own, ContentMap):
        term = content_term_reference(*own.factors, tensors[1], value, visible, HEADS)
    elif isinstance(own, BilinearMap):
        term = bilinear_term_reference(*own.factors, tensors[2], tensors[1], value, visible)
    else:
        (taps,), table = own.factors, pairs.table(value.device)
        rows, columns = (x.expand(batch, -1).tolist() for x in (table.rows, table.columns))
        first = first_distance(taps.shape[1], pairs.shape.causal)
        term = value.new_zeros(batch, HEADS, pairs.shape.queries, WIDTH)
        for n, i, j in visible.nonzero().tolist():
            tap = columns[n][j] - rows[n][i] - first
            if 0 <= tap < taps.shape[1]:
                weights = taps[:, tap].repeat(HEADS // 2)[:, None]
                term[n, :, i] += weights * value[n, :, j].repeat_interleave(HEADS // GROUPS, 0)
    term = term.transpose(1, 2) / own.inverse_scale
    return term if own.samples is None else term * own.samples[:, None, None, None]


CALLS = [
    *((name, True, None, False) for name in POSITIONS if "end" not in name),
    *((name, True, 4, False) for name in ("whole", "padded", "packed", "a chunk behind a cache")),
    *((name, False, None, False) for name in ("whole", "padded", "packed")),
    *((name, False, 4, False) for name in ("whole", "padded")),
    *((name, True, None, True) for name in ("whole", "padded", "packed", "padded, a token")),
]


@every_form
@pytest.mark.parametrize(("name", "causal", "window", "mask"), CALLS, ids=str)
def test_every_route_is_the_sum_by_hand_in_values_and_gradients(form, name, causal, window, mask):
    own, pairs = form_map(form), pairs_of(name, causal, window, mask)
    batch = POSITIONS[name][3]
    *read, output = tensors_of(own, pairs, batch)
    found = add_form_term(output, own, pairs, tuple(read))
    expected = output + by_hand(own, pairs, *read)
    assert_close(found, expected)
    pull = torch.randn_like(output)
    leaves = [output, *read, *own.factors]
    both = [torch.autograd.grad((y * pull).sum(), leaves) for y in (found, expected)]
    for actual, grad in zip(*both, strict=True):
        assert_close(actual, grad)
    weights = own.weights(pairs, *read).expand(batch, -1, -1, -1)
    dense = weights @ read[0].repeat_interleave(HEADS // GROUPS, 1)
    assert_close(output + dense.transpose(1, 2), expected)


@pytest.mark.fp64(False)
@every_form
@pytest.mark.parametrize("name", ["whole", "padded", "packed", "a chunk behind a cache"])
def test_values_of_fp64_get_the_term_in_fp64_with_factors_of_fp32(form, name):
    own, pairs = form_map(form), pairs_of(name, True, None, False)
    *read, output = (x.detach().double() for x in tensors_of(own, pairs, POSITIONS[name][3]))
    found = add_form_term(output, fitted(own, read[0]), pairs, tuple(read))
    exact = replace(own, factors=tuple(factor.double() for factor in own.factors))
    assert_close(found, output + by_hand(exact, pairs, *read))


@every_form
def test_a_mixed_batch_gets_the_term_on_the_samples_of_the_adapter_only(form):
    own, pairs = form_map(form), pairs_of("padded", True, None, False)
    *read, _ = tensors_of(own, pairs, 2)
    whole = FormTerm(own, pairs)(torch.matmul, *read, *own.factors)
    mine = replace(own, samples=torch.tensor([False, True]))
    part = FormTerm(mine, pairs)(torch.matmul, *read, *own.factors)
    assert_close(part[1], whole[1])
    assert (part[0] == 0).all()
    assert (whole[0] != 0).any()


@every_form
def test_nothing_is_kept_for_the_backward_pass_but_what_the_term_is_computed_from(form):
    own, pairs = form_map(form), pairs_of("padded", True, None, False)
    *read, output = tensors_of(own, pairs, 2)
    found = add_form_term(output, own, pairs, tuple(read))
    known = {id(x) for x in (*read, *own.factors)}
    assert {id(x) for x in found.grad_fn.saved_tensors} <= known
    assert not any(x.is_floating_point() for x in tensors_in(found.grad_fn.rest))


def call_with(mask: Tensor | None, size: int, causal: bool = True) -> AttentionCall:
    shape = CallShape(size, size, HEADS, causal)
    return AttentionCall(nn.Module(), shape, torch.zeros(2, GROUPS, size, WIDTH), mask)


@pytest.mark.parametrize("pads", [0, 2])
def test_a_mask_that_follows_the_rule_is_not_needed_and_any_other_is_kept(pads):
    real = torch.ones(2, 6).bool()
    real[0, :pads] = False
    triangle = torch.ones(6, 6).tril().bool() & real[:, None, None, :]
    call = call_with(triangle, 6)
    pairs = visible_pairs(call, map_positions(call, form_map("content")))
    assert pairs.ordered
    assert pairs.mask is None
    ahead = triangle.clone()
    ahead[1, 0, 2, 4] = True  # as tokens of an image see each other
    call = call_with(ahead, 6)
    pairs = visible_pairs(call, map_positions(call, form_map("content")))
    assert not pairs.ordered
    own = real[:, :, None]  # padding sees nothing
    assert torch.equal(pairs.pairs(torch.device("cpu")), ahead[:, 0] & own)


@every_form
def test_what_explain_shows_times_the_values_is_the_term(form):
    own, pairs = form_map(form), pairs_of("padded", True, None, False)
    value, key, query = (*tensors_of(own, pairs, 2)[:-1], None, None)[:3]
    call = AttentionCall(nn.Module(), pairs.shape, value, None, query=query, key=key)
    shown = form_weights(own, pairs, call) @ value.repeat_interleave(HEADS // GROUPS, 1)
    term = FormTerm(own, pairs)(torch.matmul, *own.tensors(call), *own.factors)
    assert_close(shown.transpose(1, 2), term)
