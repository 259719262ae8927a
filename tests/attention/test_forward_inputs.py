"""What all layers share of a model's forward, and the calls that no map reaches."""

import copy
import pickle
from collections.abc import Callable

import exact_cells
import pytest
import torch
from architectures import ARCHITECTURES
from conftest import assert_all_close, assert_close, gradients
from exact_cells import LENGTH
from peft import get_peft_model
from stacks import in_chunks
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import DynamicCache

from lorada import LmamConfig
from lorada.attention import forward_inputs, observation
from lorada.attention import positions as locating
from lorada.attention.forward_inputs import (
    NOTHING_KNOWN,
    ForwardInputs,
    ForwardListener,
    forward_listener,
)
from lorada.tuners.lmam import LmamLayer

pytestmark = pytest.mark.fp64

LAYERS = 3
WINDOW = 12  # of Mistral's, longer than most sequences here


def adapted(name: str, **options):
    window = {"sliding_window": WINDOW} if name == "mistral" else {}
    base = {"num_hidden_layers": LAYERS, **window}
    return exact_cells.adapted(name, "map", base, **options)


def listeners(model) -> list[ForwardListener]:
    owners = [getattr(h, "__self__", None) for h in model._forward_pre_hooks.values()]
    return [owner for owner in owners if isinstance(owner, ForwardListener)]


def decode(model, prompt: int, steps: int):
    """Logits of tokens that come one by one behind a prompt."""
    ids = torch.arange(10, 10 + prompt + steps)[None]
    return in_chunks(model, ids, [prompt, *[1] * steps])[:, prompt:]


@pytest.fixture
def asked(monkeypatch):
    """How often a layer gave its maps, while nobody else observes."""
    monkeypatch.setattr(observation, "observers", [])
    calls, maps = [], LmamLayer.maps

    def counted(self):
        calls.append(self)
        return maps(self)

    monkeypatch.setattr(LmamLayer, "maps", counted)
    return calls


def assert_asked(asked: list, calls: int, written: Callable[[], torch.Tensor]) -> None:
    """So many calls of every layer ask for maps, and the others change nothing."""
    with observation.observe(lambda seen: None):  # who observes is told of every call
        expected = written()
    asked.clear()
    assert_close(written(), expected)
    assert len(asked) == calls * LAYERS


def test_one_listener_serves_all_layers_and_goes_with_the_last():
    model = adapted("llama")
    base = model.get_base_model()
    assert len(listeners(base)) == 1
    model.add_adapter("second", LmamConfig(length=LENGTH))
    assert len(listeners(base)) == 1
    assert listeners(model.unload()) == []
    assert not base._forward_hooks


# Before the map's end there are a prompt and two tokens, behind it four.
@pytest.mark.parametrize(
    ("name", "options", "calls"),
    [
        ("llama", {}, 3),
        ("llama", {"ablation": "softmax"}, 3),
        ("llama", {"ablation": "no_negative"}, 3),
        ("llama", {"align": "end"}, 7),
        ("mistral", {}, 3),
    ],
)
def test_decoding_past_the_map_asks_for_nothing_and_changes_nothing(name, options, calls, asked):
    model = adapted(name, **options)
    assert_asked(asked, calls, lambda: decode(model, LENGTH - 2, 6))


def test_behind_a_window_that_drops_keys_the_map_is_not_missed():
    """The map is shorter than the window, and both than the text."""
    model = adapted("mistral", length=5)
    together = decode(model, 1, 2 * WINDOW)
    ids = torch.arange(10, 11 + 2 * WINDOW)[None]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits[:, 1:]
    assert_close(together, whole)


def begin(model, *lengths: int) -> dict:
    """A cache with a prompt that is padded on the left, and its mask."""
    mask = torch.tensor([[0] * (max(lengths) - n) + [1] * n for n in lengths])
    state = {"past_key_values": DynamicCache(config=model.config), "attention_mask": mask}
    with torch.no_grad():
        model(torch.arange(10, 10 + mask.numel()).view_as(mask), use_cache=True, **state)
    return state


def step(model, state: dict, token: int) -> torch.Tensor:
    """The logits of one more token of every row."""
    mask = state["attention_mask"]
    state["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    with torch.no_grad():
        return model(input_ids=torch.full_like(mask[:, :1], token), use_cache=True, **state).logits


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_padded_batch_asks_for_nothing_once_its_shortest_row_is_past_the_map(name, asked):
    model = adapted(name)

    def written() -> torch.Tensor:
        state = begin(model, 3, 9, 5)
        return torch.cat([step(model, state, token) for token in range(20, 28)], 1)

    # The prompt, and tokens until the shortest row.
    assert_asked(asked, 1 + LENGTH - 3, written)


def test_a_number_that_the_device_sends_late_counts_at_the_next_token(asked, monkeypatch):
    model, sent = adapted("llama"), []

    def later(number: torch.Tensor) -> torch.Tensor:
        sent.append((torch.full_like(number, -1), number))
        return sent[-1][0]

    def written() -> torch.Tensor:
        state, found = begin(model, 3, 9, 5), []
        for token in range(20, 28):
            for host, number in sent:  # they have arrived
                host.copy_(number)
            found.append(step(model, state, token))
        return torch.cat(found, 1)

    monkeypatch.setattr(forward_inputs, "sent_later", later)
    assert_asked(asked, 1 + LENGTH - 3 + 1, written)


def test_the_rows_are_counted_again_behind_a_cache_that_was_cropped(asked):
    model = adapted("llama")
    state = begin(model, LENGTH + 2, LENGTH + 1)
    step(model, state, 20)
    state["past_key_values"].crop(-5)
    state["attention_mask"] = state["attention_mask"][:, : LENGTH - 2]
    asked.clear()
    step(model, state, 20)
    assert len(asked) == LAYERS


@pytest.mark.parametrize("hidden", [slice(9, None), slice(2, 6), slice(None)])
def test_a_row_whose_tokens_are_hidden_later_keeps_its_map(hidden):
    model = adapted("llama")

    def written() -> torch.Tensor:
        state, found = begin(model, LENGTH, LENGTH), []
        for token in range(20, 24):
            found.append(step(model, state, token)[:, -1])
            if token == 21:
                state["attention_mask"][1, hidden] = 0
        return torch.stack(found)

    with observation.observe(lambda seen: None):
        expected = written()
    assert_close(written(), expected)


def test_a_mask_with_slots_for_tokens_to_come_is_not_counted(asked):
    model = adapted("llama")
    cache = DynamicCache(config=model.config)
    mask = torch.ones(1, LENGTH + 8).long()
    with torch.no_grad():
        model(torch.tensor([[5, 6]]), past_key_values=cache, attention_mask=mask[:, :2])
        asked.clear()
        model(torch.tensor([[7]]), past_key_values=cache, attention_mask=mask)
    assert len(asked) == LAYERS


def test_the_mask_of_an_encoder_says_nothing_about_its_decoder(asked):
    base = ARCHITECTURES["bart"]()
    base.set_attn_implementation("eager")  # which makes a mask for a single token too
    model = get_peft_model(base, LmamConfig(length=LENGTH, init_weights=False)).eval()
    given = {"attention_mask": torch.ones(1, 30).long(), "input_ids": torch.arange(30)[None] + 5}
    with torch.no_grad():
        found = model(**given, decoder_input_ids=torch.tensor([[2, 7]]), use_cache=True)
        asked.clear()
        read = {"encoder_outputs": (found.encoder_last_hidden_state,)}
        read["attention_mask"] = given["attention_mask"]
        cache, token = found.past_key_values, torch.tensor([[8]])
        model(**read, decoder_input_ids=token, past_key_values=cache, use_cache=True)
    assert len(asked) > 0


def test_the_longest_map_decides(asked):
    model = adapted("llama")
    model.add_adapter("longer", LmamConfig(length=LENGTH + 2, init_weights=False))
    model.set_adapter("longer")
    decode(model, LENGTH, 4)
    assert len(asked) == (1 + 2) * LAYERS


def test_batches_in_turns_are_each_counted_by_themselves(asked):
    model = adapted("llama")

    def written() -> torch.Tensor:
        long, short = begin(model, 8, 8), begin(model, 8, 2)  # masks of the same shape
        return torch.cat([step(model, each, 20) for each in (long, short, long, short)])

    # Two prompts, and the tokens of the batch with a short row.
    assert_asked(asked, 2 + 2, written)


# Where the tokens of a batch are is found once in a forward, and kept no longer.


def batch(*lengths: int):
    ids, mask = exact_cells.pad([torch.arange(10, 10 + length) for length in lengths], "right")
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def located(monkeypatch):
    """The calls of ``locate``."""
    calls, locate = [], locating.locate

    def counted(*args, **kwargs):
        calls.append(args)
        return locate(*args, **kwargs)

    monkeypatch.setattr(locating, "locate", counted)
    return calls


def test_a_result_is_computed_once_for_the_same_tensors_unchanged():
    inputs, asked = ForwardInputs(results={}), []
    one, other = torch.zeros(2), torch.zeros(2)

    def ask(inputs, *tensors, others=()):
        return inputs.once(lambda: asked.append(0) or len(asked), tensors, *others)

    assert ask(inputs, one) == ask(inputs, one) == 1
    assert ask(inputs, other) == 2
    assert ask(inputs, one, others=("else",)) == 3
    assert ask(inputs, one, other) == 4
    assert ask(inputs, one, None) == 5
    assert ask(inputs, one) == 1
    one.add_(1)
    assert ask(inputs, one) == 6
    assert [ask(NOTHING_KNOWN, one) for _ in range(2)] == [7, 8]  # outside of a forward


@pytest.mark.parametrize("grad", [False, True])
def test_a_forward_keeps_results_for_its_backward_pass_only(grad):
    model = adapted("llama")
    listener = forward_listener(model.get_base_model())
    with torch.set_grad_enabled(grad):
        model(**batch(9, 4))
    assert bool(listener.inputs.results) == grad
    assert listener.inputs == NOTHING_KNOWN  # but for the results
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert forward_listener(other.get_base_model()).inputs.results is None


def test_a_batch_seen_in_inference_mode_can_be_learned_from():
    model = adapted("llama", ablation="softmax").train()
    inputs = {key: x for key, x in batch(9, 4).items() if key == "input_ids"}
    inputs["attention_mask"] = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    inputs["position_ids"] = torch.arange(9)[None]
    fresh = copy.deepcopy(model)
    with torch.inference_mode():
        model(**inputs)
    for one in (model, fresh):
        one(**inputs).logits.sum().backward()
    expected = gradients(fresh)
    assert len(expected) == 2 * LAYERS
    assert all(gradient.any() for gradient in expected.values())
    assert_all_close(gradients(model), expected)


def selective():
    """The contexts of torch's selective checkpointing, which here saves nothing."""
    recompute = CheckpointPolicy.PREFER_RECOMPUTE
    return create_selective_checkpoint_contexts(lambda *args, **kwargs: recompute)


@pytest.mark.parametrize("name", ["llama", "mistral"])  # the second has a window
@pytest.mark.parametrize("options", [{}, {"context_fn": selective}], ids=["plain", "selective"])
def test_all_layers_ask_once_and_checkpointing_never_again(name, options, located):
    model = adapted(name).train()
    inputs = batch(9, 4)
    model(**inputs).logits.sum().backward()
    expected = gradients(model)
    model.zero_grad()
    assert len(located) == 1
    model.gradient_checkpointing_enable({"use_reentrant": False, **options})
    model(**inputs).logits.sum().backward()
    assert len(located) == 2
    assert_all_close(gradients(model), expected)


def test_packed_rows_with_an_empty_cache_are_refused():
    model, positions = adapted("llama"), torch.cat([torch.arange(5), torch.arange(7)])[None]
    given = {"input_ids": torch.arange(10, 22)[None], "position_ids": positions}
    with pytest.raises(ValueError, match="see each other"):
        model(**given, past_key_values=DynamicCache(config=model.config))
