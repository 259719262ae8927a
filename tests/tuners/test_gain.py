"""Gains of attention heads as an adapter, against heads that are scaled by hand."""

import pytest
import torch
from architectures import ARCHITECTURES, inputs, logits
from conftest import TINY, assert_close, assert_same_gradients
from exact_cells import CELLS, PROMPTS, alone
from folders import refused
from peft import PeftModel, get_peft_model
from stacks import batch, lmam, moved, randomise
from stacks import logits as output
from transformers import AttentionInterface, DeepseekV3Config, DeepseekV3ForCausalLM

from lorada import GainConfig, LoradaConfig, PrefixConfig
from lorada.attention.modules import self_attentions
from lorada.tuners.gain import GainLayer

pytestmark = pytest.mark.fp64

HEADS = 4


def trained(base, form="constant"):
    """A model with gains that have moved."""
    return moved(base, GainConfig(form=form))


def gain_layers(model) -> list[GainLayer]:
    return [module for module in model.modules() if isinstance(module, GainLayer)]


# The maths, in a whole model.


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "gemma2", "gpt2", "roberta", "deberta_v2", "deberta", "falcon",
             "bart", "t5", "vit"],
)  # fmt: skip
def test_constant_gains_scale_the_columns_of_the_output_projection(name):
    model, inputs_ = trained(ARCHITECTURES[name]()), inputs(name)
    changed, plain = logits(model, **inputs_), ARCHITECTURES[name]()
    before = logits(plain, **inputs_)
    assert len(gain_layers(model)) == len(self_attentions(plain))
    for key, layer in model.base_model.model.named_modules():
        if isinstance(layer, GainLayer):
            linear = plain.get_submodule(key)
            rows = linear.weight.data if name == "gpt2" else linear.weight.data.T
            for h, part in enumerate(rows.chunk(HEADS)):
                part *= 1 + layer.lora_gain["default"][h].item()
    assert_close(logits(plain, **inputs_), changed)
    assert (changed - before).abs().max() > 1e-3


class ByHand:
    """The attention of a plain model with each head's output scaled by the formula."""

    def __init__(self, model: PeftModel, plain) -> None:
        self.weights = {
            plain.get_submodule(name): [
                layer.lora_gain_query["default"].detach().clone().requires_grad_(),
                layer.lora_gain["default"].detach().clone().requires_grad_(),
            ]
            for name, layer in zip(self_attentions(plain), gain_layers(model), strict=True)
        }
        self.plain = AttentionInterface._global_mapping["sdpa"]

    def scaled(self, module, query, attended):
        weight, gain = self.weights[module]
        gains = gain + torch.einsum("bhtd,hd->bth", query, weight) / query.shape[-1] ** 0.5
        return attended * (1 + gains[..., None])

    def __call__(self, module, query, key, value, mask, **kwargs):
        attended, weights = self.plain(module, query, key, value, mask, **kwargs)
        if module in self.weights:  # no cross-attention
            attended = self.scaled(module, query, attended)
        return attended, weights


@pytest.mark.parametrize("name", ["llama", "roberta", "bart", "gpt2"])
def test_gains_of_queries_are_the_reference_in_values_and_gradients(name, monkeypatch):
    model, given = trained(ARCHITECTURES[name](), "query"), inputs(name)
    plain = ARCHITECTURES[name]()
    found = model(**given).logits
    hand = ByHand(model, plain)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", hand)
    expected = plain(**given).logits
    trains = [w for layer in gain_layers(model)
              for w in (layer.lora_gain_query["default"], layer.lora_gain["default"])]  # fmt: skip
    weights = [weight for pair in hand.weights.values() for weight in pair]
    assert_same_gradients(found, expected, trains, weights, more_than=1e-3)


def test_gains_of_queries_of_a_deberta_are_the_reference():
    model, plain = trained(ARCHITECTURES["deberta_v2"](), "query"), ARCHITECTURES["deberta_v2"]()
    given, hand = inputs("deberta_v2"), ByHand(model, plain)

    def scale(module, args, kwargs, output):
        hidden = args[0]
        query = module.query_proj(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        attended = output[0].unflatten(-1, (HEADS, -1))
        return (hand.scaled(module, query, attended).flatten(2), *output[1:])

    for module in hand.weights:
        module.register_forward_hook(scale, with_kwargs=True)
    assert_close(logits(model, **given), logits(plain, **given))


def test_gains_scale_the_terms_of_maps_and_prefixes_too():
    parts = [lmam(init_weights=False), PrefixConfig(length=3)]
    for order in ([GainConfig(), *parts], [*parts, GainConfig()]):
        model = get_peft_model(TINY["llama"](), LoradaConfig(parts=order)).eval()
        with torch.no_grad():
            for layer in gain_layers(model):
                layer.lora_gain["default"].fill_(-1)  # nothing is left of any head
        given = batch("llama")
        silent = output(model, given)
        for layer in gain_layers(model):
            torch.nn.init.zeros_(layer.base_layer.weight)
        assert_close(output(model, given), silent)


# Every form of a batch.


@pytest.mark.parametrize(
    ("name", "cell"),
    [("llama", "padded on the left, positions given"), ("llama", "chunks"),
     ("mistral", "static cache"), ("bert", "padded on the left"),
     ("bert", "packed by position_ids")],
)  # fmt: skip
def test_every_sample_of_a_batch_gets_the_numbers_that_it_gets_alone(name, cell):
    model = trained(TINY[name](), "query")
    for found, sample in zip(CELLS[cell](model, PROMPTS), PROMPTS, strict=True):
        assert_close(found, alone(model, sample))


def test_gains_of_rotated_queries_depend_on_the_position_that_a_token_is_given():
    ids = PROMPTS[3][None]
    for form in ("constant", "query"):
        model = trained(TINY["llama"](), form)
        moved = torch.arange(ids.shape[1])[None] + 5
        change = output(model, {"input_ids": ids, "position_ids": moved})
        change -= output(model, {"input_ids": ids})
        assert (change.abs().max() > 1e-3) == (form == "query")


def test_no_query_is_kept_after_a_forward():
    model = trained(TINY["llama"](), "query")
    output(model, batch("llama"))
    assert all(layer._query is None for layer in gain_layers(model))


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_compiler_makes_one_graph_with_the_same_outputs():
    model, given = trained(TINY["llama"](num_hidden_layers=1), "query"), batch("llama")
    expected = output(model, given)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(output(compiled, given), expected)


# Copies, files, merging.


def test_gains_of_queries_are_not_merged_by_name_either():
    model, inputs_ = trained(TINY["llama"]()), batch("llama")
    model.add_adapter("queries", GainConfig(form="query"))
    expected = output(model, inputs_)
    for merge in (model.merge_adapter, model.merge_and_unload):
        refused("form='query' they differ", lambda m=merge: m(adapter_names=["queries"]))
    assert_close(output(model, inputs_), expected)
    model.set_adapter("queries")
    assert_close(output(model.merge_and_unload(adapter_names=["default"]), inputs_), expected)


def test_gains_merged_one_after_the_other_are_those_merged_at_once():
    model, given = trained(TINY["llama"]()), batch("llama")
    model.add_adapter("other", GainConfig())
    randomise(model, "other")
    model.base_model.set_adapter(["default", "other"])
    expected = output(model, given)
    model.merge_adapter(["default"])
    model.merge_adapter(["other"])
    assert_close(output(model, given), expected)


# Where they are.


def test_queries_may_be_wider_than_what_a_head_gives():
    config = DeepseekV3Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=8, q_lora_rank=None,
        qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6, first_k_dense_replace=1,
    )  # fmt: skip
    model = trained(DeepseekV3ForCausalLM(config), "query")
    layer = gain_layers(model)[0]
    assert layer.lora_gain_query["default"].shape == (4, 12)
    assert torch.isfinite(output(model, batch("llama"))).all()


def test_a_model_without_attention_is_refused():
    base = torch.nn.Sequential(torch.nn.Linear(2, 2))
    said = "no self-attention module of Sequential dispatches through"
    refused(said, lambda: get_peft_model(base, GainConfig()))
