"""What attention reads of the inputs of a model's forward, and the calls that no map reaches."""

import exact_cells
import pytest
import torch
from conftest import assert_close
from exact_cells import LENGTH
from stacks import in_chunks

from lorada import LmamConfig
from lorada.attention import observation
from lorada.attention.forward_inputs import ForwardListener
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
    with observation.observe(lambda seen: None):  # who observes is told of every call
        expected = decode(model, LENGTH - 2, 6)
    asked.clear()
    assert_close(decode(model, LENGTH - 2, 6), expected)
    assert len(asked) == calls * LAYERS


def test_behind_a_window_that_drops_keys_the_map_is_not_missed():
    """The map is shorter than the window, and both than the text."""
    model = adapted("mistral", length=5)
    together = decode(model, 1, 2 * WINDOW)
    ids = torch.arange(10, 11 + 2 * WINDOW)[None]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits[:, 1:]
    assert_close(together, whole)


def test_the_longest_map_decides(asked):
    model = adapted("llama")
    model.add_adapter("longer", LmamConfig(length=LENGTH + 2, init_weights=False))
    model.set_adapter("longer")
    decode(model, LENGTH, 4)
    assert len(asked) == (1 + 2) * LAYERS
