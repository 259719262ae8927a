"""What every method promises: its size, that it learns, and that it merges or says not.

The sizes are worked out here, from the widths of the plain model and the numbers in the config.
"""

import re

import pytest
from architectures import ARCHITECTURES, ENCODER_DECODERS, inputs, logits
from conftest import SIZES, VOCAB, assert_close
from method_cases import CASES, placed, selected, small
from peft import AdaLoraConfig, LoraConfig, ShiraConfig
from stacks import randomise
from torch import nn

from lorada import (
    METHODS,
    BottleneckConfig,
    LamdaConfig,
    LmamConfig,
    OmoeConfig,
    PrefixConfig,
    QuantaConfig,
    SoraConfig,
    build_method,
)

pytestmark = pytest.mark.fp64

D, FFN, HEADS = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["num_attention_heads"]
LAYERS = SIZES["num_hidden_layers"]  # of each stack

ADAPTERS = [(name, model) for name, model in CASES if METHODS[name].parts]


def widths(part, model: str) -> dict[str, tuple[int, int]]:
    """Input and output width of every matrix that a part is on, all of the layers by default."""
    pattern = part.target_modules or ".*"
    if not isinstance(pattern, str):
        pattern = rf".*\.({'|'.join(pattern)})"
    found = {
        name: (module.in_features, module.out_features)
        for name, module in ARCHITECTURES[model]().named_modules()
        if isinstance(module, nn.Linear) and re.search(r"\.\d+\.", name)
        if re.fullmatch(pattern, name)
    }
    assert found
    return found


# Of LongLoRA: embeddings, norms of each layer and those outside of the layers, with their biases;
# BART's encoder and decoder have embeddings of their own then.
WHOLLY = {
    "llama": VOCAB * D + (2 * LAYERS + 1) * D,
    "roberta": VOCAB * D + (2 * LAYERS + 1) * 2 * D,
    "bart": 2 * VOCAB * D + (5 * LAYERS + 2) * 2 * D,
    "mbart": 2 * VOCAB * D + (5 * LAYERS + 4) * 2 * D,
}


def lora(part, model: str) -> int:
    count = sum(part.r * (i + o) + part.use_dora * o for i, o in widths(part, model).values())
    return count + (WHOLLY[model] if part.modules_to_save else 0)


def lmam(part, model: str) -> int:
    stacks = len(part.stacks or "ed") if model in ENCODER_DECODERS else 1
    n = part.length
    one = HEADS * n * n if part.ablation == "full_rank" else 2 * part.heads * n * part.rank
    return stacks * LAYERS * one


def bottleneck(part, model: str) -> int:
    layers = LAYERS * (2 if model in ENCODER_DECODERS else 1)
    attentions = LAYERS * (3 if model in ENCODER_DECODERS else 1)
    r = part.rank
    with_biases = 2 * D * r + r + D
    return {
        "series": layers * 2 * D * r,
        "parallel": layers * (D + FFN + FFN + D) * r,
        "ffn": layers * with_biases,
        "pfeiffer": layers * with_biases,
        "houlsby": (attentions + layers) * with_biases,
        "pa_attn": attentions * (with_biases + 2 * D),
    }[part.placement]


def prefix(part, model: str) -> int:
    keys = D // 2 if model == "llama" else D  # its heads share keys in pairs
    sets = 3 if model in ENCODER_DECODERS else 1
    blocks, hidden = sets * LAYERS, part.projection
    if hidden is None:
        return blocks * 2 * part.length * keys
    return sets * (part.length * D + D * hidden + hidden) + blocks * 2 * keys * (hidden + 1)


def lamda(part, model: str) -> int:
    sizes = widths(part, model)
    ranks = part.rank_pattern
    assert ranks.keys() == sizes.keys()
    assert set(ranks.values()) <= {part.rank // 2, part.rank, 2 * part.rank}
    assert sum(ranks.values()) <= part.rank * len(sizes)
    return sum(ranks[name] * (ranks[name] + out) for name, (_, out) in sizes.items())


def omoe(part, model: str) -> int:
    r = part.rank
    return sum(part.experts * (r * (i + o) + o + i) for i, o in widths(part, model).values())


# Part -> what it trains.
SIZES_OF = {
    LmamConfig: lmam,
    LoraConfig: lora,
    BottleneckConfig: bottleneck,
    PrefixConfig: prefix,
    # 32 = 4 * 2 * 2 * 2: three pairs of axes have (4 * 2)^2 numbers each, three (2 * 2)^2.
    QuantaConfig: lambda part, model: 240 * len(widths(part, model)),
    SoraConfig: lambda part, model: sum(
        part.rank * (i + o + 1) for i, o in widths(part, model).values()
    ),
    AdaLoraConfig: lambda part, model: sum(
        part.init_r * (i + o + 1) for i, o in widths(part, model).values()
    ),
    ShiraConfig: lambda part, model: sum(part.r * (i + o) for i, o in widths(part, model).values()),
    LamdaConfig: lamda,
    OmoeConfig: omoe,
}
# Seven biases of a width D in an encoder layer and twelve in a decoder layer, one of its FFN; then
# norms, and the head of masked language models.
BIASES = {
    "roberta": LAYERS * (7 * D + FFN) + D + 2 * D + VOCAB,
    "deberta_v2": LAYERS * (7 * D + FFN) + 2 * D + 2 * D + VOCAB,
    "bart": LAYERS * (19 * D + 2 * FFN) + 2 * D,
    "mbart": LAYERS * (19 * D + 2 * FFN) + 4 * D,
}


def expected_size(name: str, model: str, config) -> int:
    plain = ARCHITECTURES[model]()
    if METHODS[name].trainable == ".":
        return sum(p.numel() for p in plain.parameters())
    if METHODS[name].trains == "biases":
        return BIASES[model]
    asked = build_method(name, plain.config, **small(name, plain.config)).config.parts
    # What is asked for says the size, but for the ranks of LaMDA, which the spectra decide.
    parts = [had if isinstance(had, LamdaConfig) else part
             for part, had in zip(asked, config.parts, strict=True)]  # fmt: skip
    return sum(SIZES_OF[type(part)](part, model) for part in parts)


@pytest.mark.parametrize(("name", "model"), CASES, ids=lambda part: part)
def test_a_method_trains_as_many_parameters_as_its_formula_says(name, model):
    adapted, plan = placed(name, model, inputs(model))
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert count == expected_size(name, model, plan.config)


@pytest.mark.parametrize(("name", "model"), selected(ADAPTERS), ids=lambda part: part)
def test_a_method_merges_to_the_same_model_or_says_in_a_line_that_it_cannot(name, model):
    batch = inputs(model)
    adapted, plan = placed(name, model, batch)
    randomise(adapted.double())  # of the weights' rounding, nothing is to be left
    if not plan.config.mergeable:
        with pytest.raises(ValueError, match=r"^[^\n]*cannot be merged into the weights[^\n]*$"):
            adapted.merge_and_unload()
        return
    changed = logits(adapted, **batch)
    merged = adapted.merge_and_unload()
    assert type(merged) is type(ARCHITECTURES[model]())
    assert_close(logits(merged, **batch), changed)
