"""What every method promises, on models it is defined on.

It has its size, starts, trains, is saved and loaded, and merges or says that it cannot. The sizes
are worked out here, from the widths of the plain model and the numbers in the config.
"""

import json
import re

import pytest
import torch
from architectures import ARCHITECTURES, ENCODER_DECODERS, inputs, logits
from conftest import SIZES, VOCAB, assert_close
from folders import bert_folder, byte_tokenizer, llama_folder, refused, rows_file
from method_cases import (
    BUILDERS,
    CASES,
    FURTHER_CASES,
    UNDEFINED,
    defined,
    placed,
    refusal,
    selected,
    small,
)
from peft import AdaLoraConfig, LoraConfig, ShiraConfig
from stacks import assert_loads, randomise, starts_as_base
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
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.methods.lookup import method_named
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

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
    if METHODS[name].freeze:  # of LoRA-FA only B trains
        return sum(part.r * out for part in parts for _, out in widths(part, model).values())
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


@pytest.mark.parametrize(
    ("name", "model"), [*selected(CASES), *selected(FURTHER_CASES)], ids=lambda part: part
)
def test_a_method_starts_and_trains_as_it_says_and_comes_back_from_its_file(name, model, tmp_path):
    batch, plain = inputs(model), BUILDERS[model]()
    adapted, plan = placed(name, model, batch)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    if plan.config is None:
        assert METHODS[name].trains != "biases" or all(n.endswith("bias") for n in trained)
        return
    own = ["lora_", "shira_"]
    if any(getattr(part, "modules_to_save", None) for part in plan.config.parts):
        own.append("modules_to_save")
    assert all(any(f".{key}" in n for key in own) for n in trained)
    if starts_as_base(plan.config):
        assert_close(logits(adapted, **batch), logits(plain, **batch))
    else:
        assert (logits(adapted, **batch) - logits(plain, **batch)).abs().max() > 1e-4
    randomise(adapted)
    changed = logits(adapted, **batch)
    with adapted.disable_adapter():
        assert_close(logits(adapted, **batch), logits(plain, **batch))
    assert not torch.allclose(changed, logits(plain, **batch), atol=1e-3)
    assert_loads(adapted, BUILDERS[model](), tmp_path, batch)


@pytest.mark.parametrize(("name", "model"), UNDEFINED, ids=lambda part: part)
def test_a_method_is_refused_in_words_where_it_has_no_form(name, model):
    refused(refusal(name, model), lambda: placed(name, model, inputs(model)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where rows are, and models, which are made when they are first asked for."""
    root = tmp_path_factory.mktemp("models")
    rows_file(root / "rows.jsonl")
    judged = [{"text": "ab" * (i % 5 + 1), "label": "yn"[i % 2]} for i in range(24)]
    rows_file(root / "labels.jsonl", judged)
    tokenizer = byte_tokenizer()

    def made(name):
        if name == "llama":
            return llama_folder(root / name, num_hidden_layers=5)
        if name == "bert":
            return bert_folder(root / name)
        narrower = {"embedding_size": 16} if name == "electra" else {}
        BUILDERS[name](vocab_size=len(tokenizer), **narrower).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        return root / name

    return lambda name: root / name if (root / name).exists() else made(name)


PLUGGED = ("lora", "dora", "series", "parallel", "quanta", "longlora")


def runnable() -> list:
    """Each method on the kind of model that the paper has it for, a decoder where it has both.

    Those that are parts alone train through the same code, so only a few are not slow. Models that
    the paper does not have are there with one method each.
    """
    cases = [("dora", "electra"), ("prefix", "t5"), ("lora", "gpt2")]
    for name in [*METHODS, *(f"{name}+lmam" for name in PLUGGED)]:
        method = method_named(name)
        decodes = defined(name, "llama") and "llama" in (method.parts or ["llama"])
        own = method.callbacks or method.prepare or method.trainable
        slow = [] if own or name in ("lora+lmam", "mam", "lorada_la") else [pytest.mark.slow]
        cases.append(pytest.param(name, "llama" if decodes else "bert", marks=slow))
    return cases


@pytest.mark.fp64(False)
@pytest.mark.parametrize(("name", "model"), runnable(), ids=lambda part: part)
def test_a_method_by_name_trains_saves_and_scores(name, model, folder, tmp_path):
    rows = folder("labels.jsonl" if model in ("bert", "electra") else "rows.jsonl")
    pairs = [f"{part}.{key}={json.dumps(value)}" for part, values in small(name).items()
             for key, value in values.items()]  # fmt: skip
    pairs += ["max_steps=4", "per_device_train_batch_size=4", "report_to=[]", "logging_steps=1"]
    options = {"method": name, "model": str(folder(model)), "data": str(rows)}
    recipe = load_recipe(None, pairs, {**options, "output": str(tmp_path / "run")})
    result = train(recipe, quiet=True).result
    assert result.steps == 4
    assert result.parameters.trainable > 0
    if model not in ("llama", "bert"):
        assert result.settings_from.startswith("not from the paper") == (model == "electra")
    metrics = evaluate(load_run(tmp_path / "run"), str(rows))
    assert metrics["n"] == sum(1 for _ in rows.open())
