"""``lorada evaluate`` and ``lorada generate``: a finished run on held-out rows or prompts."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorada.errors import saving
from lorada.run.adapt import load_adapted, load_base
from lorada.run.data import Rows, collator, context_of, encode_rows, fit_context, load_rows
from lorada.run.models import load_tokenizer
from lorada.run.recipe import RECIPE_FILE, Recipe, load_recipe
from lorada.run.result import RESULT_FILE, read_result, write_result
from lorada.tasks import TASKS
from lorada.tasks.jsonl import IGNORED
from lorada.tasks.rows import Form, Row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run, loaded for inference."""

    folder: Path
    recipe: Recipe
    model: PeftModel | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    form: Form
    labels: tuple[str, ...]


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
    recipe = load_recipe(str(folder / RECIPE_FILE), [], {})
    recipe = recipe.model_copy(update={"trust_remote_code": trust_remote_code})
    labels = tuple(result["labels"])
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=trust_remote_code)
    if (folder / "model").is_dir():
        whole = recipe.model_copy(update={"model": str(folder / "model")})
        model: PeftModel | PreTrainedModel = load_base(whole, len(labels) or None).eval()
    else:
        model = load_adapted(load_base(recipe, len(labels) or None), folder / "adapter")
    if torch.cuda.is_available():
        model = model.cuda()
    return Run(folder, fit_context(recipe, model.config), model, tokenizer, result["form"], labels)


def evaluate(run: Run, data: str | None = None, *, base: bool = False) -> dict[str, Any]:
    """Score a run on held-out rows and keep the numbers in its ``result.json``.

    Args:
        run: the run.
        data: file of rows; None for the recipe's ``eval_data``.
        base: score the base model instead, with the adapter switched off.

    Returns:
        The metrics: ``loss``, and ``exact_match`` or ``accuracy`` in percent, with ``n``.

    Raises:
        ValueError: if there are no rows or they have another form than the run's, or ``base`` is
            asked of a run without an adapter.
    """
    rows = load_rows(data or run.recipe.eval_data, run.form, run.labels)
    if base and not isinstance(run.model, PeftModel):
        raise ValueError(
            "this run trained the base model itself: there is no adapter to switch off"
        )
    switched_off = run.model.disable_adapter() if base else nullcontext()
    with switched_off, torch.no_grad():
        scores = score(run, rows)
    metrics = {"n": len(rows.rows), **scores, "sha256": rows.fingerprint}
    result = read_result(run.folder)
    result["metrics"][f"{rows.path}{' (base)' if base else ''}"] = metrics
    with saving(run.folder / RESULT_FILE, "Free space, then run the command again"):
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
    for batch in track(loader, "Scoring", transient=True, console=Console(stderr=True)):
        batch = {key: value.to(_device(run.model)) for key, value in batch.items()}
        output = run.model(**batch)
        if rows.form == "label":
            count = float(len(batch["labels"]))
            right += float((output.logits.argmax(-1) == batch["labels"]).sum())
        else:
            count = float((batch["labels"][:, 1:] != IGNORED).sum())
        total, weight = total + float(output.loss) * count, weight + count
    metrics = {"loss": total / weight}
    if rows.form == "label":
        return {**metrics, "accuracy": 100 * right / weight}
    task = TASKS[run.recipe.task]
    prompts = [task.prompt_of(row, rows.form, run.tokenizer) for row in rows.rows]
    answers = [task.answer_of(row, rows.form) for row in rows.rows]
    outputs = generate(run, prompts, templated=rows.form == "messages")
    return {**metrics, **task.score(outputs, answers)}


def continue_prompts(run: Run, prompts: list[str], max_new_tokens: int | None = None) -> list[str]:
    """Answers to a user's prompts, in the form that the run was trained on."""
    if run.form != "messages":
        return generate(run, prompts, max_new_tokens=max_new_tokens)
    turns: list[Row] = [
        {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": ""}]}
        for p in prompts
    ]
    task = TASKS[run.recipe.task]
    prompts = [task.prompt_of(row, "messages", run.tokenizer) for row in turns]
    return generate(run, prompts, templated=True, max_new_tokens=max_new_tokens)


def generate(
    run: Run,
    prompts: list[str],
    *,
    templated: bool = False,
    max_new_tokens: int | None = None,
) -> list[str]:
    """Greedy continuations of prompts, without the prompts.

    Args:
        run: the run.
        prompts: texts to continue; ones too long for the model lose their beginning, which is
            reported.
        templated: whether a chat template has already put the special tokens in.
        max_new_tokens: tokens to generate; None for the recipe's number.

    Raises:
        ValueError: for a model that cannot generate, a prompt that is empty or no text, or more
            tokens than the model has room for.
    """
    if run.labels:
        raise ValueError(f"{run.folder} is a classifier of {', '.join(run.labels)}: it has no text")
    if not all(prompts):
        raise ValueError("a prompt is empty: there is nothing to continue")
    for prompt in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise ValueError(f"the prompt {prompt!a} is not UTF-8 text: write it anew")
    tokenizer, size = run.tokenizer, run.recipe.eval_batch_size
    limit = run.recipe.max_new_tokens if max_new_tokens is None else max_new_tokens
    context = context_of(run.model.config)
    if context is not None and limit >= context:
        raise ValueError(
            f"max_new_tokens={limit} leaves no room for a prompt: the model's context is "
            f"{context} tokens"
        )
    room = {} if context is None else {"truncation": True, "max_length": context - limit}
    sides = tokenizer.padding_side, tokenizer.truncation_side
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    outputs: list[str] = []
    cut = 0
    try:
        for start in track(
            range(0, len(prompts), size), "Generating", transient=True, console=Console(stderr=True)
        ):
            chunk = prompts[start : start + size]
            batch = tokenizer(
                chunk, return_tensors="pt", padding=True, add_special_tokens=not templated, **room
            ).to(_device(run.model))
            if context is not None and batch["input_ids"].shape[1] >= context - limit:
                whole = tokenizer(chunk, add_special_tokens=not templated)["input_ids"]
                cut += sum(len(ids) > context - limit for ids in whole)
            outputs += _continue(run, batch, limit)
    finally:
        tokenizer.padding_side, tokenizer.truncation_side = sides
    if cut:
        logger.warning("%d of %d prompts lost their beginning to fit the model", cut, len(prompts))
    return outputs


def _continue(run: Run, batch: Any, limit: int) -> list[str]:
    with torch.no_grad():
        ids = run.model.generate(
            **batch,
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=run.tokenizer.pad_token_id,
        )
    new = ids[:, batch["input_ids"].shape[1] :]
    texts: list[str] = run.tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
