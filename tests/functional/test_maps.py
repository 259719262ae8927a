"""The fast term against the paper's own form, forward and backward, and Eqs. 6-17 by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_close, assert_same_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from lorada.functional.causal import BLOCK, product_form
from lorada.functional.maps import (
    add_map_reference,
    full_rank_map,
    low_rank_map,
    mask_map,
    position_embedding,
    position_factors,
    softmax_map,
)
from lorada.functional.product import apply_map, factors_product, factors_product_gradients

pytestmark = pytest.mark.fp64

EXAMPLES = settings(deadline=None, max_examples=40)


@st.composite
def cases(draw: st.DrawFn) -> SimpleNamespace:
    """Sizes of one random comparison: S divides H and G divides H; N may be above or below K."""
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    divisors = st.sampled_from([d for d in range(1, heads + 1) if heads % d == 0])
    causal = draw(st.booleans())
    return SimpleNamespace(
        batch=draw(st.integers(1, 3)),
        heads=heads,
        map_heads=draw(divisors),
        groups=draw(divisors),
        tokens=draw(st.integers(1, 12)),
        length=draw(st.integers(1, 12)),
        rank=draw(st.integers(1, 3)),
        width=draw(st.integers(1, 4)),
        causal=causal,
        window=draw(st.none() | st.integers(1, 6)) if causal else None,
        align=draw(st.sampled_from(["start", "end"])),
        position=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


def drawn(case: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    """Probabilities (B, H, K, K), W_a, W_b and values (B, G, K, D)."""
    torch.manual_seed(case.seed)
    scores = torch.randn(case.batch, case.heads, case.tokens, case.tokens)
    if case.causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
    return (
        scores.softmax(-1),
        torch.randn(case.map_heads, case.length, case.rank),
        torch.randn(case.map_heads, case.rank, case.length),
        torch.randn(case.batch, case.groups, case.tokens, case.width),
    )


def expanded(value: torch.Tensor, heads: int) -> torch.Tensor:
    """Values of each query head: the copy that the fast form never makes."""
    return value.repeat_interleave(heads // value.shape[1], 1)


def slow_output(case: SimpleNamespace, attention, w_a, w_b, value) -> torch.Tensor:
    """Attn^ V with the full attention map (Eqs. 12-17)."""
    map_ = low_rank_map(w_a, w_b, 7.0, position=case.position)
    fused = add_map_reference(attention, map_, align=case.align, causal=case.causal)
    return fused @ expanded(value, case.heads)


def fast_output(case: SimpleNamespace, attention, w_a, w_b, value) -> torch.Tensor:
    """Attn V, and the second term added on the first or the last M tokens."""
    left, right = position_factors(w_a, w_b) if case.position else (w_a, w_b)
    size, start = min(case.length, case.tokens), case.align == "start"
    part = slice(0, size) if start else slice(case.length - size, None)  # of the map
    first = 0 if start else case.tokens - size
    covered = slice(first, first + size)  # of the tokens
    factors = left[:, part] / 7.0, right[:, :, part]
    term = factors_product(*factors, value[:, :, covered], case.heads, causal=case.causal)
    output = attention @ expanded(value, case.heads)
    return torch.cat(
        [output[:, :, :first], output[:, :, covered] + term, output[:, :, first + size :]], 2
    )


@EXAMPLES
@given(case=cases())
def test_the_fast_term_equals_the_papers_form_with_its_gradients(case):
    attention, *inputs = drawn(case)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    slow, fast = (output(case, attention, *leaves) for output in (slow_output, fast_output))
    assert_same_gradients(fast, slow, leaves)


@EXAMPLES
@given(case=cases())
def test_the_formulas_of_the_gradients_are_those_of_autograd(case):
    case.length = case.tokens
    inputs = [tensor.requires_grad_() for tensor in drawn(case)[1:]]
    options = {"causal": case.causal, "window": case.window}
    product = factors_product(*inputs, case.heads, **options)
    grad = torch.randn_like(product)
    expected = torch.autograd.grad(product, inputs, grad)
    for found, wanted in zip(
        factors_product_gradients(*inputs, grad, **options), expected, strict=True
    ):
        assert_close(found, wanted)


@EXAMPLES
@given(case=cases())
def test_no_negative_on_probabilities_equals_adding_the_map_to_the_scores(case):
    _, w_a, w_b, _ = drawn(case)
    scores = torch.randn(case.batch, case.heads, case.tokens, case.tokens, dtype=torch.float64)
    if case.causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
    map_ = low_rank_map(w_a, w_b, 7.0, position=case.position)
    size = min(case.length, case.tokens)
    part = slice(0, size) if case.align == "start" else slice(-size, None)
    tiled = map_[:, part, part].repeat(case.heads // case.map_heads, 1, 1)
    shifted = scores.clone()
    shifted[:, :, part, part] += tiled
    fused = add_map_reference(
        scores.softmax(-1), map_, align=case.align, causal=case.causal, ablation="no_negative"
    )
    assert_close(fused, shifted.softmax(-1))


def test_position_embedding_is_equation_7():
    expected = torch.tensor([1.0, 0.01, 0.0001, 0.000001], dtype=torch.float64)
    assert_close(position_embedding(4, expected), expected)  # 10000^(-2·pos/4) = 100^-pos


def test_position_embedding_is_added_once_and_out_of_place():
    w_a, w_b = torch.zeros(2, 4, 3, dtype=torch.float64), torch.zeros(2, 3, 4, dtype=torch.float64)
    for _ in range(2):  # the printed code would add it a second time
        with_a, with_b = position_factors(w_a, w_b)
        assert_close(with_a, position_embedding(4, w_a)[None, :, None].expand(2, 4, 3))
        assert_close(with_b, position_embedding(4, w_a).expand(2, 3, 4))
    assert not w_a.any()
    assert not w_b.any()


def test_low_rank_map_by_hand():
    w_a = torch.tensor([[[1.0, 2.0], [3.0, -4.0]]], dtype=torch.float64)
    w_b = torch.tensor([[[5.0, 6.0], [7.0, 8.0]]], dtype=torch.float64)
    expected = torch.tensor([[[19.0, 22.0], [-13.0, -14.0]]], dtype=torch.float64) / 255
    assert_close(low_rank_map(w_a, w_b, 255.0, position=False), expected)


def test_full_rank_map_at_zero_is_the_product_of_positions_at_the_same_scale():
    pe = torch.tensor([1.0, 1e-4], dtype=torch.float64)
    zeros = torch.zeros(3, 2, 2, dtype=torch.float64)
    assert_close(full_rank_map(zeros, 8.0), (torch.outer(pe, pe) / 8).expand(3, 2, 2))
    assert not full_rank_map(zeros, 8.0, position=False).any()


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("map_heads", [1, 2, 3, 6])
def test_head_i_uses_map_i_modulo_the_number_of_maps(map_heads, groups):
    maps = torch.arange(1.0, map_heads + 1, dtype=torch.float64).view(-1, 1, 1)
    value = torch.ones(2, groups, 1, 1, dtype=torch.float64)
    expected = [float(head % map_heads + 1) for head in range(6)]
    per_sample = maps.expand(2, -1, 1, 1)
    for form in (maps, per_sample):
        assert apply_map(form, value, 6)[:, :, 0, 0].tolist() == [expected, expected]
    fused = add_map_reference(torch.zeros(1, 6, 1, 1, dtype=torch.float64), maps)
    assert fused[0, :, 0, 0].tolist() == expected


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 5, 3 * BLOCK, 3 * BLOCK + 1])
def test_products_of_factors_equal_those_of_the_map_in_every_form(size, causal):
    left, right = torch.randn(3, size, 2), torch.randn(3, 2, size)
    value = torch.randn(2, 3, size, 4)
    expected = apply_map(mask_map(left @ right, causal, None), value, 6)
    assert_close(factors_product(left, right, value, 6, causal=causal), expected)


@pytest.mark.parametrize(
    ("size", "rank", "share", "causal", "window", "form"),
    [
        (4 * BLOCK, 2, 1, True, None, "blocks"),
        (4 * BLOCK, 2, 3, False, None, "low_rank"),
        (4 * BLOCK, 2, 3, True, 4 * BLOCK, "blocks"),  # a window that hides nothing
        (4 * BLOCK, 2, 1, True, 4 * BLOCK - 1, "dense"),
        (BLOCK, 2, 1, True, None, "dense"),  # one block is the map itself
        (2 * BLOCK, 1, BLOCK, True, None, "dense"),  # as many sums as tokens in a block
        (2 * BLOCK, 1, BLOCK + 1, True, None, "blocks"),  # where each head has its own values
        (4, 2, 1, False, None, "dense"),
        (4 * BLOCK, 2 * BLOCK, 1, True, None, "dense"),
    ],
)
def test_the_form_with_the_fewest_multiplications_is_taken(size, rank, share, causal, window, form):
    assert product_form(size, rank, share, causal=causal, window=window) == form


def test_a_causal_map_is_a_triangle_and_a_window_keeps_the_tokens_just_before():
    ones = torch.ones(1, 4, 4)
    assert mask_map(ones, True, None)[0].tolist() == torch.ones(4, 4).tril().tolist()
    assert mask_map(ones, False, None) is ones
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert mask_map(ones, True, 2)[0].tolist() == expected


@pytest.mark.parametrize(
    ("align", "length", "tokens", "expected"),
    [
        ("start", 3, 2, [[0, 1], [3, 4]]),  # the upper left corner
        ("start", 2, 3, [[0, 1, 0], [2, 3, 0], [0, 0, 0]]),  # nothing beyond it
        ("end", 2, 3, [[0, 0, 0], [0, 0, 1], [0, 2, 3]]),  # Eq. 16
        ("end", 3, 2, [[4, 5], [7, 8]]),  # map[n-N:, n-N:]
    ],
)
def test_a_map_lies_on_the_first_or_the_last_tokens(align, length, tokens, expected):
    map_ = torch.arange(length**2, dtype=torch.float64).view(1, length, length)
    attention = torch.zeros(1, 1, tokens, tokens, dtype=torch.float64)
    assert add_map_reference(attention, map_, align=align)[0, 0].tolist() == expected


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_cached_queries_use_the_last_rows_of_the_full_map(causal):
    attention = torch.rand(1, 2, 5, 5, dtype=torch.float64)
    map_ = torch.randn(2, 4, 4, dtype=torch.float64)
    whole = add_map_reference(attention, map_, causal=causal)
    assert_close(add_map_reference(attention[:, :, 3:], map_, causal=causal), whole[:, :, 3:])


def test_softmax_ablation_normalises_over_the_keys_a_row_may_see():
    weights = [[[1, 9, 9], [1, 3, 9], [1, 1, 2]]]  # those above the diagonal must not count
    expected = torch.tensor([[1, 0, 0], [0.25, 0.75, 0], [0.25, 0.25, 0.5]], dtype=torch.float64)
    map_ = torch.tensor(weights, dtype=torch.float64).log()
    assert_close(softmax_map(map_, causal=True)[0], expected)


def test_map_is_signed_and_may_push_attention_below_zero():
    fused = add_map_reference(torch.full((1, 1, 2, 2), 0.5), -torch.ones(1, 2, 2), causal=True)
    assert fused[0, 0].tolist() == [[-0.5, 0.5], [-0.5, -0.5]]


def test_wrong_shapes_are_refused_while_tests_run():
    with pytest.raises(TypeCheckError):
        low_rank_map(torch.zeros(2, 3, 4), torch.zeros(2, 3, 3), 1.0)
