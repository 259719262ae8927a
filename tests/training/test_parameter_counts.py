"""The parameters of methods and models, counted without weights."""

import pytest
from count_paper_parameters import PAGE, ROWS, SCRIPT, line, page
from library.page import read_marked
from method_cases import counted
from paths import ROOT

from lorada.support.models import MODELS
from lorada.training.models.loading import load_config, model_folder

# N of the published models.
TOTALS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama2-7b": 6_738_415_616,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "roberta-base": 124_645_632,
    "deberta-v3-base": 183_831_552,
    "bart-large": 406_291_456,
    "mbart-large": 610_851_840,
}


def test_every_named_model_has_the_parameters_of_the_published_one():
    assert TOTALS.keys() == {name for name, model in MODELS.items() if model.sizes}
    for name, total in TOTALS.items():
        assert counted("full", name)["total"] == total


@pytest.mark.parametrize(
    ("method", "model", "overrides", "trainable"),
    [
        ("lora", "llama-7b", [], 56_098_816),
        ("lora", "llama-7b", ["r=4"], 7_012_352),
        ("lora", "llama3-8b", [], 56_623_104),
        ("lora", "llama-13b", [], 87_818_240),
        ("lora", "roberta-base", [], 589_824),
        ("dora", "llama-7b", ["r=4"], 7_888_896),
        ("dora", "llama-7b", [], 28_925_952),
        ("lorada_la", "llama-7b", [], 6_120_000),
        ("lorada_a", "roberta-base", [], 414_912),
        ("adapter_ffn", "roberta-base", [], 599_424),
    ],
)
def test_methods_count_what_their_closed_form_says(method, model, overrides, trainable):
    assert counted(method, model, *overrides)["trainable"] == trainable


def test_the_guide_says_what_the_weights_of_an_8b_model_take():
    config = load_config("llama3-8b")
    width, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * width // config.num_attention_heads
    blocks = config.num_hidden_layers * width * (2 * width + 2 * keys + 3 * inner)
    # 4 bits a weight, a scale of 8 bits for 64 of them, and one of 32 bits for 256 scales.
    bits = {"nf4": 4 + 8 / 64 + 32 / (64 * 256), "bf16": 16}
    guide = (ROOT / "docs/guides/one-gpu.md").read_text(encoding="utf-8")
    for name, each in bits.items():
        size = (blocks * each + (TOTALS["llama3-8b"] - blocks) * 16) / 8
        assert f"| {name} | {size / 2**30:.1f} GiB |" in guide


def test_a_name_without_weights_cannot_be_trained_on():
    with pytest.raises(ValueError, match="llama-7b names an architecture without weights"):
        model_folder("llama-7b")


@pytest.mark.more
def test_some_rows_of_the_page_are_what_the_command_counts():
    lines = read_marked(PAGE, SCRIPT).splitlines()
    for row in ROWS[1::9]:
        assert line(row) in lines


@pytest.mark.slow
def test_the_page_is_what_the_command_writes():
    assert read_marked(PAGE, SCRIPT) == page([line(row) for row in ROWS])
