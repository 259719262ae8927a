"""The recipes of the paper's tables: every row can be run, with the numbers the paper prints."""

from importlib.resources import files
from itertools import product
from pathlib import Path

import pytest
import yaml
from table_rows import config_of

from lorada.data.tasks import TASKS
from lorada.methods.build import build_method
from lorada.methods.lookup import method_named
from lorada.methods.method import PARTS
from lorada.paper.table_lines import MEAN, measured_line, published_line
from lorada.paper.table_runs import Folders, list_jobs, load_complete_result
from lorada.paper.table_spec import load_table, row_recipe, tables
from lorada.runs.result import ParameterCounts, RowsMetrics, RunResult
from lorada.training.arguments import training_arguments
from lorada.training.models.loading import kind_of
from lorada.training.parameter_counts import counts_of

PUBLISHED = yaml.safe_load((files("lorada") / "paper" / "published.yaml").read_text("utf-8"))


def runs_of(number, scale):
    """(table, row, tasks) of each run: one for each task, or one of all of them together."""
    table = load_table(f"table{number}")
    tasks = table.tasks_at(scale)
    for row in table.rows_at(scale, None):
        for group in [tasks] if table.train == "together" else [[task] for task in tasks]:
            yield table, row, group


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


@pytest.mark.parametrize("number", PUBLISHED)
def test_settings_by_task_are_about_tasks_of_the_table_and_parts_of_its_rows(number):
    table = load_table(f"table{number}")
    parts = {part for row in table.rows for part in method_named(row.method).part_names}
    for scale in ("paper", "local"):
        column = table.shared(scale)
        assert set(table.tasks_at(scale)) | column.by_task.keys() <= set(table.tasks)
        for settings in (column.settings, *column.by_task.values()):
            assert settings.keys() & PARTS.keys() <= parts


@pytest.mark.parametrize("scale", ["paper", "local"])
@pytest.mark.parametrize("number", PUBLISHED)
def test_every_run_is_a_recipe_of_a_method_that_its_model_can_take(number, scale):
    for table, row, tasks in runs_of(number, scale):
        recipe = row_recipe(table, row, scale, tasks, 1, Path("-"))
        config = config_of(recipe.model)
        plan = build_method(recipe.method, config, **recipe.parts)
        training_arguments(recipe, plan.arguments, quiet=True)
        for name in tasks:
            protocol = TASKS[name].protocol(recipe.protocol, kind_of(config))
            if protocol.target_length is not None and kind_of(config) == "decoder":
                # Prompt and response share the length.
                assert (recipe.max_target_length or protocol.target_length) < recipe.max_length
            assert recipe.train_on is None or recipe.train_on in TASKS[name].train


LONG = {("table4", "paper"), ("table18", "paper")}  # many recipes, or large models


@pytest.mark.parametrize(
    ("name", "scale"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case in LONG))
     for case in product(sorted(tables()), ["paper", "local"])],
)  # fmt: skip
def test_every_recipe_passes_a_dry_run(name, scale):
    table = load_table(name)
    rows = reversed(table.rows_at(scale, None))
    keys = {(row.method, scale == "paper" and row.model): row.key for row in rows}
    tasks = table.tasks_at(scale)[: 1 if table.train == "each" else None]
    config_of(table.shared(scale).model)
    found = list_jobs(table, scale, rows=list(keys.values()), tasks=tasks, seeds=[1],
                 folders=Folders(Path("-"), Path("-")))  # fmt: skip
    assert len(found) == len(keys)
    for job in found:
        assert counts_of(job.recipe)["trainable"] > 0
        assert load_complete_result(job) is None


def test_rows_of_one_scale_are_left_out_at_the_other_and_refused_by_name():
    table = load_table("table10")
    assert [row.key for row in table.rows_at("local", None)] == ["full", "lora", "lorada_a"]
    assert table.rows_at("paper", None) == table.rows
    with pytest.raises(ValueError, match="row mam of table10 is for --scale paper alone"):
        table.rows_at("local", ["lora", "mam"])


def test_a_task_may_have_a_model_of_its_own_and_a_row_settings_for_a_task():
    def recipes(name, key, *tasks):
        table = load_table(name)
        (row,) = table.rows_at("paper", [key])
        return [row_recipe(table, row, "paper", [task], 1, Path("-")) for task in tasks]

    models = [one.model for one in recipes("table10", "full", "xsum", "wmt16_en_ro")]
    assert models == ["bart-large", "mbart-large"]
    found = recipes("table11", "adalora", "cola", "sst2")
    assert [one.parts["adalora"]["tinit"] for one in found] == [800, 6000]
    assert [one.parts["adalora"]["lora_alpha"] for one in found] == [32, 16]
    assert [one.max_length for one in found] == [64, 128]


def test_a_column_of_the_other_scale_stays_empty():
    result = RunResult(
        labels=[],
        form="text",
        history=[],
        metrics={"proof_pile": RowsMetrics(n=3, perplexity_512=9.5)},
        parameters=ParameterCounts(percent=1.0),
        wall_time_s=60,
        seed=1,
    )
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
