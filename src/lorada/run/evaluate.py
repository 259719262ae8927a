"""``lorada evaluate`` and ``lorada generate``: a finished run on held-out rows or prompts."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorada.run.adapt import load_adapted, load_base
from lorada.run.data import Rows, collator, encode_rows, load_rows
from lorada.run.models import load_tokenizer
from lorada.run.recipe import RECIPE_FILE, Recipe, load_recipe
from lorada.run.result import read_result, write_result
from lorada.tasks import TASKS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run, loaded for inference."""

    folder: Path
    recipe: Recipe
    model: PeftModel | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]


def load_run(folder: Path) -> Run:
    """Load a finished run.

    Raises:
        ValueError: if the folder holds no finished run, or its adapter does not fit.
    """
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"{folder} is not a run: it has no {RECIPE_FILE}")
    result = read_result(folder)
    recipe = load_recipe(str(folder / RECIPE_FILE), [], {})
    labels = tuple(result["labels"])
    count = len(labels) or None
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code)
    if (folder / "model").is_dir():
        whole = recipe.model_copy(update={"model": str(folder / "model")})
        model: PeftModel | PreTrainedModel = load_base(whole, count).eval()
    else:
        model = load_adapted(load_base(recipe, count), folder / "adapter")
    if torch.cuda.is_available():
        model = model.cuda()
    return Run(folder, recipe, model, tokenizer, labels)


def evaluate(run: Run, data: str | None = None, *, base: bool = False) -> dict[str, Any]:
    """Score a run on held-out rows and keep the numbers in its ``result.json``.

    Args:
        run: the run.
        data: file of rows; None for the recipe's ``eval_data``.
        base: score the base model instead, with the adapter switched off.

    Returns:
        The metrics: ``loss``, and ``exact_match`` or ``accuracy`` in percent, with ``n``.

    Raises:
        ValueError: if there are no rows, or ``base`` is asked of a run without an adapter.
    """
    rows = load_rows(data or run.recipe.eval_data, run.labels)
    if base and not isinstance(run.model, PeftModel):
        raise ValueError(
            "this run trained the base model itself: there is no adapter to switch off"
        )
    switched_off = run.model.disable_adapter() if base else nullcontext()
    with switched_off, torch.no_grad():
        scores = score(run, rows)
    metrics = {"n": len(rows.rows), **scores, "sha256": rows.fingerprint}
    result = read_result(run.folder)
    result["metrics"][f"{Path(rows.path).name}{' (base)' if base else ''}"] = metrics
    write_result(run.folder, result)
    return metrics


def score(run: Run, rows: Rows) -> dict[str, float]:
    """Mean loss per counted token, and how many answers are right."""
    dataset = encode_rows(rows, run.recipe, run.tokenizer)
    loader = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=run.recipe.eval_batch_size,
        collate_fn=collator(rows.form, run.tokenizer),
    )
    total = weight = right = 0.0
    for batch in track(loader, "Scoring", transient=True):
        batch = {key: value.to(_device(run.model)) for key, value in batch.items()}
        output = run.model(**batch)
        if rows.form == "label":
            count = float(len(batch["labels"]))
            right += float((output.logits.argmax(-1) == batch["labels"]).sum())
        else:
            count = float((batch["labels"][:, 1:] != -100).sum())
        total, weight = total + float(output.loss) * count, weight + count
    metrics = {"loss": total / weight}
    if rows.form == "label":
        return {**metrics, "accuracy": 100 * right / weight}
    task = TASKS[run.recipe.task]
    prompts = [task.prompt_of(row, rows.form, run.tokenizer) for row in rows.rows]
    answers = [task.answer_of(row, rows.form) for row in rows.rows]
    outputs = generate(run, prompts, special_tokens=rows.form == "prompt")
    return {**metrics, **task.score(outputs, answers)}


def generate(
    run: Run,
    prompts: list[str],
    *,
    special_tokens: bool = True,
    max_new_tokens: int | None = None,
) -> list[str]:
    """Greedy continuations of prompts, without the prompts.

    Raises:
        ValueError: for a model that cannot generate.
    """
    if run.labels:
        raise ValueError(f"{run.folder} is a classifier of {', '.join(run.labels)}: it has no text")
    tokenizer, model, size = run.tokenizer, run.model, run.recipe.eval_batch_size
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    limit = max_new_tokens or run.recipe.max_new_tokens
    outputs: list[str] = []
    try:
        for start in track(range(0, len(prompts), size), "Generating", transient=True):
            batch = tokenizer(
                prompts[start : start + size],
                return_tensors="pt",
                padding=True,
                add_special_tokens=special_tokens,
            ).to(_device(model))
            with torch.no_grad():
                ids = model.generate(
                    **batch,
                    max_new_tokens=limit,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = ids[:, batch["input_ids"].shape[1] :]
            outputs += tokenizer.batch_decode(new, skip_special_tokens=True)
    finally:
        tokenizer.padding_side = side
    return outputs


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
