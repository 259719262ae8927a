"""Reads what a run needs before it loads weights.

A training, an evaluation and an export all begin with ``prepare``; a training goes on with
``prepare_training``.
"""

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lorada.data.answers import metric_of
from lorada.data.chosen_metric import ChosenMetric
from lorada.data.dataset import refuse_target_length
from lorada.data.task import Kind
from lorada.data.task_rows import Rows, training_rows
from lorada.methods.build import Plan, build_method
from lorada.methods.lookup import method_named
from lorada.runs.recipe import Recipe
from lorada.training.device_settings import TRAINERS_OWN, with_dtype
from lorada.training.models.base_settings import refuse_base_settings
from lorada.training.models.generation import set_languages
from lorada.training.models.loading import kind_of, load_config, load_tokenizer, own_classes
from lorada.training.models.pooling import refuse_pooling
from lorada.training.packing import refuse_packing


@dataclass(frozen=True)
class Prepared:
    """A recipe, with the dtype that its base gets here, and its config, kind and tokenizer."""

    recipe: Recipe
    config: PreTrainedConfig
    kind: Kind
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedTraining(Prepared):
    """What a training needs before it loads weights.

    Attributes:
        plan: the recipe's method, with its settings for this base model.
        rows: the rows to learn from.
        held_out: the rows that are measured while training; None for none.
        metric: what answers are scored by; None for a benchmark, which has its own.
    """

    plan: Plan
    rows: Rows
    held_out: Rows | None
    metric: ChosenMetric | None


def prepare(recipe: Recipe) -> Prepared:
    """Read the config and the tokenizer of a recipe's base model."""
    trust = recipe.trust_remote_code
    config = load_config(recipe.model, trust_remote_code=trust)
    tokenizer = load_tokenizer(recipe.model, config, trust_remote_code=trust)
    return Prepared(with_dtype(recipe, config), config, kind_of(config), tokenizer)


def prepare_training(recipe: Recipe) -> PreparedTraining:
    """Read the base model's config and tokenizer and the rows, and plan the method."""
    _refuse_said_twice(recipe)
    base = prepare(recipe)
    rows, held_out = training_rows(recipe, base.kind, own_classes(base.config))
    if recipe.pooling is not None:
        refuse_pooling(recipe.pooling, base.config, rows.form, rows.path)
    refuse_target_length(recipe, rows, base.kind)
    metric = metric_of(rows, recipe)
    if recipe.packing:
        refuse_packing(rows.form, base.kind, recipe.method)
    plan = build_method(recipe.method, base.config, **recipe.parts)
    refuse_base_settings(recipe, base.config, method_named(recipe.method), plan)
    set_languages(base.tokenizer, recipe.languages, rows.protocol.languages)
    return PreparedTraining(**vars(base), plan=plan, rows=rows, held_out=held_out, metric=metric)


def _refuse_said_twice(recipe: Recipe) -> None:
    """Refuse the Trainer's own settings beside ``activation_checkpointing``."""
    for name in TRAINERS_OWN:
        if recipe.activation_checkpointing == "full" and name in recipe.training:
            raise ValueError(
                f"activation_checkpointing=full and training.{name}={recipe.training[name]} "
                "exclude each other: leave one out"
            )
