"""Weights that two modules share: a part on one of them changes that one, merged and saved too."""

import json

import pytest
import torch
from architectures import ARCHITECTURES, inputs
from conftest import TINY, assert_close
from peft import IA3Config, LoraConfig, PeftModel, TrainableTokensConfig
from safetensors import safe_open
from stacks import lmam, logits, moved

from lorada import LmamConfig, LoradaConfig, QuantaConfig, SoraConfig

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
STILL_TIED = "tokens"  # whose two weights stay equal
ALONE = {"quanta_alone": lambda: QuantaConfig(target_modules=["lm_head"])}  # in no stack

# Other ways to tie: encoder, decoder and head; a bias too; and T5, whose config would read
# "not tied" as "do not scale what the head sees".
OTHERS = {
    "gpt2": (["wte"], ["lm_head"]),
    "bert": (["word_embeddings"], ["predictions.decoder"]),
    "bart": (["embed_tokens"], ["lm_head"], ["encoder.embed_tokens"]),
    "t5": (["embed_tokens"], ["lm_head"], ["decoder.embed_tokens"]),
    "whisper": (["decoder.embed_tokens"], ["proj_out"]),
}
OTHER_CASES = [(name, targets) for name, cases in OTHERS.items() for targets in cases]


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


@pytest.mark.parametrize(("name", "targets"), OTHER_CASES, ids=str)
def test_every_way_to_tie_is_untied(name, targets, tmp_path):
    plain = ARCHITECTURES[name]()
    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    batch, model = inputs(name), adapted(ARCHITECTURES[name](), [on(*targets)])
    expected = logits(model, batch)
    assert not torch.allclose(logits(plain, batch), expected, atol=1e-2)

    merged = model.merge_and_unload()
    assert_close(logits(merged, batch), expected)
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path).eval()
    assert_close(logits(again, batch), expected)
    assert again.state_dict().keys() == plain.state_dict().keys()


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


def test_a_refused_merge_leaves_the_weights_tied():
    model = adapted(tied_llama(), [on("lm_head"), LmamConfig(length=6, rank=2)])
    with pytest.raises(ValueError, match="LmamConfig cannot be merged"):
        model.merge_and_unload()
    base = model.get_base_model()
    assert base.config.tie_word_embeddings
    assert base.lm_head.base_layer.weight is base.model.embed_tokens.weight


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
