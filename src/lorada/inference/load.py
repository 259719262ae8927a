"""Loads a finished run for inference."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from lorada.data.task import Protocol
from lorada.data.tasks import TASKS
from lorada.data.tokenize import fit_context
from lorada.methods.lookup import method_named
from lorada.runs.folder import TEMPLATE_FILE, finished_run
from lorada.runs.recipe import JSONL, Recipe
from lorada.runs.result import RunResult, read_result
from lorada.support.error_messages import LOADING, SCORING, memory_remedy
from lorada.support.row_sources import Form
from lorada.support.task_head import head_for
from lorada.training.arguments import answering_device
from lorada.training.inputs import Prepared, prepare
from lorada.training.models.adapters import (
    Base,
    adapter_config,
    load_adapted,
    load_base,
    pooling_part,
    refuse_other,
)
from lorada.training.models.loading import load_config, set_languages
from lorada.tuners.pooling import attach

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run(Prepared):
    """A finished run and its model.

    Attributes:
        folder: the run's folder.
        model: the base model with the adapter, or the model that was trained itself.
        form: the form of its training rows.
        labels: the classes that it has learned, by index.
        drawn: names of the base's parameters that were drawn at random.
        metric: the name of the metric that it is scored by; None for that of its protocol.
        learned_limit: the most tokens of an answer, unless its recipe or its protocol says it;
            None for 32.
        pairs: whether each of its training rows was a pair of texts.
        commonest_answer: what most of its training rows have as their right answer: a text, a
            class, labels, the index of a candidate, or the mean of scores; None if none is common.
    """

    folder: Path
    model: PeftModel | PreTrainedModel
    form: Form
    labels: tuple[str, ...]
    drawn: frozenset[str]
    metric: str | None = None
    learned_limit: int | None = None
    pairs: bool = False
    commonest_answer: Any = None

    @property
    def device(self) -> torch.device:
        """The device that the model's inputs must be on."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def protocol(self) -> Protocol:
        """The protocol of its first task."""
        task = TASKS[self.recipe.tasks[0]]
        if self.recipe.task == JSONL:
            return task.protocols[self.form]
        return task.protocol(self.recipe.protocol, self.kind)


@memory_remedy(LOADING)
def load_run(folder: Path, *, trust_remote_code: bool = False, to_merge: bool = False) -> Run:
    """Load a finished run onto the device that answers here.

    Its recipe does not decide about remote code, because the folder may come from somebody else.
    ``to_merge`` loads the base's own weights, whatever the run was trained on, and onto the CPU: an
    accelerator that holds them in 4 bits has no room for them, and merging computes little.

    A run that is not finished, and an adapter whose pooling is not the recipe's, are refused.
    """
    recipe = finished_run(folder, trust_remote_code=trust_remote_code)
    method_named(recipe.method)  # the package of a method may have to be imported, or be refused
    result = read_result(folder)
    if to_merge:
        recipe = _recipe_to_merge(recipe, folder)
    # The run's own copy, since the user's file may be gone.
    template = folder / TEMPLATE_FILE
    if template.is_file():
        recipe = recipe.model_copy(update={"chat_template": str(template)})
    prepared = prepare(recipe)
    device = None if to_merge else answering_device(recipe)
    head = head_for(result.form, result.labels)
    model: PeftModel | PreTrainedModel
    trained_base = folder / "model"
    if trained_base.is_dir():
        # A fully trained model has its own config, in which positions are stretched already.
        of_model = recipe.model_copy(update={"model": str(trained_base), "rope_factor": None})
        config = load_config(of_model.model, trust_remote_code=trust_remote_code)
        prepared = replace(prepared, recipe=of_model, config=config)
        base = load_base(prepared, head, device, without_adapter=recipe.pooling is not None)
        model = _complete_model(base, recipe, trained_base)
    else:
        base = load_base(prepared, head, device)
        model = load_adapted(base.model, folder / "adapter", base.drawn)
        refuse_other(pooling_part(model.peft_config["default"]), recipe.pooling, folder)
        revision = getattr(prepared.config, "_commit_hash", None)
        warn_of_other_revision(revision, result, folder)
    model = model.to(base.model.device)
    run = Run(
        recipe=fit_context(recipe, model.config),
        config=prepared.config,
        kind=prepared.kind,
        tokenizer=prepared.tokenizer,
        folder=folder,
        model=model,
        form=result.form,
        labels=tuple(result.labels),
        drawn=base.drawn,
        metric=result.metric_name,
        learned_limit=result.max_new_tokens,
        pairs=result.pairs,
        commonest_answer=result.commonest_answer,
    )
    # Last, as the languages are those of the protocol, which the run knows.
    set_languages(run.tokenizer, recipe.languages, run.protocol.languages)
    return run


@memory_remedy(LOADING)
def load_untrained(recipe: Recipe, form: Form, labels: tuple[str, ...] = ()) -> Run:
    """The base of a recipe as it is, in place of a run that has learned rows of a form.

    It has the dtype, context and device that a run of the recipe has here.
    """
    prepared = prepare(recipe)
    base = load_base(prepared, head_for(form, labels), answering_device(recipe))
    return Run(
        recipe=fit_context(prepared.recipe, base.model.config),
        config=prepared.config,
        kind=prepared.kind,
        tokenizer=prepared.tokenizer,
        folder=Path(recipe.output),
        model=base.model.eval(),
        form=form,
        labels=labels,
        drawn=base.drawn,
    )


def _recipe_to_merge(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of a run whose parts are to be merged: on the CPU, into whole weights.

    A warning says so if the base was quantised, as answers then differ a little.
    """
    if recipe.quantization is not None:
        logger.warning(
            "%s was trained on %s weights and is merged into unquantised ones, so answers differ "
            "by what the quantisation rounds",
            folder,
            recipe.quantization,
        )
    return recipe.model_copy(update={"quantization": None, "device_map": None})


def _complete_model(base: Base, recipe: Recipe, folder: Path) -> PreTrainedModel:
    """A fully trained model, with its pooling if it has one.

    Raises:
        ValueError: if the ``folder`` lacks weights, or has another pooling than the recipe says.
    """
    if base.drawn:
        raise ValueError(f"{folder} has no {min(base.drawn)}: it is incomplete")
    model = base.model.eval()
    if recipe.pooling is not None:
        refuse_other(pooling_part(adapter_config(folder)), recipe.pooling, folder)
        attach(model, recipe.pooling)
    return model


def warn_of_other_revision(now: str | None, result: RunResult, folder: Path) -> None:
    """Warn where the hub has another revision of the base by ``now`` than at the training."""
    before = result.base_revision
    if None not in (before, now) and before != now:
        logger.warning("%s was trained on revision %s of %s, not on %s, which is here",
                       folder, before, result.model, now)  # fmt: skip


@contextmanager
def scoring(run: Run, *, base: bool) -> Iterator[None]:
    """Switch gradients off in a ``with`` block, and the adapter too if the base is to be scored.

    The base alone is refused where the run has trained it, and where a part of it is drawn at
    random.
    Memory that runs out in the block gets a remedy.
    """
    if base and not isinstance(run.model, PeftModel):
        raise ValueError(
            "this run trained the base model itself: there is no adapter to switch off"
        )
    if base and run.drawn:
        raise ValueError(
            f"--base: {run.recipe.model} has no {min(run.drawn)}, which is drawn anew at each load,"
            " so scores of the base would be random: leave out --base"
        )
    as_base = run.model.disable_adapter() if base else nullcontext()
    # What runs out of memory here is helped by smaller batches.
    with as_base, torch.no_grad(), memory_remedy(SCORING):
        yield
