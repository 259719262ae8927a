"""Where each setting is from: the paper's value beside ours where they differ."""

import dataclasses
import json

import pytest
from transformers import BartConfig, BertConfig, LlamaConfig, RobertaConfig

from lorada import METHODS, LmamConfig, build_method
from lorada.methods.lookup import describe, method_named
from lorada.methods.provenance import MAP_DEFAULTS, NOT_STATED, OF_ALL_OTHERS, PRINTED, SOURCES
from lorada.support.models import named_config

LLAMA_7B = {"here": 1.0, "paper": 4096 * 600}
PAPERS = {"inverse_scale": 4096 * 600, "map_learning_rate": None}


@pytest.mark.first
def test_a_map_by_name_shows_the_printed_scale_and_rate_beside_ours(works):
    differences = describe("lorada_la")["not_as_printed"]
    assert differences["llama"]["lmam"]["inverse_scale"] == LLAMA_7B
    assert differences["llama-13b"]["lmam"]["inverse_scale"]["paper"] == 5120 * 600
    assert differences["roberta"]["lmam"]["inverse_scale"]["paper"] == 255
    # Table 15 has a scale of 1 for encoder-decoders, and so have we.
    assert differences["bart"]["lmam"].keys() == {"map_learning_rate", "init"}
    out, _ = works("methods", "lorada_la")
    assert "inverse_scale: {here: 1.0, paper: 2457600}" in out
    assert f"map_learning_rate: {{here: 0.4x, paper: {OF_ALL_OTHERS}}}" in out
    out, _ = works("params", "--method", "lorada_la", "--model", "llama-7b")
    words = " ".join(out.split())
    assert "settings: Table 19, LLaMA-7B; but for lmam.inverse_scale=1.0 (there 2457600)" in words


@pytest.mark.first
def test_settings_that_are_set_to_the_papers_are_the_papers():
    plan = build_method("lorada_la", named_config("llama-7b"), lmam=PAPERS)
    assert plan.settings_from == f"Table 19, LLaMA-7B; but for lmam.init=zero ({NOT_STATED})"


def test_what_the_user_sets_is_not_said_to_be_from_the_source():
    plan = build_method("lora", LlamaConfig(), r=4, target_modules=["q_proj"], use_rslora=True)
    assert plan.settings_from == (
        f"{SOURCES['lora']['llama']}; but for lora.r=4 (there 32), "
        "lora.target_modules=['q_proj'] (there ['q_proj', 'k_proj', 'v_proj', 'up_proj', "
        f"'down_proj']), lora.use_rslora=True ({NOT_STATED})"
    )
    same = build_method("lora", LlamaConfig(), r=32)
    assert same.settings_from == SOURCES["lora"]["llama"]


def test_settings_of_our_own_are_not_said_to_be_those_of_another_model():
    for name in ("lmam", "fmam", "quanta"):
        source = SOURCES[name]["roberta"]
        assert build_method(name, BertConfig()).settings_from.startswith(source)
        assert "roberta" not in build_method(name, BertConfig()).settings_from
    lora = build_method("lora", BertConfig()).settings_from
    assert lora == f"{SOURCES['lora']['roberta']}; those of roberta models, taken to a bert model"


@pytest.mark.parametrize("config", [LlamaConfig(), BertConfig(), RobertaConfig(), BartConfig()])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.parts])
def test_a_map_that_has_the_default_scale_says_what_the_paper_has(name, config):
    if "lmam" not in method_named(name).part_names:
        return
    said = build_method(name, config).settings_from
    assert f"lmam.map_learning_rate=0.4x (there {OF_ALL_OTHERS})" in said
    assert f"lmam.init=zero ({NOT_STATED})" in said


def test_a_sum_says_what_each_of_its_methods_has_otherwise():
    assert describe("lora+lmam")["not_as_printed"]["llama"]["lmam"]["inverse_scale"] == LLAMA_7B
    assert json.loads(json.dumps(describe("lora+lmam"))) == describe("lora+lmam")


def test_every_kind_of_settings_has_a_source_and_every_source_a_kind():
    for name in METHODS:
        method = method_named(name)
        assert all(method.source_of(kind) for kind in method.parts)
        assert SOURCES.get(name, {}).keys() <= method.parts.keys()
        assert PRINTED.get(name, {}).keys() <= method.parts.keys() | method.unpublished.parts.keys()
        # Every map here has another scale, rate or start than the paper prints.
        if name in SOURCES:
            assert ("lmam" in method.part_names) == (name in PRINTED)


def test_the_defaults_of_a_map_are_those_that_listing_the_methods_knows():
    fields = {field.name: field.default for field in dataclasses.fields(LmamConfig)}
    assert {key: fields[key] for key in MAP_DEFAULTS} == MAP_DEFAULTS
