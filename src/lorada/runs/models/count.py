"""``lorada params``: what a method trains on a model, counted without weights."""

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
    """Count by name and ``key=value`` settings, as ``parameters_of`` does.

    Raises:
        ValueError: for a setting that is about training and changes no count.
    """
    recipe = load_recipe(None, overrides, {"method": method, "model": model, "output": "-"})
    if recipe.training:
        raise ValueError(f"{', '.join(recipe.training)} changes no parameter count: leave it out")
    return parameters_of(recipe)


def parameters_of(recipe: Recipe) -> dict[str, Any]:
    """Build a recipe's model on the meta device, place its method, and count.

    Only the config of the model is read.

    Returns:
        ``trainable`` (what is trained and saved, without a task head), ``total`` (N), ``percent``
        (100 p/N), ``percent_of_all`` (100 p/(N+p)) and ``settings_from`` (words).
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
                part.mask_fn = None  # which entries it would take is for the weights to say
        placed = get_peft_model(base, plan.config)
        fold_prefixes(placed)
        return {**parameter_counts(placed, total), "settings_from": plan.settings_from}
