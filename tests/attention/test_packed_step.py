"""A step of continuous batching: its term, and that all layers of a forward share it."""

from dataclasses import dataclass, replace

import pytest
import torch
from conftest import assert_close
from exact_cells import NEW, PROMPTS, adapted, alone, batched_continuously, plain_run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_add_term import GROUPS, HEADS, LENGTH, WIDTH, attention_map, by_hand

from lorada.attention import attend, packed_step
from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.forward_inputs import NOTHING_KNOWN
from lorada.attention.map_positions import map_positions
from lorada.attention.map_term import map_term
from lorada.attention.pairs import Pairs
from lorada.functional.maps import SOFTMAXES
from lorada.tuners.lmam import LmamLayer

pytestmark = pytest.mark.fp64


@dataclass(frozen=True)
class Lengths:
    """Sequences of a row: tokens so far, queries and keys of each, and the window of the layer."""

    seen: list[int]
    queries: list[int]
    keys: list[int]
    window: int | None
    unused: int  # queries and keys behind the last sequence

    def call(self, dtype: torch.dtype | None = None) -> AttentionCall:
        """An attention call with random values."""
        queries, keys = (sum(sizes) + self.unused for sizes in (self.queries, self.keys))
        by_query, by_key = (torch.tensor([0, *sizes]).cumsum(0).int()
                            for sizes in (self.queries, self.keys))  # fmt: skip
        ids = [t for n, q in zip(self.seen, self.queries, strict=True) for t in range(n - q, n)]
        kwargs = {"cu_seq_lens_q": by_query, "cu_seq_lens_k": by_key,
                  "position_ids": torch.tensor([ids + [0] * self.unused])}  # fmt: skip
        torch.manual_seed(0)
        value = torch.randn(1, GROUPS, keys, WIDTH, dtype=dtype)
        shape = CallShape(queries, keys, HEADS, True, self.window)
        mask = torch.ones(1, 1, queries, keys)
        return AttentionCall(torch.nn.Module(), shape, value, mask, kwargs=kwargs)


@st.composite
def lengths(draw: st.DrawFn) -> Lengths:
    seen = draw(st.lists(st.integers(1, LENGTH + 4), min_size=1, max_size=5))
    queries = [draw(st.sampled_from([1, size, draw(st.integers(1, size))])) for size in seen]
    window = draw(st.none() | st.integers(2, 4))
    reach = 99 if window is None else window - 1  # a sliding cache keeps no more than this
    keys = [min(size, q + reach) for size, q in zip(seen, queries, strict=True)]
    return Lengths(seen, queries, keys, window, draw(st.integers(0, 2)))


ALL = [None, "full_rank", "no_position", *SOFTMAXES]


@settings(deadline=None, max_examples=150)
@given(lengths(), st.sampled_from(ALL), st.sampled_from(["start", "end"]),
       st.sampled_from(["factors", "finished", "finished with others"]))  # fmt: skip
def test_the_term_is_a_sum_over_pairs(sizes, ablation, align, kept):
    own, call = attention_map(ablation, align), sizes.call()
    with torch.no_grad():
        if kept != "factors":
            own = replace(own, baked=own.dense())
        if kept == "finished with others":
            own = replace(own, layers=(torch.stack([-own.dense(), own.dense()]), 1))
        step, table = packed_step.packed_step(call, own), map_positions(call, own)
        expected = map_term(own, table, call.shape, call.value)  # which reads no number
        if not own.has_softmax:
            assert_close(expected, by_hand(own, table, call.shape, call.value))
        output = torch.randn_like(expected)
        assert_close(step.added(output.clone(), own, call.value), output + expected)


@settings(deadline=None, max_examples=50)
@given(lengths(), st.sampled_from([None, "full_rank"]), st.sampled_from(["start", "end"]))
def test_values_in_half_precision_give_the_term_of_their_numbers(sizes, ablation, align):
    own, call = attention_map(ablation, align), sizes.call(torch.bfloat16)
    with torch.no_grad():
        step, table = packed_step.packed_step(call, own), map_positions(call, own)
        assert not isinstance(step.alone, Pairs)
        expected = by_hand(own, table, call.shape, call.value.double())
        assert_close(step.term(own, call.value).double(), expected)


def test_whole_prompts_are_slices_and_single_tokens_are_sums():
    sizes = Lengths([7, 5, 6, 20], [7, 1, 2, 1], [7, 5, 6, 20], None, 2)
    with torch.no_grad():
        step = packed_step.packed_step(sizes.call(), attention_map())
    assert step.alone.rows.tolist() == [4]  # the last sequence is past the map
    assert step.alone.columns == 5
    # Two groups of two heads each, with values of 40 slots; the query is the eighth.
    assert step.alone.places.tolist() == [*range(7, 12)] * 2 + [*range(47, 52)] * 2
    assert step.alone.begins.tolist() == [0] * 29 + [5, 10, 15, *[20] * 21]
    assert [(queries, span.start, span.stop, span.first) for queries, span in step.spans] == [
        (slice(0, 7), 0, 7, 0), (slice(8, 10), 12, 18, 16),
    ]  # fmt: skip


def test_a_step_past_every_map_changes_nothing():
    call = Lengths([20, 30], [1, 1], [20, 30], None, 0).call()
    output = torch.randn(1, 2, HEADS, WIDTH)
    with torch.no_grad():
        step = packed_step.packed_step(call, attention_map())
        assert step.added(output, attention_map(), call.value) is output


@pytest.fixture
def made(monkeypatch):
    """Each step that was made."""
    found, own = [], packed_step.packed_step

    def noted(*args):
        found.append(own(*args))
        return found[-1]

    monkeypatch.setattr(packed_step, "packed_step", noted)
    return found


@pytest.fixture
def asked(monkeypatch):
    """What each layer was given, and what of its forward it was kept with."""
    found, first, other = [], attend.known_step, attend.step_of_layer_before

    def noted_first(call, attention_map):
        step = first(call, attention_map)
        found.append((call.inputs.steps, step))
        return step

    def noted_other(steps, *args):
        step = other(steps, *args)
        if step is not None:
            found.append((steps, step))
        return step

    monkeypatch.setattr(attend, "known_step", noted_first)
    monkeypatch.setattr(attend, "step_of_layer_before", noted_other)
    return found


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_layers_share_a_step_which_ends_with_the_forward(name, made, asked):
    model = adapted(name, "map")
    samples, _ = plain_run(name, "map")
    made.clear()
    asked.clear()
    batched_continuously(model, samples)
    forwards = {id(steps): steps for steps, _ in asked}
    layers = model.config.num_hidden_layers
    assert layers == 2
    assert len(asked) == layers * len(forwards)
    assert len(made) == len(forwards) == sum(len(steps) for steps in forwards.values())
    assert None not in made
    assert len(made) > 3
    for steps, step in asked:
        assert [kept for kept, _ in steps.values()] == [step]
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.lmam")
    assert layer.forward_inputs is NOTHING_KNOWN
    assert NOTHING_KNOWN.steps is None


def test_maps_of_two_lengths_have_a_step_each(asked):
    model = adapted("llama", "map", length=9)
    model.add_adapter("shorter", adapted("llama", "map").peft_config["default"])
    model.base_model.set_adapter(["default", "shorter"])
    samples = []
    for sample in PROMPTS:
        for _ in range(NEW):
            sample = torch.cat([sample, alone(model, sample)[-1:].argmax(-1)])
        samples.append(sample)
    plain = [alone(model, sample)[-NEW - 1 : -1].log_softmax(-1).amax(-1) for sample in samples]
    asked.clear()
    found = batched_continuously(model, samples)
    assert {len(steps) for steps, _ in asked} == {2}
    for logs, expected in zip(found, plain, strict=True):
        # Computed in fp64 and handed out in fp32.
        assert_close(logs, expected, terms=1, size=expected.abs(), dtype=torch.float32)


def test_entries_of_finished_maps_are_read_once_for_all_layers(made):
    model = adapted("llama", "map")
    samples, logits = plain_run("llama", "map")
    plain = [each[-NEW - 1 : -1].log_softmax(-1).amax(-1) for each in logits]
    model.base_model.bake()
    layers = [m for m in model.modules() if isinstance(m, LmamLayer)]
    (whole, first), (other, second) = (layer.maps()[0].layers for layer in layers)
    assert whole is other
    assert (first, second) == (0, 1)
    for layer in layers:
        (own,) = layer.maps()
        assert own.baked.data_ptr() == whole[own.layers[1]].data_ptr()
        assert torch.equal(own.baked, replace(own, baked=None).dense())
    made.clear()
    found = batched_continuously(model, samples)
    for logs, expected in zip(found, plain, strict=True):
        assert_close(logs, expected, terms=1, size=expected.abs(), dtype=torch.float32)
    with_pairs = [step for step in made if isinstance(step.alone, Pairs)]
    assert len(with_pairs) > 2
    assert all(list(step.alone.read) == [id(whole)] for step in with_pairs)
