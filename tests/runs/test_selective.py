"""``activation_checkpointing=selective``: the same gradients, and what is computed again."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from architectures import ARCHITECTURES, inputs
from method_cases import defined, labelled, placed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from lorada import METHODS
from lorada.runs.recipe import load_recipe
from lorada.runs.training.selective import checkpoint_selectively
from lorada.runs.training.training_memory import training_memory

ON_LLAMA = [name for name in METHODS if defined(name, "llama")]


def gradients(model, batch, cast=False):
    torch.manual_seed(0)  # of dropout
    model.zero_grad()
    with torch.autocast("cpu", enabled=cast):
        loss = model(**batch).loss
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


def compare(model, batch, cast=False):
    expected = gradients(model.train(), batch, cast)
    assert expected
    checkpoint_selectively(model)
    assert_same(gradients(model, batch, cast), expected)


def with_dropout(model, p=0.5):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    return model


@pytest.mark.parametrize("name", ON_LLAMA)
def test_gradients_of_every_method_are_the_same_bit_for_bit(name):
    compare(placed(name, "llama", inputs("llama"))[0], labelled("llama"))


@pytest.mark.parametrize("method", ["lora", "lorada_la"])
@pytest.mark.parametrize("model", [name for name in ARCHITECTURES if "input_ids" in inputs(name)])
def test_gradients_on_every_architecture_are_the_same_bit_for_bit(model, method):
    if not defined(method, model):
        pytest.skip(f"{method} has no settings for {model}")
    compare(placed(method, model, inputs(model))[0], labelled(model))


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("name", ["lora", "dora", "adapter_ffn", "lorada_la"])
def test_dropout_and_autocast_are_those_of_the_forward_pass(name, cast):
    compare(with_dropout(placed(name, "llama", inputs("llama"))[0]), labelled("llama"), cast)


def test_a_feed_forward_block_is_computed_again_up_to_its_last_layer():
    def multiplications(change):
        model = placed("lora", "llama", inputs("llama"))[0].train()
        change(model)
        with FlopCounterMode(display=False) as counter:
            gradients(model, labelled("llama"))
        return counter.get_flop_counts()["Global"][torch.ops.aten.mm]

    model = placed("lora", "llama", inputs("llama"))[0]
    tokens, config = labelled("llama")["input_ids"].numel(), model.config
    # The first layer's tensors need no gradient, so there silu and the product keep nothing, but
    # LoRA's layer after them keeps the product.
    block = 2 * tokens * 2 * config.hidden_size * config.intermediate_size
    added = multiplications(checkpoint_selectively) - multiplications(lambda model: None)
    assert block * (config.num_hidden_layers - 1) < added < 1.5 * block * config.num_hidden_layers


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_step_needs_less_than_half_the_memory(tmp_path, dtype):
    """At the width of SmolLM2, of which memory is computed without weights."""
    LlamaConfig(
        hidden_size=576, num_hidden_layers=8, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, vocab_size=1000,
    ).save_pretrained(tmp_path)  # fmt: skip
    options = {"method": "lora", "model": str(tmp_path), "output": "-"}
    size = ["max_length=48", "per_device_train_batch_size=8", f"dtype={dtype}"]
    off, selective, full = (
        training_memory(load_recipe(None, [*size, f"activation_checkpointing={name}"], options))
        for name in ("off", "selective", "full")
    )
    assert full.activations < selective.activations < 0.45 * off.activations


def test_a_retained_graph_is_computed_a_third_time():
    model, batch = placed("lora", "llama", inputs("llama"))[0].train(), labelled("llama")
    checkpoint_selectively(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = model(**batch).loss
    first = torch.autograd.grad(loss, trained, retain_graph=True)
    second = torch.autograd.grad(loss, trained)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_outputs_that_were_changed_in_place_are_kept():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.act = nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU()
            self.down = nn.Linear(8, 4)

        def forward(self, x):
            return self.down(self.act(self.up(self.norm(x).mul_(2))).mul_(0.5)).add_(1).sin()

    torch.manual_seed(0)
    model = nn.Module()
    model.layers = nn.ModuleList([Layer(), Layer()])
    x = torch.randn(3, 4)

    def run():
        model.zero_grad()
        model.layers[1](model.layers[0](x)).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = run()
    checkpoint_selectively(model)
    assert_same(run(), expected)


def test_a_kept_tensor_that_is_changed_is_an_error():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh())])
    checkpoint_selectively(model)
    x = torch.randn(3, 4)
    total = model.layers[0](x).sum()
    x.zero_()
    with pytest.raises(RuntimeError, match="was changed in place; train with activation_check"):
        total.backward()


def test_an_error_in_a_layer_leaves_nothing_behind():
    model, batch = placed("lora", "llama", inputs("llama"))[0].train(), labelled("llama")
    expected = gradients(model, batch)
    checkpoint_selectively(model)
    norm = model.get_base_model().model.layers[1].post_attention_layernorm
    norm.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model(**batch)
    del norm.forward
    kept = torch.ones(3, requires_grad=True)
    assert kept.exp().grad_fn._saved_result is not None  # plain autograd again
    assert_same(gradients(model, batch), expected)


def test_threads_do_not_meet_in_a_model():
    """As torch's DataParallel runs its copies of a model."""
    batch = labelled("llama")
    model = with_dropout(placed("lora", "llama", inputs("llama"))[0].train(), 0.0)
    trained = [p for p in model.parameters() if p.requires_grad]

    def gradients_of_batch(count):
        part = {name: tensor[:count] for name, tensor in batch.items()}
        return [torch.autograd.grad(model(**part).loss, trained) for _ in range(5)]

    counts = [1, 2, 3, 1, 2, 3]
    expected = [gradients_of_batch(count) for count in counts]
    checkpoint_selectively(model)
    with ThreadPoolExecutor(len(counts)) as pool:
        found = list(pool.map(gradients_of_batch, counts))
    for several, others in zip(found, expected, strict=True):
        for one, other in zip(several, others, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_copied_model_has_a_state_of_its_own():
    model, batch = placed("lora", "llama", inputs("llama"))[0].train(), labelled("llama")
    expected = gradients(model, batch)
    checkpoint_selectively(model)
    assert_same(gradients(copy.deepcopy(model), batch), expected)


def test_nothing_is_computed_again_without_gradients():
    model, batch = placed("lora", "llama", inputs("llama"))[0].train(), labelled("llama")
    checkpoint_selectively(model)
    with torch.no_grad():
        first = model(**batch).loss
    torch.manual_seed(0)
    assert torch.equal(model.eval()(**batch).loss, model(**batch).loss)
    assert first.isfinite()
