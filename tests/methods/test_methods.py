"""METHODS by name: the plan, its settings, size and rate, and what is refused."""

import json
import re

import pytest
from conftest import TINY
from transformers import BartConfig, BertConfig, DebertaV2Config, LlamaConfig

from lorada import METHODS, build_method
from lorada.methods.check_overrides import TRAINING, names_of, settings_of
from lorada.methods.fit_to_model import fit_defaults
from lorada.methods.head_modules import select_trainable
from lorada.methods.lookup import describe
from lorada.methods.method import PARTS, Method, part_class, peft_configs
from lorada.methods.sizes_and_rates import RATE_RANGE, RATES, SIZES, default_rate

LLAMA, BERT = LlamaConfig(), BertConfig()


def test_overrides_reach_the_one_part_that_has_them():
    lmam, lora, _ = build_method("lorada_la", LLAMA, length=64, r=3).config.parts
    assert (lmam.length, lora.r) == (64, 3)
    lmam, _, bottleneck = build_method(
        "lorada_la", LLAMA, lmam={"rank": 5}, bottleneck={"rank": 7}
    ).config.parts
    assert (lmam.rank, bottleneck.rank) == (5, 7)


@pytest.mark.parametrize("section", [*PARTS, TRAINING])
def test_the_names_in_the_file_of_a_class_are_the_fields_that_it_has(section):
    assert names_of(section) == settings_of(section).keys()


@pytest.mark.parametrize(
    ("method", "model", "asked", "alpha"),
    [
        ("lora", LLAMA, {"r": 8}, 16),
        ("lora", BERT, {"r": 3}, 6),
        ("lora", BartConfig(), {"r": 1}, 4),
        ("dora+lmam", LLAMA, {"lora": {"r": 1}}, 2),
        ("lorada_la", LLAMA, {"r": 4}, 8),
        ("adalora", DebertaV2Config(), {"init_r": 10, "target_r": 2}, 10 * 16 / 12),
        ("sora", BERT, {"sora": {"rank": 3}}, 6),
        ("randlora", LLAMA, {"r": 4}, 80),  # PEFT's own defaults are 640 and 32
        ("lora", LLAMA, {"r": 8, "lora_alpha": 64}, 64),
        ("lora", LLAMA, {"r": 8, "use_rslora": True}, 64),  # which is α/√r
        ("hira", LLAMA, {"r": 8}, None),
    ],
)
def test_a_rank_without_an_alpha_keeps_the_scale_of_the_method(method, model, asked, alpha):
    parts = build_method(method, model, **asked).config.parts
    found = [value for p in parts for key, value in vars(p).items() if key.endswith("alpha")]
    assert found == ([] if alpha is None else [pytest.approx(alpha)])


def test_a_method_that_finds_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="not defined for this model"):
        select_trainable(TINY["llama"](), METHODS["bitfit"].trainable)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_in_one_line_when_to_try_it(name):
    assert METHODS[name].when
    assert not METHODS[name].when.endswith(".")
    assert "\n" not in METHODS[name].when


@pytest.mark.parametrize("name", [*METHODS, "lora+lmam"])
def test_every_method_has_its_formula_and_its_paper(name):
    row = describe(name)
    assert row["summary"]
    assert list(row["settings_from"]) == row["models"]
    assert all(row["settings_from"].values())
    assert row["formula"]
    assert "\n" not in row["formula"]
    link = r"https://(arxiv\.org/abs/\d{4}\.\d{5}|aclanthology\.org/\S+)"
    assert all(re.fullmatch(link, each) for each in row["paper"].split())
    assert row["paper"]
    assert row["models"]
    assert json.loads(json.dumps(row)) == row


def test_a_method_is_refused_on_a_kind_of_model_that_it_has_no_settings_for(monkeypatch):
    encoder_only = Method("x", {"roberta": {"lora": {"target_modules": ["query"]}}}, source="here")
    monkeypatch.setitem(METHODS, "encoder_only", encoder_only)
    # DeBERTa is an encoder like RoBERTa, whose settings it takes.
    plan = build_method("encoder_only", DebertaV2Config())
    assert plan.config.parts[0].target_modules == {"attention.self.query_proj"}
    assert plan.settings_from == "here; those of roberta models, taken to a deberta-v2 model"
    message = "encoder_only has no settings for llama models, only for roberta: use another method"
    with pytest.raises(ValueError, match=message):
        build_method("encoder_only", LLAMA)


def test_bitfit_trains_every_bias_but_that_of_the_pooler():
    rule = re.compile(METHODS["bitfit"].trainable)
    layer = "deberta.encoder.layer.0.attention.self"  # version 1 has no bias of in_proj
    for name in ("bias", f"{layer}.q_bias", f"{layer}.v_bias", f"{layer}.query.bias"):
        assert rule.search(name), name
    for name in ("deberta.pooler.dense.bias", f"{layer}.in_proj.weight", "unbias", "bias.weight"):
        assert not rule.search(name), name


@pytest.mark.parametrize("part", SIZES)
def test_every_setting_of_a_size_is_a_setting_of_the_part(part):
    assert set(SIZES[part]) <= part_class(part).__dataclass_fields__.keys()


def test_every_method_has_a_rate_within_the_range_of_the_search():
    assert METHODS.keys() <= RATES.keys()
    for name, rate in RATES.items():
        assert name in METHODS or name in peft_configs(), name
        assert RATE_RANGE[0] <= rate <= RATE_RANGE[1], name


def test_a_rate_that_a_method_sets_itself_is_its_default_rate():
    own = {name: m.arguments["learning_rate"] for name, m in METHODS.items() if m.arguments
           if "learning_rate" in m.arguments}  # fmt: skip
    assert len(own) >= 5
    assert own == {name: default_rate(name) for name in own}


def test_a_map_on_top_leaves_the_rate_of_the_method_as_it_is():
    assert default_rate("lmam") == 1.2e-2
    assert default_rate("prefix+lmam") == default_rate("prefix") == 3e-2


def test_a_default_that_fits_a_model_stays_and_another_is_lowered_to_one_that_does():
    sizes = {"hidden_size": 48, "intermediate_size": 48, "num_attention_heads": 4}
    config = LlamaConfig(num_hidden_layers=1, max_position_embeddings=64, vocab_size=96, **sizes)
    parts = {"oft": {"oft_block_size": 32}, "prefix": {"length": 30}, "lmam": {"length": 128}}
    fitted = fit_defaults(parts, {}, config)
    assert fitted.parts["oft"]["oft_block_size"] == 24  # of the divisors of 48
    lengths = {part: fitted.parts[part]["length"] for part in ("prefix", "lmam")}
    assert lengths == {"prefix": 30, "lmam": 64}
    assert len(fitted.replaced) == 2
    longer = fit_defaults({"prefix": {"length": 100}}, {}, config)
    assert longer.parts["prefix"]["length"] == 63  # a text has room for a token
    assert fit_defaults({"prefix": {"length": 100}}, {"prefix": ["length"]}, config).replaced == []


def test_a_sum_takes_the_rate_that_suits_all_its_methods():
    assert default_rate("lora+ia3") == default_rate("ia3+lora") == RATES["lora"] < RATES["ia3"]
    assert default_rate("lora+lmam") == RATES["lora"] < RATES["lmam"]
