"""A finished run, loaded for inference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorada.runs.data.dataset import fit_context
from lorada.runs.data.rows import JSONL
from lorada.runs.folder.result import read_result
from lorada.runs.models.adapters import load_adapted, load_base
from lorada.runs.models.loading import kind_of, load_tokenizer
from lorada.runs.models.origin import weights_fingerprint
from lorada.runs.models.vocabulary import refuse_unknown_tokens
from lorada.runs.recipe import RECIPE_FILE, Recipe, saved_recipe
from lorada.runs.training.seq2seq_trainer import set_languages
from lorada.tasks import TASKS
from lorada.tasks.rows import Form
from lorada.tasks.task import Kind, Protocol


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    recipe: Recipe
    model: PeftModel | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    form: Form
    labels: tuple[str, ...]
    drawn: frozenset[str] = frozenset()  # parameters of the base that were drawn at random

    @property
    def kind(self) -> Kind:
        """What kind of model it is."""
        return kind_of(self.model.config)

    @property
    def device(self) -> torch.device:
        """Where the model reads its input."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def protocol(self) -> Protocol:
        """How the first of its tasks is put to the model."""
        task = TASKS[self.recipe.tasks[0]]
        if self.recipe.task == JSONL:
            return task.protocols[self.form]
        return task.protocols[task.protocol(self.recipe.protocol, self.kind)]


def load_run(folder: Path, *, trust_remote_code: bool = False) -> Run:
    """Load a finished run.

    Args:
        folder: the run.
        trust_remote_code: whether code that the model's repository ships may run; what the
            folder's own recipe says does not count, as the folder may come from somebody else.

    Raises:
        ValueError: if the folder holds no finished run, or its adapter does not fit.
    """
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"{folder} is not a run: it has no {RECIPE_FILE}")
    result = read_result(folder)
    recipe = saved_recipe(folder / RECIPE_FILE, trust_remote_code=trust_remote_code)
    labels = tuple(result["labels"])
    head = 1 if result["form"] == "score" else len(labels) or None
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=trust_remote_code)
    if (folder / "model").is_dir():
        # Its config has the stretched positions already.
        own = {"model": str(folder / "model"), "rope_factor": None}
        whole = recipe.model_copy(update=own)
        base = load_base(whole, head)
        model: PeftModel | PreTrainedModel = base.model.eval()
        if base.drawn:
            raise ValueError(f"{folder / 'model'} has no {min(base.drawn)}: it is incomplete")
    else:
        base = load_base(recipe, head)
        model = load_adapted(base.model, folder / "adapter", base.drawn)
        _refuse_changed(recipe, result, folder)
    refuse_unknown_tokens(base.model, tokenizer)
    if torch.cuda.is_available():
        model = model.cuda()
    fitted = fit_context(recipe, model.config)
    run = Run(folder, fitted, model, tokenizer, result["form"], labels, base.drawn)
    set_languages(tokenizer, recipe.languages, run.protocol.languages)
    return run


def _refuse_changed(recipe: Recipe, result: dict[str, Any], folder: Path) -> None:
    """Refuse a base whose weights are others by now; one that is named anew may be another."""
    before, now = result.get("base_sha256"), weights_fingerprint(recipe.model)
    if recipe.model == result.get("model") and None not in (before, now) and before != now:
        raise ValueError(
            f"the weights of {recipe.model} are not those that {folder} was trained on: put them "
            "back, or train again"
        )
