"""The hyperparameters of the tables' rows are those that the paper prints, Tables 15 to 19.

``published_numbers.json`` has the cells; ``test_published.py`` compares it with the paper's text.
"""

import json
import math
import re
from pathlib import Path

import pytest
from published_numbers import FIXTURE
from table_rows import config_of, made, row_of

from lorada.methods.build import build_method
from lorada.paper.table_spec import load_table, row_recipe
from lorada.training.arguments import training_arguments
from lorada.training.parameter_counts import counts_of

PRINTED = json.loads(FIXTURE.read_text(encoding="utf-8"))["hyperparameters"]
# Where the underlined choice does not give the printed share, and what gives it.
NOT_UNDERLINED = {("15", "MT", "LMAM h_s"): 4}


def choices(cell, convert=float):
    """What a cell offers, and of that what is underlined (all of it where nothing is)."""

    def values(text):
        texts = [t.strip(" {}[]") for t in text.split(",")]
        return [convert(t) for t in texts if t]

    offered = values(re.sub(r"</?u>", "", cell))
    marked = values(",".join(re.findall(r"<u>(.*?)</u>", cell)))
    return offered, marked or offered


def product(text):
    return math.prod(int(factor) for factor in text.split("*"))


def thousands(text):
    return int(text.removesuffix("K")) * 1000


def batch(recipe):
    training = recipe.training
    return training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)


GLUE_TASKS = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"]


@pytest.mark.parametrize("task", GLUE_TASKS)
@pytest.mark.parametrize("number", [5, 13])
def test_lorada_a_on_glue_has_the_numbers_of_table_16(number, task):
    table = PRINTED["16"]
    head = [cell.lower().replace("-", "") for cell in table["DatasetsHyper"]]
    assert head == GLUE_TASKS
    of = {name: cells[head.index(task)] for name, cells in table.items() if len(cells) == 8}
    recipe, parts = made(number, "lorada_a", [task])
    lmam, adapter, training = parts["lmam"], parts["bottleneck"], recipe.training
    assert (lmam.heads, lmam.rank, lmam.length, lmam.inverse_scale) == (
        float(of["LMAMh_s"]), float(of["LMAMr"]), float(of["LMAMn"]), float(of["LMAM1/s"]),
    )  # fmt: skip
    assert (adapter.rank, adapter.scale, adapter.dropout, adapter.placement) == (
        float(of["AdapterRankr"]), float(of["AdapterScale"]), float(of["Dropout"]), "ffn",
    )  # fmt: skip
    assert batch(recipe) == float(of["Batchsize"])
    assert training["learning_rate"] == float(of["LR"])
    assert lmam.map_learning_rate is None
    assert training["weight_decay"] == float(of["weightdecay"])
    # transformers reads a number below 1 as a ratio.
    assert training["warmup_steps"] == float(of["warmupupdates"]) + float(of["warmupratio"])
    assert training["label_smoothing_factor"] == float(of["labelsmoothing"])
    assert recipe.max_length == float(of["maximumsequencelength"])
    assert training["num_train_epochs"] in choices(of["Epochs"])[0]


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_on_deberta_only_the_rank_is_another_and_the_length_is_the_texts(task):
    recipe, parts = made(11, "lorada_a", [task])
    roberta, other = made(5, "lorada_a", [task])
    assert recipe.training == roberta.training
    assert recipe.max_length == roberta.max_length
    assert (parts["lmam"].rank, parts["lmam"].length) == (2, 128)
    same = {**parts["lmam"].to_dict(), "rank": 3, "length": other["lmam"].length}
    assert same == other["lmam"].to_dict()
    assert parts["bottleneck"].to_dict() == other["bottleneck"].to_dict()


@pytest.mark.parametrize(("name", "task"), [("XSum", "xsum"), ("MT", "wmt16_en_ro")])
def test_lorada_a_on_xsum_and_mt_has_the_numbers_of_table_15(name, task):
    table = PRINTED["15"]
    column = table["DatasetsHyper"].index(name)

    def chosen(row, value, convert=float):
        offered, marked = choices(table[row.replace(" ", "")][column], convert)
        assert value in offered, row
        if ("15", name, row) in NOT_UNDERLINED:
            assert value == NOT_UNDERLINED["15", name, row]
        else:
            assert value in marked, row

    recipe, parts = made(10, "lorada_a", [task])
    lmam, adapter, training = parts["lmam"], parts["bottleneck"], recipe.training
    for row, value in (
        ("LMAM h_s", lmam.heads), ("LMAM r", lmam.rank), ("LMAM n", lmam.length),
        ("LMAM s", 1 / lmam.inverse_scale), ("Adapter Rank r", adapter.rank),
        ("Adapter Scale", adapter.scale), ("LR", training["learning_rate"]),
        ("weight decay", training["weight_decay"]), ("warmup updates", training["warmup_steps"]),
        ("label smoothing", training["label_smoothing_factor"]),
        ("max source length", recipe.max_length), ("max target length", recipe.max_target_length),
        ("max grad norm", training["max_grad_norm"]),
    ):  # fmt: skip
        chosen(row, value)
    chosen("train steps", training["max_steps"], thousands)
    size, unit = table["Batchsize"][column].split()
    assert batch(recipe) * {"sents": 1, "tokens": 32}[unit] == int(size)
    assert (adapter.placement, lmam.stacks) == ("ffn", ["encoder"])


COMMONSENSE = [
    "boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa",
]  # fmt: skip
LLMS = ["LLaMA-7B", "LLaMA2-7B", "LLaMA3-8B", "LLaMA-13B", "LLaMA2-70B"]
LA_ROWS = [
    *((4, f"{model.lower()}/lorada_la", model) for model in LLMS),
    *((12, f"{model.lower()}/lorada_la", model) for model in LLMS[:4]),
    *((n, f"lorada_la{a}", "LLaMA-7B") for n in (9, 14)
      for a in ("", "_no_negative", "_softmax", "_full_rank", "_no_position")),
]  # fmt: skip


@pytest.mark.parametrize(("number", "key", "model"), LA_ROWS)
def test_lorada_la_has_the_numbers_of_table_19(number, key, model):
    table = PRINTED["19"]
    column = table["Hyperparameters(LoRaDA)"].index(model)
    recipe, parts = made(number, key, COMMONSENSE)
    lmam, lora, adapter, training = *parts.values(), recipe.training
    for row, value, convert in (
        ("LMAMh_s", lmam.heads, float), ("LMAMn", lmam.length, float),
        ("LMAM1/s", lmam.inverse_scale, product), ("LoRARankr", lora.r, float),
        ("LoRAα", lora.lora_alpha, float), ("AdapterRankr", adapter.rank, float),
        ("AdapterScale", adapter.scale, float), ("Dropout", adapter.dropout, float),
        ("Dropout", lora.lora_dropout, float), ("LR", training["learning_rate"], float),
        ("Batchsize", batch(recipe), float), ("WarmupSteps", training["warmup_steps"], float),
        ("Epochs", training["num_train_epochs"], float),
    ):  # fmt: skip
        assert value in choices(table[row][column], convert)[1], row
    if lmam.ablation != "full_rank":
        assert lmam.rank in choices(table["LMAMr"][column])[1]
    assert lmam.ablation == (key.partition("_la_")[2] or None)
    assert lmam.map_learning_rate is None
    where = {name.removesuffix("_proj").capitalize() for name in lora.target_modules}
    offered = (table["Where/LoRA"][column], table[""][column])
    assert where in [set(cell.split(",")) for cell in offered]
    assert adapter.placement == "ffn"


@pytest.mark.parametrize(
    ("number", "key", "model"),
    [
        (7, "longlora+lmam", "LLaMA2-7B"),
        *((6, f"{name}+lmam", "LLaMA-7B") for name in ("parallel", "lora")),
        *((18, f"{name}+lmam", "LLaMA-7B") for name in ("series", "lora", "dora")),
    ],
)
def test_maps_beside_other_methods_have_the_numbers_of_table_19(number, key, model):
    table = PRINTED["19"]
    column = table["Hyperparameters(LoRaDA)"].index(model)
    _, parts = made(number, key, ["proof_pile"] if number == 7 else COMMONSENSE)
    lmam = parts["lmam"]
    assert lmam.inverse_scale in choices(table["LMAM1/s"][column], product)[1]
    # Appendix A.5 has another length, and no other rank comes near the share of the small adapter.
    length = [256] if number == 7 else choices(table["LMAMn"][column])[1]
    rank = [1] if key == "series+lmam" else choices(table["LMAMr"][column])[1]
    assert lmam.length in length
    assert lmam.rank in rank
    assert lmam.heads in (None, *choices(table["LMAMh_s"][column])[1])
    assert lmam.align == ("end" if number == 7 else "start")
    assert lmam.map_learning_rate is None


@pytest.mark.parametrize(
    ("number", "key"),
    [*((4, f"{model.lower()}/lorada_q") for model in LLMS[:4]), (6, "quanta+lmam"),
     (8, "lorada_q")],
)  # fmt: skip
def test_lorada_q_has_the_numbers_of_table_17(number, key):
    table = {re.sub(r"[^A-Za-z_]", "", name): cell for name, cell in PRINTED["17"].items()}
    recipe, parts = made(
        number, key, ["aqua", "gsm8k", "mawps", "svamp"] if number == 8 else COMMONSENSE
    )
    lmam, quanta, training = parts["lmam"], parts["quanta"], recipe.training
    for row, value in (
        ("BatchSize", batch(recipe)), ("LearningRate", training["learning_rate"]),
        ("WeightDecay", training["weight_decay"]), ("Dropout", quanta.dropout),
        ("LMAMr", lmam.rank), ("LMAMn", lmam.length), ("LMAMh_s", lmam.heads),
    ):  # fmt: skip
        assert value in choices(table[row][0])[1], row
    large = recipe.model == "llama-13b"
    assert lmam.heads == (40 if large else 32)
    dims = "-".join(map(str, quanta.dims)) if isinstance(quanta.dims, list) else quanta.dims
    if number == 8:  # whose printed share is that of three factors
        assert dims == "16-16-16"
    else:
        assert dims == ("16-8-8-5" if large else "16-8-8-4")
        assert dims in table["d_d_d_N"][0]
    assert quanta.target_modules == ["q_proj", "v_proj"]
    # As QuanTA selects, where it has candidates to choose from.
    best = training.get("metric_for_best_model")
    assert best == (None if number == 8 else "accuracy")
    # Table 17 has no scale; Table 19's is taken.
    assert lmam.inverse_scale == product({"llama-13b": "5120*600", "llama3-8b": "4096*1200"}.get(
        recipe.model, "4096*600"))  # fmt: skip


# Rows whose settings the paper does not print have those of their methods' own scripts.


def test_the_norms_that_train_with_sora_are_counted():
    recipe, _ = made(11, "sora", ["rte"])
    # Of A and B, of the gates, and of the two norms of each layer.
    assert counts_of(recipe)["trainable"] == 1_327_104 + 576 + 12 * 2 * 2 * 768


# jxhe/unify-parameter-efficient-tuning, exps/run_xsum.sh and run_en_ro.sh: max_eval_samples,
# save_steps (which are eval_steps too), metric, greater_is_better.
CHOSEN = {"xsum": (1600, 3000, "rouge2", True), "wmt16_en_ro": (1600, 5000, "loss", False)}


@pytest.mark.parametrize("key", ["full", "lora", "prefix_lora", "mam", "autopeft", "lorada_a"])
@pytest.mark.parametrize("task", CHOSEN)
def test_the_best_checkpoint_of_xsum_and_mt_is_chosen_as_in_the_scripts_of_he_et_al(key, task):
    recipe = row_recipe(load_table("table10"), row_of(10, key), "paper", [task], 1, Path("-"))
    training = training_arguments(recipe, {}, quiet=True)
    rows, steps, metric, greater = CHOSEN[task]
    assert recipe.dev_rows == rows
    assert training.eval_steps == training.save_steps == steps
    assert (training.eval_strategy, training.save_strategy) == ("steps", "steps")
    assert training.load_best_model_at_end
    assert (training.metric_for_best_model, training.greater_is_better) == (metric, greater)


@pytest.mark.parametrize("key", ["lora", "prefix_lora"])
@pytest.mark.parametrize("task", CHOSEN)
def test_lora_on_the_ffn_is_scaled_by_four_as_table_5_of_he_et_al_prints(key, task):
    recipe, parts = made(10, key, [task])
    by_name = build_method(key, config_of(recipe.model)).config.parts[-1]
    for lora in (parts["lora"], by_name):
        assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (102, 4 * 102, 0.1)
        assert lora.target_modules == {"fc1", "fc2"}
