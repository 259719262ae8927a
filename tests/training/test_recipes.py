"""Recipes: YAML files and overrides mean the same, every built-in one loads, wrong ones say why."""

import pytest
import yaml
from folders import refused

from lorada.data.rows import read_rows
from lorada.runs.recipe import Recipe, builtin_recipes
from lorada.training.arguments import training_arguments
from lorada.training.load_recipe import load_recipe

BASE = {"model": "smollm2-135m", "output": "out", "method": "lorada_la"}


def load(*overrides, source=None, **options):
    return load_recipe(source, list(overrides), {**BASE, **options})


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_builtin_recipe_loads_and_its_rows_are_there(name):
    recipe = load_recipe(name, [], {})
    for data in (recipe.data, recipe.eval_data):
        assert read_rows(data)
    assert training_arguments(recipe).output_dir == recipe.output


def test_a_file_and_overrides_mean_the_same(tmp_path):
    path = tmp_path / "mine.yaml"
    settings = {**BASE, "method": "lorada_la", "lmam": {"rank": 4}, "training": {"max_steps": 5}}
    path.write_text(yaml.safe_dump(settings))
    from_file = load_recipe(str(path), [], {})
    assert from_file == load("lmam.rank=4", "max_steps=5", method="lorada_la")


def test_overrides_win_over_options_and_options_over_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: lora\nmodel: a/b\noutput: one\nlora: {r: 2}\n")
    recipe = load_recipe(str(path), ["lora.r=5", "output=three"], {"output": "two"})
    assert (recipe.model, recipe.output, recipe.parts["lora"]["r"]) == ("a/b", "three", 5)


def test_values_take_the_type_of_their_field():
    recipe = load("learning_rate=1e-3", "lmam.inverse_scale=255", "save_strategy=no", "bf16=no")
    assert recipe.training["learning_rate"] == 1e-3
    assert recipe.parts["lmam"]["inverse_scale"] == 255
    assert recipe.training["save_strategy"] == "no"
    assert recipe.training["bf16"] is False


def test_a_bare_key_finds_the_one_field_of_that_name():
    recipe = load("length=64", "r=3", "gradient_accumulation_steps=2")
    assert recipe.parts == {"lmam": {"length": 64}, "lora": {"r": 3}}
    assert recipe.training == {"gradient_accumulation_steps": 2}


@pytest.mark.parametrize("key", ["output_dir", "resume_from_checkpoint"])
def test_what_the_run_itself_decides_cannot_be_overridden(key):
    refused("unknown setting of training", lambda: load(f"training.{key}=x"))


def test_what_training_arguments_refuse_is_one_line():
    both = load("training.fp16=true", "training.bf16=true")
    refused("TrainingArguments: ", lambda: training_arguments(both))


def test_a_recipe_without_a_model_or_an_output_says_so():
    refused("has no model", lambda: load_recipe(None, [], {"output": "x"}))
    refused("has no output: pass --output", lambda: load_recipe(None, [], {"model": "a/b"}))


def test_every_field_of_a_recipe_is_described():
    for name, field in Recipe.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    "name", sorted(Recipe.model_fields.keys() - {"method", "parts", "training"})
)
def test_an_error_about_a_field_begins_with_its_name_as_it_is_typed(name):
    refused(rf"^{name}(\.\d+)?=", lambda: load(f"{name}=[{{}}]"))
