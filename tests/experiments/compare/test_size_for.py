"""``size_for``: the largest size within a budget, beside a search that tries every size."""

from functools import cache
from itertools import count, takewhile

import pytest
from conftest import DECODER_SIZES, SIZES
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, LlamaConfig

from lorada.experiments.compare.sizes import Budget, _largest, size_for
from lorada.experiments.table_spec import counts_of
from lorada.methods.method import PARTS, Method
from lorada.methods.table import METHODS
from lorada.runs.recipe import Recipe, load_recipe

SMOLLM = "smollm2-135m"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders with the configs of a tiny LLaMA and a tiny BERT, by family."""
    folder = tmp_path_factory.mktemp("tiny")
    LlamaConfig(**DECODER_SIZES).save_pretrained(folder / "llama")
    BertConfig(**SIZES, max_position_embeddings=64).save_pretrained(folder / "bert")
    return {name: str(folder / name) for name in ("llama", "bert")}


@pytest.fixture
def c3a_and_others(monkeypatch):
    """Tuners of PEFT as methods, on query and value of the tiny LLaMA."""
    targets = {"target_modules": ["q_proj", "v_proj"]}
    for name, config in OF_PEFT.items():
        monkeypatch.setitem(PARTS, name, f"peft:{config}")
        monkeypatch.setitem(METHODS, name, Method(name, {"llama": {name: targets}}))


OF_PEFT = {
    "c3a": "C3AConfig", "oft": "OFTConfig", "gralora": "GraloraConfig", "loha": "LoHaConfig",
    "lokr": "LoKrConfig", "randlora": "RandLoraConfig", "fourierft": "FourierFTConfig",
    "miss": "MissConfig",
}  # fmt: skip


def recipe_of(method, model, **parts):
    return load_recipe(None, [], {"method": method, "model": model, "output": "-", **parts})


@cache
def trained(method, model, text):
    """How many parameters these settings of parts train; None if they are refused."""
    parts = Recipe.model_validate_json(text).parts
    try:
        return counts_of(recipe_of(method, model, **parts))["trainable"] or None
    except ValueError:
        return None


def trained_at(method, model, parts):
    text = Recipe(model=model, output="-", parts=parts).model_dump_json()
    return trained(method, model, text)


# Method → part → setting, its default, the largest that it may have on the tiny LLaMA.
GROWING = {
    "lora": {"lora": ("r", 32, 16)},
    "dora": {"lora": ("r", 16, 16)},
    "lmam": {"lmam": ("rank", 2, 127)},
    "fmam": {"lmam": ("length", 128, 127)},
    "lora+lmam": {"lmam": ("rank", 2, 127), "lora": ("r", 32, 16)},
    "lorada_la": {"lmam": ("rank", 2, 127), "lora": ("r", 1, 32), "bottleneck": ("rank", 18, 999)},
    "lamda": {"lamda": ("rank", 32, 16)},
    "prefix": {"prefix": ("length", 30, 127)},
    "mam": {"prefix": ("length", 30, 127), "bottleneck": ("rank", 18, 999)},
    "omoe": {"omoe": ("rank", 16, 32)},
    "shira": {"shira": ("r", 38, 16)},
    "sora": {"sora": ("rank", 8, 16)},
}


def every_size(method, model):
    """The trained parameters at every size of a method, all parts in the ratio of defaults."""
    growing = GROWING[method]
    lead, default, most = max(growing.values(), key=lambda each: each[1])
    for size in range(1, most + 1):
        parts = {
            part: {key: min(max(1, round(usual * size / default)), end)}
            for part, (key, usual, end) in growing.items()
        }
        yield trained_at(method, model, parts)


@pytest.mark.parametrize("method", GROWING)
def test_the_size_is_that_of_a_search_through_all_sizes(method, tiny):
    recipe = recipe_of(method, tiny["llama"])
    total = counts_of(recipe)["total"]
    within = takewhile(lambda n: n is None or n <= total, every_size(method, tiny["llama"]))
    sizes = sorted(n for n in within if n is not None)
    assert len(sizes) > 5
    for limit in {*sizes, *(n - 1 for n in sizes), total}:
        found = size_for(recipe, Budget.parse(str(limit))) if limit else None
        if found is not None:
            best = max((n for n in sizes if n <= limit), default=sizes[0])
            assert found.counts["trainable"] == best, limit
            assert found.above == (limit < sizes[0])


@pytest.mark.parametrize("method", OF_PEFT)
def test_the_size_of_a_tuner_of_peft_is_that_of_a_search(method, tiny, c3a_and_others):
    recipe = recipe_of(method, tiny["llama"])
    key = {"c3a": "block_size", "oft": "oft_block_size", "fourierft": "n_frequency"}.get(method, "r")
    sizes = range(1, 17)
    if method in ("c3a", "oft", "randlora"):
        sizes = [n for n in (1, 2, 4, 8, 16, 32) if method == "oft" or n <= 16]
    if method == "fourierft":
        sizes = range(1, 32 * 16 + 1, 37)
    counted = [trained_at(method, tiny["llama"], {method: {key: size}}) for size in sizes]
    found = sorted({n for n in counted if n})
    assert len(found) > 2
    for limit in {*found, *(n - 1 for n in found[1:])}:
        sized = size_for(recipe, Budget.parse(str(limit)))
        best = max(n for n in found if n <= limit)
        if method == "fourierft":  # not all of its sizes are tried here
            assert best <= sized.counts["trainable"] <= limit
        else:
            assert sized.counts["trainable"] == best, limit
        assert trained_at(method, tiny["llama"], sized.parts) == sized.counts["trainable"]
