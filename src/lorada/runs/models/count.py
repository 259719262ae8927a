"""Counts the parameters that a method trains on a model, without weights (``lorada params``)."""

import copy
from typing import Any

import torch
from peft import PeftModel, ShiraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from lorada.methods.build import Plan, build_method
from lorada.methods.task_head import select_trainable
from lorada.runs.models.adapters import base_parameters, fold_prefixes, parameter_counts
from lorada.runs.models.loading import kind_of, load_config
from lorada.runs.prepare import PreparedTraining
from lorada.runs.recipe import Recipe, load_recipe

# Bytes of a weight. In nf4, 64 of them have a scale of one byte; int8's scales are not counted.
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "nf4": 1 / 2 + 1 / 64}


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
    try:
        with torch.device("meta"):
            base = _random_model(config)
            total = base_parameters(base)
            placed = placed_on(base, plan)
    except (ValueError, RuntimeError) as error:
        if plan.config is None or "meta tensor" not in str(error).lower():
            raise
        # Some of PEFT's tuners compute with the weights that they are placed on, such as FRoD.
        placed = placed_on(_random_model(config), plan)
    if isinstance(placed, PeftModel):
        fold_prefixes(placed)
    counts = parameter_counts(placed, total, with_head=plan.with_head)
    return {**counts, "settings_from": plan.settings_from}


def lasting_bytes(prepared: PreparedTraining, counts: dict[str, Any]) -> float:
    """Bytes of weights, gradients and Adam's moments of a training, without its activations.

    ``counts`` are those of ``parameters_of``. Embeddings and output layer are never quantised.
    """
    recipe, config = prepared.recipe, prepared.config
    wide = counts["total"]
    if recipe.quantization is not None:
        tied = getattr(config, "tie_word_embeddings", True)
        wide = min(wide, config.vocab_size * config.hidden_size * (1 if tied else 2))
    narrow = (counts["total"] - wide) * BYTES[recipe.quantization or recipe.dtype]
    # What trains is in fp32: gradient, two moments and, of an adapter, the weight itself.
    each = 12 if prepared.plan.config is None else 16
    return float(wide * BYTES[recipe.dtype] + narrow + each * counts["trainable"])


def _random_model(config: Any) -> PreTrainedModel:
    """The model of a config with random weights, or none on the meta device."""
    auto = AutoModelForCausalLM if kind_of(config) == "decoder" else AutoModel
    model: PreTrainedModel = auto.from_config(config)
    return model


def placed_on(base: PreTrainedModel, plan: Plan) -> PreTrainedModel | PeftModel:
    """Place a method on a model without weights."""
    if plan.config is None:
        assert plan.trainable is not None
        select_trainable(base, plan.trainable, with_head=plan.with_head)
        return base
    config = copy.deepcopy(plan.config)
    config.task_type = None
    for part in config.parts:
        if isinstance(part, ShiraConfig):
            part.mask_fn = None  # it would choose entries by weights, and there are none
    return get_peft_model(base, config)
