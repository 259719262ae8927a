"""Stacks as one ordinary PEFT adapter: placed, trained, saved, loaded, switched, merged, pruned."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from conftest import SIZES, TINY, _build, assert_close
from folders import llama_folder, refused, rows_file
from paths import HELPERS
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from stacks import (
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
    randomise,
    trained,
)
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

import lorada
from lorada import LoradaConfig, PrefixConfig, SoraConfig

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


@pytest.mark.parametrize(
    "config",
    [
        lmam(),
        bottleneck(),
        config_of("lora", "llama"),
        config_of("dora", "llama"),
        PrefixConfig(length=3, projection=5),
        LoradaConfig(parts=[PrefixConfig(length=3), lmam(), lora("llama")]),
    ],
    ids=["lmam", "bottleneck", "lora", "dora", "prefix", "prefix in a stack"],
)
def test_transformers_itself_loads_an_adapter(config, tmp_path):
    TINY["llama"]().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = moved(base, copy.deepcopy(config))
    model.save_pretrained(tmp_path / "adapter")
    inputs = batch("llama")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert_close(logits(loaded, inputs), logits(model, inputs))


def test_new_adapter_leaves_what_trains_as_it_was():
    model = get_peft_model(TINY["llama"](), config_of("lora_ia3", "llama"))
    frozen = next(p for n, p in model.named_parameters() if "lora_w_a" in n)
    frozen.requires_grad = False
    before = {n: p.requires_grad for n, p in model.named_parameters() if "default" in n}

    model.add_adapter("second", config_of("lora_ia3", "llama"))
    assert {n: p.requires_grad for n, p in model.named_parameters() if "default" in n} == before


@pytest.mark.more
def test_pickled_map_still_works_in_a_process_that_never_placed_one(tmp_path):
    inputs, model = batch("llama"), trained("lmam", "llama")
    paths = HELPERS, tmp_path / "model.pt", tmp_path / "logits.pt"
    torch.save((model, inputs), paths[1])
    code = """if True:
        import sys, torch
        sys.path.insert(0, sys.argv[1])
        from in_double import in_double
        model, inputs = torch.load(sys.argv[2], weights_only=False)
        with torch.no_grad(), in_double():
            torch.save(model(**inputs).logits, sys.argv[3])"""
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    assert_close(torch.load(paths[2]), logits(model, inputs))


@pytest.mark.fp64(False)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["lora", "ln_tuning"])
def test_half_precision_base_keeps_fp32_adapters_that_train(name, dtype, tmp_path):
    base, inputs = TINY["llama"]().to(dtype), batch("llama")
    alone = name == "ln_tuning"
    config = lorada.build_method(name, base.config).config if alone else config_of(name, "llama")
    model = moved(base, config)
    out = model(**inputs, labels=inputs["input_ids"])
    out.loss.backward()
    adapter = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in adapter} == {torch.float32}
    assert out.logits.dtype == dtype
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter)
    with torch.no_grad():
        for parameter in adapter:
            parameter.add_(1e-4)  # less than 16 bits can hold beside 1
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        TINY["llama"]().to(dtype), tmp_path, config=lorada.as_stack(tmp_path)
    )
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    for key, parameter in loaded.named_parameters():
        if key in names:
            assert torch.equal(parameter, model.get_parameter(key))


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


def test_the_adapter_to_be_merged_is_checked_and_not_the_active_one():
    inputs = batch("llama")
    model = moved(TINY["llama"](), LoradaConfig(parts=[lora("llama")]), "plain")
    model.add_adapter("mapped", LoradaConfig(parts=[lora("llama"), lmam()]))
    randomise(model.eval(), "mapped")
    expected = logits(model, inputs)
    for merge in (model.merge_and_unload, model.merge_adapter):
        refused("parts of LmamConfig cannot be merged", lambda m=merge: m(adapter_names=["mapped"]))
        refused("unknown adapter 'map'", lambda m=merge: m(adapter_names=["map"]))
    assert_close(logits(model, inputs), expected)

    model.base_model.set_adapter(["mapped"])
    assert_close(logits(model.merge_and_unload(adapter_names=["plain"]), inputs), expected)


class Packed(torch.nn.Parameter):
    """A weight that no delta can be added to, as quantised ones are."""


def test_a_refused_merge_weights_leaves_the_stack_as_it_was(tmp_path):
    base = TINY["llama"]()
    layer = base.model.layers[1].self_attn
    layer.v_proj.weight = Packed(layer.v_proj.weight)
    model = moved(base, LoradaConfig(parts=[SoraConfig(rank=2), lmam()]))
    inputs = batch("llama")
    expected = logits(model, inputs)
    refused("Linear is quantised, which merging does not support", model.merge_weights)
    assert_close(logits(model, inputs), expected)
    assert_loads(model, TINY["llama"](), tmp_path, inputs)


def test_a_merge_weights_that_fails_half_way_leaves_the_config_its_parts(monkeypatch):
    model = trained("lora", "llama")
    wrapped = model.base_model.model.model.layers[0].self_attn.q_proj

    def fail(**options):
        raise NotImplementedError("no")

    monkeypatch.setattr(wrapped, "merge", fail)
    refused("this adapter cannot be merged into the weights: no", model.merge_weights)
    kinds = [part.peft_type.value for part in model.peft_config["default"].parts]
    assert kinds == ["LMAM", "LORA", "BOTTLENECK"]


@pytest.mark.parametrize("names", [["lora"], ["lora", "lmam"], ["lmam"]], ids="+".join)
def test_what_was_merged_is_not_lost_by_saving(names, tmp_path):
    parts = {"lora": lora("llama"), "lmam": lmam()}
    model = moved(TINY["llama"](), LoradaConfig(parts=[parts[name] for name in names]))
    rest = model.merge_weights()
    said = r"merged .* `lorada export RUN DIR`.*merge_and_unload\(\) .*\.unload\(\)"
    refused(said, lambda: model.save_pretrained(tmp_path / "lost"))
    if names == ["lora", "lmam"]:
        refused(said, lambda: rest.save_pretrained(tmp_path / "lost"))
    else:  # the whole base, or a map over the base as it was
        rest.save_pretrained(tmp_path / "rest")
    assert not (tmp_path / "lost").exists()


def test_stack_leaves_the_configs_it_is_made_of_alone():
    part = lora("llama")
    before = part.to_dict()
    for name in ("one", "two"):
        config = LoradaConfig(parts=[part], layers_to_transform=[0], init_weights=False)
        get_peft_model(TINY["llama"](), config, adapter_name=name)

    assert part.to_dict() == before


def test_options_of_the_stack_hold_for_every_part():
    options = {"layers_to_transform": [1], "init_weights": False}
    model = get_peft_model(TINY["llama"](), config_of("lora", "llama", **options)).eval()
    names = [n for n, p in model.named_parameters() if p.requires_grad]

    assert names
    assert all(".layers.1." in name for name in names)
    inputs = batch("llama")
    assert not torch.allclose(logits(model, inputs), logits(TINY["llama"](), inputs), atol=1e-3)


def test_two_parts_of_one_kind_on_different_modules_are_one_adapter(tmp_path):
    parts = [lora("llama", QUERY), LoraConfig(r=5, target_modules=["o_proj"])]
    model = moved(TINY["llama"](), LoradaConfig(parts=parts))
    assert_loads(model, TINY["llama"](), tmp_path, batch("llama"))


# LoRA that no weight can hold.

# Setting of LoRA -> what the error says of it.
SETTINGS = {
    "lora_bias": (True, "lora_bias=True cannot be merged into model.layers.0.self_attn.q_proj"),
    "alora_invocation_tokens": ([7], r"alora_invocation_tokens=\[7\] changes only what follows"),
    "layer_replication": ([[0, 2], [1, 2]], "layer_replication makes layers that share"),
}


def lora_with(name, value):
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **{name: value})


@pytest.mark.parametrize("name", SETTINGS)
def test_what_no_weight_can_say_is_refused_and_left_as_it_is(name):
    value, message = SETTINGS[name]
    for parts in ([lora_with(name, value)], [lmam(), lora_with(name, value)]):
        model = moved(TINY["llama"](), LoradaConfig(parts=parts, task_type="CAUSAL_LM"))
        inputs = batch("llama")
        expected = logits(model, inputs)
        for merge in (model.merge_and_unload, model.merge_weights, model.merge_adapter):
            refused(f"{message}.*keep it as an adapter$", merge)
        assert_close(logits(model, inputs), expected)
        assert len(model.peft_config["default"].parts) == len(parts)


def test_a_bias_is_merged_where_the_base_has_one():
    lora = LoraConfig(r=2, target_modules=["query"], lora_bias=True)
    model = moved(TINY["bert"](), LoradaConfig(parts=[lora]))
    inputs = batch("bert")
    expected = logits(model, inputs)
    assert any("lora_B.default.bias" in name for name, _ in model.named_parameters())
    assert_close(logits(model.merge_and_unload(), inputs), expected)


@pytest.mark.more
@pytest.mark.parametrize("name", ["alora_invocation_tokens", "layer_replication"])
def test_exporting_it_is_refused_before_anything_is_written(name, tmp_path, works, mistake):
    value, message = SETTINGS[name]
    llama_folder(tmp_path / "llama")
    rows_file(tmp_path / "rows.jsonl")
    fixed = ("train", "--method", "lora", "--model", tmp_path / "llama", "--data",
             tmp_path / "rows.jsonl", "--output", tmp_path / "run")  # fmt: skip
    small = ("max_steps=1", "max_length=16", "training.report_to=[]")
    works(*fixed, *small, f"lora.{name}={value}")
    assert message.replace("\\", "") in mistake("export", tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["head", "embeddings of a part", "lora on changed embeddings"])
def test_embeddings_are_saved_and_loaded_as_by_peft(how, tmp_path):
    folder = llama_folder(tmp_path / "base")

    def base():
        model = AutoModelForCausalLM.from_pretrained(folder)
        if how != "lora on changed embeddings":
            torch.manual_seed(1)
            model.resize_token_embeddings(model.config.vocab_size + 8)
        return model

    changed = base()
    if how == "lora on changed embeddings":
        changed.get_input_embeddings().weight.data[-8:] += 1
    targets = ["q_proj", *(["embed_tokens"] if "lora" in how else [])]
    inner = {"modules_to_save": ["embed_tokens"]} if "part" in how else {}
    outer = {"modules_to_save": ["lm_head"]} if how == "head" else {}
    parts = [lmam(), LoraConfig(r=2, target_modules=targets, **inner)]
    model = get_peft_model(changed, LoradaConfig(parts=parts, **outer)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    inputs = {"input_ids": torch.arange(4, 20)[None]}
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
