"""Weights that two modules share: a part on one of them changes that one, merged and saved too."""

import json

import pytest
import torch
from architectures import ARCHITECTURES, inputs
from conftest import TINY, assert_close
from folders import refused
from peft import IA3Config, LoraConfig, PeftModel, TrainableTokensConfig
from safetensors import safe_open
from stacks import lmam, logits, moved

from lorada import LoradaConfig, QuantaConfig, SoraConfig

pytestmark = pytest.mark.fp64


def on(*targets, **options):
    return LoraConfig(r=2, lora_alpha=4, target_modules=list(targets), **options)


# What changes one of the two weights, or both, of a model that computes with one.
PLACED = {
    "head": lambda: [on("lm_head")],
    "embeddings": lambda: [on("embed_tokens")],
    "both": lambda: [on("embed_tokens", "lm_head")],
    "tied_adapters": lambda: [on("embed_tokens", ensure_weight_tying=True)],
    "dora": lambda: [on("lm_head", use_dora=True)],
    "quanta": lambda: [QuantaConfig(target_modules=["lm_head"])],
    "sora": lambda: [SoraConfig(target_modules=["lm_head"])],
    "ia3": lambda: [IA3Config(target_modules=["lm_head"], feedforward_modules=[])],
    "nested": lambda: [
        on("lm_head"), IA3Config(target_modules=["lm_head"], feedforward_modules=[])
    ],
    "tokens": lambda: [TrainableTokensConfig(token_indices=[5, 6, 7])],
    "saved_head": lambda: [on("q_proj", modules_to_save=["lm_head"])],
    "saved_embeddings": lambda: [on("q_proj", modules_to_save=["embed_tokens"])],
    "saved_both": lambda: [on("q_proj", modules_to_save=["embed_tokens", "lm_head"])],
}  # fmt: skip
STILL_TIED = "tokens"  # whose two modules get the same rows
ALONE = {"quanta_alone": lambda: QuantaConfig(target_modules=["lm_head"])}  # in no stack

# Other ways to tie: encoder, decoder and head; a bias too; and T5, whose config would read
# "not tied" as "do not scale what the head sees".
OTHERS = {
    "bert": [on("word_embeddings")],
    "bart": [on("encoder.embed_tokens")],
    "t5": [on("q", modules_to_save=["lm_head"])],
}


def adapted(base, parts):
    config = LoradaConfig(parts=parts) if isinstance(parts, list) else parts
    return moved(base, config)


def tied_llama():
    return TINY["llama"](tie_word_embeddings=True)


@pytest.mark.parametrize("placed", [*PLACED, *ALONE])
def test_a_part_on_one_of_two_tied_weights_is_merged_into_that_one_and_taken_out_again(
    placed, tmp_path
):
    batch, model = inputs("llama"), adapted(tied_llama(), (PLACED | ALONE)[placed]())
    expected = logits(model, batch)
    assert not torch.allclose(logits(tied_llama(), batch), expected, atol=1e-2)
    model.merge_adapter()
    assert_close(logits(model, batch), expected)
    model.unmerge_adapter()
    if placed not in ("ia3", "nested"):  # PEFT divides by IA3's vector and 1e-8
        assert_close(logits(model, batch), expected)
    expected = logits(model, batch)

    merged = model.merge_and_unload()
    assert_close(logits(merged, batch), expected)
    merged.save_pretrained(tmp_path)
    assert_close(logits(type(merged).from_pretrained(tmp_path).eval(), batch), expected)
    tied = json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert tied == ("lm_head.weight" not in file.keys())  # noqa: SIM118
    if placed != "tied_adapters":  # which may come out equal or not, by the rounding
        assert tied == (placed == STILL_TIED)


@pytest.mark.parametrize("name", OTHERS)
def test_where_more_than_two_weights_are_tied_it_stays_an_adapter(name):
    batch, model = inputs(name), adapted(ARCHITECTURES[name](), OTHERS[name])
    expected = logits(model, batch)
    for unload in (model.merge_and_unload, model.merge_weights, model.unload):
        refused(r"changes \S+, one of several weights that \w+ ties .*: keep it as an", unload)
    assert_close(logits(model, batch), expected)
    plain = adapted(ARCHITECTURES[name](), [LoraConfig(r=2, target_modules="all-linear")])
    if name != "bert":  # whose pooler is linear too, and which has no other
        assert plain.merge_and_unload().config.tie_word_embeddings


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "alone"])
def test_unloading_leaves_a_config_that_says_what_the_weights_are(stacked):
    part = lmam(modules_to_save=["embed_tokens"])
    model = moved(tied_llama(), LoradaConfig(parts=[part]) if stacked else part)
    plain = model.unload()
    assert not torch.equal(plain.lm_head.weight, plain.model.embed_tokens.weight)
    assert not plain.config.tie_word_embeddings


def test_what_no_part_touched_stays_tied():
    model = adapted(tied_llama(), [on("q_proj"), lmam()]).merge_weights().unload()
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("placed", ["head", "nested", "tied_adapters", "tokens", "saved_both"])
def test_beside_a_map_it_is_merged_likewise(placed, tmp_path):
    batch, model = inputs("llama"), adapted(tied_llama(), [lmam(), *PLACED[placed]()])
    expected = logits(model, batch)

    rest = model.merge_weights()
    assert_close(logits(rest, batch), expected)
    rest.peft_config["default"].base_model_name_or_path = str(tmp_path / "merged")
    rest.save_pretrained(tmp_path / "rest")
    rest.unload().save_pretrained(tmp_path / "merged")
    again = type(tied_llama()).from_pretrained(tmp_path / "merged").eval()
    assert_close(logits(PeftModel.from_pretrained(again, tmp_path / "rest"), batch), expected)
