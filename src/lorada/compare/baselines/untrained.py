"""The base model of a comparison, loaded as it is, to be asked its rows."""

from dataclasses import replace
from pathlib import Path

from lorada.data.answer_length import answer_limit
from lorada.data.rows.rows import Rows
from lorada.data.rows.training_rows import head_of
from lorada.data.scoring.chosen_metric import metric_of
from lorada.data.tokenize import context_of, fit_context
from lorada.inference.load import Run
from lorada.runs.recipe import Recipe
from lorada.training.arguments import answering_device
from lorada.training.inputs import prepare
from lorada.training.models.adapters import load_base
from lorada.training.models.loading import set_languages


def untrained_run(recipe: Recipe, train: Rows, folder: Path) -> Run:
    """The base model of a recipe as a run that has learned nothing.

    For classes, labels and numbers it has a head, which is drawn at random and says nothing.

    Args:
        recipe: what all runs of the comparison share.
        train: the training rows, which say how long an answer may be and what it is scored by.
        folder: where its scores are kept, named in errors.
    """
    prepared = prepare(recipe)
    base = load_base(prepared, head_of(train), answering_device(recipe))
    metric = metric_of(train, recipe)
    context = context_of(base.model.config)
    run = Run(
        recipe=fit_context(recipe, base.model.config),
        config=prepared.config,
        kind=prepared.kind,
        tokenizer=prepared.tokenizer,
        folder=folder,
        model=base.model.eval(),
        form=train.form,
        labels=train.labels,
        drawn=base.drawn,
        metric=None if metric is None else metric.name,
        learned_limit=answer_limit(train, recipe, prepared.tokenizer, prepared.kind, context),
    )
    set_languages(run.tokenizer, recipe.languages, run.protocol.languages)
    return run


def asked_by_template(run: Run) -> Run:
    """The same model, whose answers end where those of a chat do."""
    return replace(run, form="messages")
