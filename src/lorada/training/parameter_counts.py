"""Counts the parameters that a method trains on a model, without weights (``lorada params``)."""

import copy
import os
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from peft import PeftModel, ShiraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from lorada.methods.build import Plan, plan_method
from lorada.methods.head_modules import select_trainable
from lorada.runs.recipe import Recipe
from lorada.training.memory import device_bytes
from lorada.training.models.adapters import (
    base_parameters,
    config_to_start,
    fold_prefixes,
    parameter_counts,
)
from lorada.training.models.loading import kind_of, load_config, stretched
from lorada.tuners import LoradaConfig
from lorada.tuners.base.linears import linears


def parameters_of(recipe: Recipe) -> dict[str, Any]:
    """Count the parameters of a recipe: its model is built on the meta device, without weights.

    Returns:
        ``trainable`` (p, what is trained and saved, without a task head), ``total`` (N, those of
        the base), ``percent`` of them, ``percent_of_all`` (with the adapter) and ``settings_from``
        (where the settings of the method come from, in words).

    Raises:
        ValueError: if the method cannot be placed on the model.
    """
    config = load_config(recipe.model)
    plan = _plan_of(recipe, config)
    config = stretched(config, recipe.rope_factor)
    base = _meta_model(config)
    total = base_parameters(base)
    try:
        with torch.device("meta"):
            placed = _placed_on(base, plan)
    except (ValueError, RuntimeError) as error:
        if plan.config is None or "meta tensor" not in str(error).lower():
            raise
        # Some of PEFT's tuners compute with the weights that they are placed on, such as FRoD.
        base = _meta_model(config)
        _give_weights(base, plan.config)
        placed = _placed_on(base, plan)
    if isinstance(placed, PeftModel):
        fold_prefixes(placed)
    counts = parameter_counts(placed, total, with_head=plan.with_head)
    return {**counts, "settings_from": plan.settings_from}


def _plan_of(recipe: Recipe, config: Any) -> Plan:
    """The method of a recipe for the model of a config, with the parts that ``--from`` brings."""
    plan = plan_method(recipe.method, config, recipe.parts)
    if recipe.from_adapter is not None and isinstance(plan.config, LoradaConfig):
        # The second value, the kinds of parts that it brings, is for messages of a training.
        plan = replace(plan, config=config_to_start(plan.config, recipe, config)[0])
    return plan


def _meta_model(config: Any) -> PreTrainedModel:
    """The model of a config without weights."""
    auto = AutoModelForCausalLM if kind_of(config) == "decoder" else AutoModel
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config)
    return model


def _placed_on(base: PreTrainedModel, plan: Plan) -> PreTrainedModel | PeftModel:
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
    model = get_peft_model(base, config)
    if plan.freeze is not None:
        plan.freeze(model)
    return model


def _give_weights(base: PreTrainedModel, config: LoradaConfig) -> None:
    """Draw weights for the linear layers that the parts of an adapter are placed on."""
    for part in config.parts:
        for name, linear in linears(base).items():
            is_target = part.target_modules and check_target_module_exists(part, name)
            if not is_target:
                continue
            if linear.weight.is_meta:  # with its neighbours: no module is on two devices
                base.get_submodule(name.rpartition(".")[0]).to_empty(device="cpu")
            torch.nn.init.normal_(linear.weight)


@cache
def _counts_of_json(recipe_json: str) -> dict[str, Any]:
    """The parameters of a recipe; it comes as a text, since a cache needs keys that have hashes."""
    return parameters_of(Recipe.model_validate_json(recipe_json))


def counts_of(recipe: Recipe) -> dict[str, Any]:
    """The parameters of a recipe, cached over its tasks and seeds."""
    # What changes no count has the same value for all.
    placeholders: dict[str, Any] = {"task": "-", "output": "-", "data_dir": None, "training": {}}
    return _counts_of_json(recipe.model_copy(update=placeholders).model_dump_json())


def refuse_impossible(recipe: Recipe, plan: Plan, counts: dict[str, Any]) -> None:
    """Refuse an adapter that is larger than its base and does not even fit in the memory here."""
    if plan.config is None or counts["trainable"] <= counts["total"]:
        return
    adapter_bytes = 4 * counts["trainable"]  # in float32
    memory_bytes = device_bytes(recipe)
    if not memory_bytes:  # without an accelerator, what the machine has
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if adapter_bytes > memory_bytes:
        raise ValueError(
            f"{recipe.method} would train {counts['trainable']:,} parameters, which take "
            f"{adapter_bytes / 2**30:,.0f} GiB, and there are {memory_bytes / 2**30:.0f} GiB here: "
            "lower its sizes, such as r"
        )
