"""The tokens of a batch are located once per forward, and the results are kept no longer."""

import copy
import pickle
from functools import partial

import exact_cells
import pytest
import torch
from conftest import assert_close
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import DynamicCache

from lorada.attention import positions as locating
from lorada.attention.forward_inputs import NOTHING_KNOWN, ForwardInputs, forward_listener

pytestmark = pytest.mark.fp64

LAYERS = 3


adapted = partial(exact_cells.adapted, variant="map", base={"num_hidden_layers": LAYERS})


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


@pytest.mark.parametrize("name", ["llama", "mistral", "bert"])
def test_all_layers_ask_once_where_the_tokens_are(name, located):
    model = adapted(name)
    model(**batch(9, 4))
    assert len(located) == 1
    model(**batch(9, 4))
    assert len(located) == 2  # another batch is another question


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
    gradients = {key: p.grad for key, p in fresh.named_parameters() if p.requires_grad}
    assert len(gradients) == 2 * LAYERS
    for key, gradient in gradients.items():
        assert gradient.any()
        assert_close(model.get_parameter(key).grad, gradient)


def selective():
    """The contexts of torch's selective checkpointing, which here saves nothing."""
    recompute = CheckpointPolicy.PREFER_RECOMPUTE
    return create_selective_checkpoint_contexts(lambda *args, **kwargs: recompute)


@pytest.mark.parametrize("name", ["llama", "mistral"])  # the second has a window
@pytest.mark.parametrize("options", [{}, {"context_fn": selective}], ids=["plain", "selective"])
def test_checkpointing_asks_no_second_time_and_gives_the_same_gradients(name, options, located):
    model = adapted(name).train()
    inputs = batch(9, 4)
    model(**inputs).logits.sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    before = len(located)
    model.gradient_checkpointing_enable({"use_reentrant": False, **options})
    model(**inputs).logits.sum().backward()
    assert len(located) == before + 1
    for name, gradient in expected.items():
        assert_close(model.get_parameter(name).grad, gradient)


def test_packed_rows_with_an_empty_cache_are_refused():
    model, positions = adapted("llama"), torch.cat([torch.arange(5), torch.arange(7)])[None]
    given = {"input_ids": torch.arange(10, 22)[None], "position_ids": positions}
    with pytest.raises(ValueError, match="see each other"):
        model(**given, past_key_values=DynamicCache(config=model.config))
