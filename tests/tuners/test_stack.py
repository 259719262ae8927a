"""Stacks of parts as one ordinary PEFT adapter: placing, training, saving, loading, switching."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from conftest import SIZES, TINY, _build, assert_close
from paths import TESTS
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from stacks import (
    FFN,
    MODELS,
    QUERY,
    VALUE,
    assert_loads,
    batch,
    bottleneck,
    config_of,
    ia3,
    lmam,
    logits,
    lora,
    moved,
    trained,
)
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

import lorada
from lorada import LoradaConfig, PrefixConfig

pytestmark = pytest.mark.fp64


def test_lora_in_a_stack_is_pefts_own_layer_and_trains_as_it_does_alone():
    part = lora("llama", lora_dropout=0.3)
    found = []
    for config in (part, LoradaConfig(parts=[copy.deepcopy(part)])):
        torch.manual_seed(0)
        model = get_peft_model(TINY["llama"](), config)
        torch.manual_seed(1)
        inputs = batch("llama")
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((gradients, [type(module) for module in model.base_model.model.modules()]))
    (alone, kinds), (stacked, kinds_stacked) = found
    assert kinds_stacked == kinds
    assert stacked.keys() == alone.keys()
    assert all(torch.equal(stacked[name], gradient) for name, gradient in alone.items())


def test_saved_names_are_those_of_plain_adapters(tmp_path):
    trained("dora", "llama").save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "adapter_model.safetensors"))
    config = json.loads((tmp_path / "adapter_config.json").read_text())

    attention, mlp = (f"base_model.model.model.layers.1.{m}" for m in ("self_attn", "mlp"))
    names = ("down", "down_bias", "up", "up_bias")
    assert {key for key in keys if ".layers.1." in key} == {
        f"{attention}.lmam.lora_w_a",
        f"{attention}.lmam.lora_w_b",
        *(f"{attention}.{m}_proj.lora_{x}.weight" for m in "qo" for x in "AB"),
        *(f"{attention}.{m}_proj.lora_magnitude_vector" for m in "qo"),
        *(f"{mlp}.bneck.lora_{x}" for x in names),
    }
    assert [part["peft_type"] for part in config["parts"]] == ["LMAM", "LORA", "BOTTLENECK"]
    assert "import lorada" in config["usage"]


# DoRA and nested parts load through PEFT only: transformers renames neither LoRA's magnitude
# vector, of a plain DoRA adapter either (a bug upstream), nor the layers around another.
@pytest.mark.parametrize(
    "config",
    [
        lmam(),
        bottleneck(),
        config_of("lora", "llama"),
        PrefixConfig(length=3, projection=5),
        LoradaConfig(parts=[PrefixConfig(length=3), lmam(), lora("llama")]),
    ],
    ids=["lmam", "bottleneck", "lora", "prefix", "prefix in a stack"],
)
def test_transformers_itself_loads_an_adapter(config, tmp_path):
    TINY["llama"]().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = moved(base, copy.deepcopy(config))
    model.save_pretrained(tmp_path / "adapter")
    inputs = batch("llama")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert_close(logits(loaded, inputs), logits(model, inputs))


@pytest.mark.parametrize("name", MODELS)
def test_adapters_of_different_stacks_live_on_one_model(name, tmp_path):
    stacks = {  # which meet each other's layers: alone, nested, and on other modules
        "one": [lmam(), lora(name, QUERY)],
        "two": [lora(name, QUERY, VALUE), ia3(name, QUERY, FFN)],
        "three": [lmam(rank=1, length=3), bottleneck()],
        "four": [ia3(name, QUERY, VALUE)],
        "five": [lora(name, QUERY, VALUE)],  # inside what "two" has put there
    }
    inputs, expected = batch(name), {}
    base = logits(TINY[name](), inputs)
    for adapter, parts in stacks.items():
        alone = moved(TINY[name](), LoradaConfig(parts=parts), adapter)
        expected[adapter] = logits(alone, inputs)
        alone.save_pretrained(tmp_path)

    model = PeftModel.from_pretrained(TINY[name](), tmp_path / "one", adapter_name="one")
    for adapter in ("two", "three", "four", "five"):
        model.load_adapter(tmp_path / adapter, adapter_name=adapter)
    for adapter in ("three", "one", "four", "five", "two"):
        model.set_adapter(adapter)
        assert_close(logits(model, inputs), expected[adapter])
        with model.disable_adapter():
            assert_close(logits(model, inputs), base)

    # What is saved now does not depend on what else was loaded.
    model.save_pretrained(tmp_path / "together")
    for adapter in expected:
        together = load_file(tmp_path / "together" / adapter / "adapter_model.safetensors")
        alone = load_file(tmp_path / adapter / "adapter_model.safetensors")
        assert together.keys() == alone.keys()
        assert all(torch.equal(together[key], alone[key]) for key in alone)

    model.delete_adapter("two")
    assert not [n for n in model.state_dict() if ".two." in f"{n}."]
    model.set_adapter("one")
    assert_close(logits(model, inputs), expected["one"])


def test_new_adapter_leaves_what_trains_as_it_was():
    model = get_peft_model(TINY["llama"](), config_of("lora_ia3", "llama"))
    frozen = next(p for n, p in model.named_parameters() if "lora_w_a" in n)
    frozen.requires_grad = False
    before = {n: p.requires_grad for n, p in model.named_parameters() if "default" in n}

    model.add_adapter("second", config_of("lora_ia3", "llama"))
    assert {n: p.requires_grad for n, p in model.named_parameters() if "default" in n} == before


def test_adapter_that_nests_its_parts_the_other_way_round_is_refused():
    inside_out = LoradaConfig(parts=[ia3("llama", QUERY), lora("llama", QUERY)])
    model = get_peft_model(TINY["llama"](), config_of("lora_ia3", "llama"))

    with pytest.raises(ValueError, match=r"'other' applies its parts to .*q_proj in another order"):
        model.add_adapter("other", inside_out)


def test_pickled_map_still_works_in_a_process_that_never_placed_one(tmp_path):
    inputs, model = batch("llama"), trained("lmam", "llama")
    paths = TESTS, tmp_path / "model.pt", tmp_path / "logits.pt"
    torch.save((model, inputs), paths[1])
    code = """if True:
        import sys, torch
        sys.path.insert(0, sys.argv[1])
        from double import in_double
        model, inputs = torch.load(sys.argv[2], weights_only=False)
        with torch.no_grad(), in_double():
            torch.save(model(**inputs).logits, sys.argv[3])"""
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    assert_close(torch.load(paths[2]), logits(model, inputs))


@pytest.mark.parametrize("stack", ["lmam", "adalora", "lora_ia3"])
def test_classification_head_is_trained_and_saved_once(stack, tmp_path):
    def classifier() -> BertForSequenceClassification:
        return _build(BertForSequenceClassification, BertConfig, SIZES)

    model = moved(classifier(), config_of(stack, "bert", task_type="SEQ_CLS"))
    head = {n for n, p in model.named_parameters() if p.requires_grad and "classifier" in n}
    assert len(head) == 2, "weight and bias, of one copy"
    assert_loads(model, classifier(), tmp_path, batch("bert"))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len([key for key in saved if "classifier" in key]) == 2


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_train_and_are_saved_wherever_lora_stands_in_a_stack(bias, first, tmp_path):
    part = lora("bert", QUERY, bias=bias)
    alone = get_peft_model(TINY["bert"](), copy.deepcopy(part))
    parts = [part, ia3("bert", VALUE)] if first else [ia3("bert", VALUE), part]
    model = get_peft_model(TINY["bert"](), LoradaConfig(parts=[*parts, bottleneck()]))

    def biases(model):
        named = model.named_parameters()
        return {n.replace(".base_layer", "") for n, p in named
                if p.requires_grad and n.endswith(".bias")}  # fmt: skip

    assert biases(model) == biases(alone)
    assert len(biases(model)) == (2 if bias == "lora_only" else 20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.endswith(".bias"):
                parameter.add_(1)
    assert_loads(model.eval(), TINY["bert"](), tmp_path, batch("bert"))
    model.add_adapter("second", lmam())
    assert biases(model) == biases(alone)


def test_the_status_of_a_model_names_types_as_peft_does():
    model = get_peft_model(TINY["llama"](), lmam())
    assert model.get_model_status().peft_types == {"default": "LMAM"}
    assert str(model.peft_type) == "PeftType.LMAM"
    assert json.dumps(model.peft_type) == '"LMAM"'
    stack = trained("lora", "llama")
    layers = {status.module_type for status in stack.get_layer_status()}
    assert layers == {"LmamLayer", "BottleneckLayer", "lora.Linear"}


def test_merge_weights_is_for_stacks():
    plain = get_peft_model(TINY["llama"](), lora("llama"))
    with pytest.raises(ValueError, match=r"has the type LORA: model.merge_and_unload\(\)"):
        lorada.merge_weights(plain)
