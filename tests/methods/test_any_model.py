"""Methods on models that the paper does not have: names, and defaults that do not fit."""

import re

import pytest
from architectures import ARCHITECTURES, ENCODER_DECODERS
from conftest import DECODER_SIZES
from folders import refused
from method_cases import BUILDERS, defined
from peft import get_peft_model
from peft.tuners.tuners_utils import _get_in_out_features
from transformers import (
    AutoConfig,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    RobertaConfig,
)

from lorada import METHODS, build_method
from lorada.methods.build import scheme_of
from lorada.methods.matrix_names import SCHEMES, has_linears_of, translate_names
from lorada.methods.meta_model import meta_model
from lorada.methods.provenance import SOURCES
from lorada.methods.table import UNPUBLISHED
from lorada.training.models.loading import kind_of
from lorada.tuners.base.linears import layer_linear_names, linear_of

OF_PLACES = ("pos_proj", "pos_q_proj")  # DeBERTa's, which the positions go through


def hit(model, targets) -> set[str]:
    """The modules that target_modules name, as PEFT reads them."""
    names = {name for name, _ in model.named_modules()}
    if isinstance(targets, str):
        return {name for name in names if re.fullmatch(targets, name)}
    return {name for name in names if any(f".{name}".endswith(f".{t}") for t in targets)}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_linear_of_a_layer_has_a_role_and_the_widths_of_it(name):
    model = BUILDERS[name]()
    scheme = SCHEMES[model.config.model_type]
    linears = layer_linear_names(meta_model(model.config))
    assert has_linears_of(scheme, [linear for linear in linears if not linear.endswith(OF_PLACES)])
    found = {
        role: [
            _get_in_out_features(linear_of(model.get_submodule(module)))
            for module in hit(model, translate_names(names, scheme, scheme))
        ]
        for role, names in scheme.items()
        if role not in ("embeddings", "norms") and (role, name) != ("gate", "t5")
    }
    assert all(found.values())
    heads = {32, 48}  # Qwen3's are wider than the model
    assert {width for width, _ in found["query"] + found["key"] + found["value"]} == {32}
    assert {out for _, out in found["output"]} == {32}
    assert {width for width, _ in found["output"]} <= heads
    assert {width for width, _ in found["up"]} == {out for _, out in found["down"]} == {32}
    assert min(out for _, out in found["up"]) > 32
    assert {width for width, _ in found["down"]} <= {48, 128}


def test_names_whose_end_is_anothers_become_a_pattern_that_keeps_them_apart():
    model = BUILDERS["bert"]()
    ffn = build_method("prefix_lora", model.config).config.parts[1].target_modules
    halves = ("intermediate", "output")
    assert hit(model, ffn) == {f"bert.encoder.layer.{i}.{h}.dense" for i in (0, 1) for h in halves}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_settings_for_every_kind_of_model_and_all_their_names_have_roles(name):
    models = ("llama", "roberta", "deberta_v2", "bart", "mbart", "gpt2", "phi3", "t5", "vit")
    for model in models if METHODS[name].parts else ():
        if not defined(name, model):
            continue
        plan = build_method(name, BUILDERS[model]().config)
        assert plan.settings_from
        for part in plan.config.parts:
            targets = getattr(part, "target_modules", None)
            assert targets is None or hit(BUILDERS[model](), targets)


def test_a_model_type_nobody_knows_works_where_its_matrices_are_named():
    class Unheard(GPT2Config):
        model_type = "unheard"

    config = Unheard(n_embd=32, n_layer=2, n_head=4, vocab_size=96)
    message = "the matrices of unheard models .* are known here: give lora.target_modules="
    refused(message, lambda: build_method("lora", config))
    plan = build_method("lora", config, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(GPT2LMHeadModel(GPT2Config(**config.to_diff_dict())), plan.config)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 4
    assert all("c_attn" in n for n in trained)
    # What finds its places in the modules of a model needs no names.
    for name in ("lmam", "adapter_ffn", "prefix"):
        assert build_method(name, config).config.parts


def test_a_model_type_nobody_knows_with_the_linears_of_one_that_is_known_needs_no_names():
    config = AutoConfig.for_model("olmo2", **DECODER_SIZES)
    assert "olmo2" not in SCHEMES
    assert scheme_of(config, "lora.target_modules") is SCHEMES["llama"]
    assert build_method("dora", config).config.parts[0].target_modules >= {"q_proj", "down_proj"}
    config = AutoConfig.for_model("mixtral", **DECODER_SIZES)
    message = r"give lora\.target_modules=.*self_attn\.q_proj"
    refused(message, lambda: build_method("dora", config))


def test_the_kind_of_a_model_is_read_from_its_config():
    kinds = {name: kind_of(BUILDERS[name]().config) for name in BUILDERS}
    assert {n for n, kind in kinds.items() if kind == "encoder_decoder"} == set(ENCODER_DECODERS)
    assert {name for name, kind in kinds.items() if kind == "encoder"} == {
        "bert", "roberta", "xlm_roberta", "electra", "distilbert", "modernbert", "deberta",
        "deberta_v2", "vit",
    }  # fmt: skip
    assert kind_of(BertConfig(is_decoder=True)) == "decoder"
    assert kind_of(AutoConfig.for_model("camembert")) == "encoder"


@pytest.mark.parametrize(
    ("method", "config", "said", "key", "value"),
    [
        ("lorada_a", RobertaConfig(hidden_size=1024, num_attention_heads=16),
         "lmam.heads=3 does not divide 16: taking 4", "heads", 4),
        ("lorada_a", BertConfig(max_position_embeddings=64),
         "lmam.length=512 does not fit the 64 tokens that the model takes: taking 64",
         "length", 64),
        ("prefix", LlamaConfig(**DECODER_SIZES | {"max_position_embeddings": 16}),
         "prefix.length=30 does not fit the 16 tokens that the model takes: taking 15",
         "length", 15),
        ("shira", LlamaConfig(**DECODER_SIZES | {"hidden_size": 64}),
         "shira.r=38 is more than a weight of 32 × 64 has room for: taking 21", "r", 21),
        ("quanta", GPT2Config(n_embd=32, n_layer=2, n_head=4),
         "quanta.target_modules=['attn.c_attn'] is query, key and value in one",
         "target_modules", ["attn.c_proj"]),
    ],
)  # fmt: skip
def test_a_default_that_does_not_fit_falls_to_the_nearest_with_a_line(
    method, config, said, key, value, caplog
):
    plan = build_method(method, config)
    assert said in caplog.text
    assert said in plan.settings_from
    assert getattr(plan.config.parts[0], key) == value


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("lorada_a", {"heads": 3}, "heads=3 does not divide the 4 attention heads"),
        ("shira", {"r": 38}, "rank 38 results in more shira params than"),
        ("lamda", {"rank": 64, "ranks": "uniform"}, "rank=64 is more than a weight of"),
    ],
)
def test_what_the_user_wrote_is_never_changed(method, overrides, message, caplog):
    name = "roberta" if method == "lorada_a" else "llama"
    model = ARCHITECTURES[name]()
    plan = build_method(method, model.config, **overrides)
    key, value = next(iter(overrides.get(method, overrides).items()))
    assert getattr(plan.config.parts[0], key) == value
    assert f".{key}=" not in caplog.text
    refused(message, lambda: get_peft_model(model, plan.config))


def test_settings_that_are_not_the_papers_say_so_everywhere(works):
    for name, ours in UNPUBLISHED.items():
        for kind in ours.parts:
            assert kind not in METHODS[name].parts
    where = build_method("dora", BertConfig()).settings_from
    assert where == f"not from the paper: {UNPUBLISHED['dora'].source}"
    source = SOURCES["dora"]["llama"]
    assert build_method("dora", LlamaConfig()).settings_from == source
    taken = build_method("dora", GPT2Config()).settings_from
    assert taken == f"{source}; those of llama models, taken to a gpt2 model"
    out, _ = works("params", "--method", "dora", "--model", "roberta-base")
    assert where in " ".join(out.split())
    out, _ = works("methods", "dora")
    assert "any encoder: 'not from the paper: the settings of LoRA in" in " ".join(out.split())
