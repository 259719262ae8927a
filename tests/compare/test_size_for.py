"""``size_for`` beside a search that tries every size; every method at its smallest; budgets."""

import math
from functools import cache
from itertools import count, takewhile

import pytest
from conftest import SIZES
from folders import bert_folder, rows_file
from hypothesis import given
from hypothesis import strategies as st
from table_rows import config_of
from transformers import BertConfig, LlamaConfig

from lorada.compare.size_for import _largest, limit_of, size_for
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.methods.method import PARTS, Method
from lorada.methods.table import METHODS
from lorada.runs.recipe import Recipe
from lorada.training.load_recipe import load_recipe
from lorada.training.parameter_counts import counts_of
from lorada.training.train import train

SMOLLM = "smollm2-135m"
LLAMA = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 40,
    "tie_word_embeddings": True,
}  # fmt: skip
# What one rank of LoRA trains on it: beside q, k, v, up and down.
LORA = (16 + 16) + 2 * (16 + 8) + 2 * (16 + 24)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders with the configs of a tiny LLaMA and a tiny BERT, by family."""
    folder = tmp_path_factory.mktemp("tiny")
    LlamaConfig(**LLAMA).save_pretrained(folder / "llama")
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
    "lora": {"lora": ("r", 32, 8)},
    "lmam": {"lmam": ("rank", 2, 39)},
    "fmam": {"lmam": ("length", 128, 39)},
    "lora+lmam": {"lmam": ("rank", 2, 39), "lora": ("r", 32, 8)},
    "lorada_la": {"lmam": ("rank", 2, 39), "lora": ("r", 1, 16), "bottleneck": ("rank", 18, 999)},
    "prefix": {"prefix": ("length", 30, 39)},
}


def every_size(method, model):
    """The trained parameters at every size of a method, all parts in the ratio of defaults."""
    growing = GROWING[method]
    _, default, most = max(growing.values(), key=lambda each: each[1])
    for size in range(1, most + 1):
        parts = {
            part: {key: min(max(1, round(usual * size / default)), end)}
            for part, (key, usual, end) in growing.items()
        }
        yield trained_at(method, model, parts)


SLOW = ("lorada_la", "prefix", "fmam")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in GROWING]
)
def test_the_size_is_that_of_a_search_through_all_sizes(method, tiny):
    recipe = recipe_of(method, tiny["llama"])
    total = counts_of(recipe)["total"]
    within = takewhile(lambda n: n is None or n <= total, every_size(method, tiny["llama"]))
    sizes = sorted(n for n in within if n is not None)
    assert len(sizes) >= 4
    for limit in {*sizes[:20], *(n - 1 for n in sizes[:20]), total}:
        found = size_for(recipe, str(limit)) if limit else None
        if found is not None:
            best = max((n for n in sizes if n <= limit), default=sizes[0])
            assert found.counts["trainable"] == best, limit
            assert found.above == (limit < sizes[0])


@pytest.mark.parametrize("method", OF_PEFT)
def test_the_size_of_a_tuner_of_peft_is_that_of_a_search(method, tiny, c3a_and_others):
    recipe = recipe_of(method, tiny["llama"])
    key = {"c3a": "block_size", "oft": "oft_block_size", "fourierft": "n_frequency"}.get(
        method, "r"
    )
    sizes = range(1, 9)
    if method in ("c3a", "oft", "randlora"):
        sizes = [2, 4, 8, 16] if method == "oft" else [1, 2, 4, 8]
    if method == "fourierft":
        sizes = range(1, 16 * 8 + 1)
    counted = [trained_at(method, tiny["llama"], {method: {key: size}}) for size in sizes]
    found = sorted({n for n in counted if n})
    assert len(found) >= 2
    for limit in {*found[:20], *(n - 1 for n in found[1:20]), found[-1]}:
        sized = size_for(recipe, str(limit))
        best = max(n for n in found if n <= limit)
        assert sized.counts["trainable"] == best, limit
        assert trained_at(method, tiny["llama"], sized.parts) == sized.counts["trainable"]


def test_the_part_with_the_finest_steps_leads_a_stack(tiny, c3a_and_others, monkeypatch):
    both = {**METHODS["c3a"].parts["llama"], **METHODS["lora"].parts["llama"]}
    monkeypatch.setitem(METHODS, "c3a_lora", Method("c3a_lora", {"llama": both}))
    found = [
        size_for(recipe_of("c3a_lora", tiny["llama"]), str(96 + rank * LORA)) for rank in (1, 2, 7)
    ]
    # Blocks of 256 numbers, C3A's default, would not fit, and blocks of 8 train the fewest.
    assert [each.parts["c3a"]["block_size"] for each in found] == [8, 8, 8]
    assert [each.parts["lora"]["r"] for each in found] == [1, 2, 7]


# How many parameters train at an index: affine, as OFT's blocks, with an end, and with ranks that
# cannot be built.
CURVES = {
    "affine": lambda a, b: lambda i: a + b * i,
    "geometric": lambda a, b: lambda i: a + b * 2 ** min(i, 30),
    "ending": lambda a, b: lambda i: a + b * min(i, 5),
    "even ranks": lambda a, b: lambda i: a + b * i if i % 2 else 0,
    "every fifth": lambda a, b: lambda i: a + b * i if i % 5 == 4 else 0,
    "refused from 20 on": lambda a, b: lambda i: a + b * i if i < 20 else 0,
}


@pytest.mark.parametrize("shape", CURVES)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 60))
def test_the_index_found_is_the_first_with_the_most_parameters(shape, start, rise, limit):
    trained = CURVES[shape](start, rise)
    first = next(filter(trained, count()))
    limit *= rise
    limit += trained(first)
    found = _largest(trained, first, 200, limit)
    within = [index for index in range(200) if 0 < trained(index) <= limit]
    assert found == max(within, key=lambda index: (trained(index), -index))


# What the smallest and the next sizes train on SmolLM2 (134,515,008 parameters).
@pytest.mark.parametrize(
    ("method", "budget", "parts", "trainable", "above"),
    [
        ("lora", "0.1%", {"lora": {"r": 1, "lora_alpha": 2}}, 207_360, True),
        ("lora", "1%", {"lora": {"r": 6, "lora_alpha": 12}}, 1_244_160, False),
        (
            "lorada_la", "0.2%",
            {"lmam": {"rank": 1}, "lora": {"r": 1, "lora_alpha": 2}, "bottleneck": {"rank": 2}},
            253_500, False,
        ),
        ("quanta", "0.2%", {}, 231_360, False),
        ("full", "0.2%", {}, 134_515_008, True),
    ],
)  # fmt: skip
def test_sizes_on_smollm2(method, budget, parts, trainable, above):
    config_of(SMOLLM)  # skips where it is not installed
    found = size_for(recipe_of(method, SMOLLM), budget)
    assert (found.parts, found.counts["trainable"], found.above) == (parts, trainable, above)


def test_a_size_that_the_recipe_sets_stays(tiny):
    fixed = {"lora": {"r": 3}, "lmam": {"length": 16}}
    found = size_for(recipe_of("lora+lmam", tiny["llama"], **fixed), "2000")
    assert found.parts["lora"] == {"r": 3}
    assert found.parts["lmam"] == {"length": 16, "rank": (2000 - 3 * LORA) // (2 * 16 * 4)}


def test_a_recipe_without_an_open_size_stays_as_it_is(tiny):
    recipe = recipe_of("lora", tiny["llama"], lora={"r": 3})
    assert size_for(recipe, f"{3 * LORA}").parts == recipe.parts
    assert not size_for(recipe, f"{3 * LORA}").above
    assert size_for(recipe, f"{3 * LORA - 1}").above


def test_settings_that_grow_with_the_size_keep_their_ratio(tiny):
    found = size_for(recipe_of("adalora", tiny["bert"]), "100%").parts["adalora"]
    assert found == {"init_r": 25, "target_r": 17, "lora_alpha": 33}  # 12, 8 and 16 by default


def test_adalora_has_a_rank_to_prune_at_every_size(tiny):
    """Of rank 1 nothing can be pruned, and PEFT's allocator failed in training."""
    smallest = size_for(recipe_of("adalora", tiny["bert"]), "1")
    assert smallest.above
    assert smallest.parts["adalora"] == {"init_r": 2, "target_r": 1, "lora_alpha": 3}
    fixed = size_for(recipe_of("adalora", tiny["bert"], adalora={"target_r": 3}), "1")
    assert fixed.parts["adalora"]["init_r"] == 4
    with pytest.raises(ValueError, match="target_r=8 is not below init_r=2, so there is nothing"):
        size_for(recipe_of("adalora", tiny["bert"], adalora={"init_r": 2}), "1")


def test_a_method_that_can_be_built_at_no_size_says_why(tiny):
    with pytest.raises(ValueError, match="trains biases, and LlamaForCausalLM has none"):
        size_for(recipe_of("bitfit", tiny["llama"]), "1%")
    recipe = recipe_of("lora", tiny["llama"], lora={"target_modules": ["nothing"]})
    with pytest.raises(ValueError, match="nothing"):
        size_for(recipe, "1%")


def test_warnings_of_a_method_are_not_repeated_for_every_size(tiny, caplog):
    found = size_for(recipe_of("lorada_a", tiny["bert"]), "10%")
    assert "lmam.length=512 does not fit" in found.counts["settings_from"]
    assert not caplog.records


LABELS = [{"text": "ab" * (i % 5 + 1), "label": "ny"[i % 2]} for i in range(16)]
STEPS = ["max_steps=3", "max_length=16", "per_device_train_batch_size=8", "training.report_to=[]"]


@pytest.fixture(scope="module")
def bert_and_rows(tmp_path_factory):
    place = tmp_path_factory.mktemp("smallest")
    bert_folder(place / "bert")
    rows_file(place / "rows.jsonl", LABELS)
    return place


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.parts])
def test_the_smallest_size_of_every_method_trains_and_is_scored(bert_and_rows, tmp_path, name):
    rows = str(bert_and_rows / "rows.jsonl")
    given = {
        "method": name, "model": str(bert_and_rows / "bert"), "data": rows, "eval_data": rows,
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    recipe = load_recipe(None, STEPS, given)
    sized = size_for(recipe, "1")
    trained = train(recipe.model_copy(update={"parts": sized.parts}), quiet=True)
    assert trained.result.parameters.trainable == sized.counts["trainable"]
    assert math.isfinite(evaluate(load_run(trained.run))["loss"])


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.2%", 269_030), ("0.2 %", 269_030), ("100%", 134_515_008), ("1e-3%", 1345),
        ("100000", 100_000), ("100_000", 100_000), (" 1 ", 1),
    ],
)  # fmt: skip
def test_a_budget_is_a_share_or_a_number(text, limit):
    assert limit_of(text, 134_515_008) == limit


def test_a_share_is_exact():
    assert all(limit_of(f"{n / 10}%", 1000) == n for n in range(1, 1001))


@pytest.mark.parametrize(
    "text",
    ["0", "0%", "-1", "-0.2%", "100.1%", "nan%", "inf%", "", "%", "much", "1e5", "0.2", "1,000"],
)
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"such as 0\.2%, nor a number") as caught:
        limit_of(text, 1000)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
