"""Counts the parameters that a method trains on a model, without weights (``lorada params``)."""

from typing import Any

import torch
from peft import ShiraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

from lorada.methods.build import build_method
from lorada.methods.task_head import select_trainable
from lorada.runs.models.adapters import base_parameters, fold_prefixes, parameter_counts
from lorada.runs.models.loading import kind_of, load_config
from lorada.runs.recipe import Recipe, load_recipe


def count_parameters(method: str, model: str, overrides: list[str]) -> dict[str, Any]:
    """Count the parameters of a method on a model, as ``parameters_of`` does for a recipe.

    ``model`` may also be a key of ``MODELS``; ``overrides`` are settings, each as ``key=value``.

    Raises:
        ValueError: for an unknown name, or a setting of the training, which changes no count.
    """
    recipe = load_recipe(None, overrides, {"method": method, "model": model, "output": "-"})
    if recipe.training:
        raise ValueError(f"{', '.join(recipe.training)} changes no parameter count: leave it out")
    return parameters_of(recipe)


def parameters_of(recipe: Recipe) -> dict[str, Any]:
    """Count the parameters of a recipe: its model is built on the meta device, without weights.

    Returns:
        ``trainable`` (p, what is trained and saved, without a task head), ``total`` (N, those of
        the base), ``percent`` (100 p/N), ``percent_of_all`` (100 p/(N+p)) and ``settings_from``
        (where the settings of the method come from, in words).
    """
    config = load_config(recipe.model)
    plan = build_method(recipe.method, config, **recipe.parts)
    auto = AutoModelForCausalLM if kind_of(config) == "decoder" else AutoModel
    with torch.device("meta"):
        base = auto.from_config(config)
        total = base_parameters(base)
        if plan.config is None:
            assert plan.trainable is not None
            select_trainable(base, plan.trainable, with_head=plan.with_head)
            counts = parameter_counts(base, total, with_head=plan.with_head)
            return {**counts, "settings_from": plan.settings_from}
        plan.config.task_type = None
        for part in plan.config.parts:
            if isinstance(part, ShiraConfig):
                part.mask_fn = None  # it would choose entries by weights, and there are none
        placed = get_peft_model(base, plan.config)
        fold_prefixes(placed)
        return {**parameter_counts(placed, total), "settings_from": plan.settings_from}
