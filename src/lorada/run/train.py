"""``lorada train``: from a recipe to a run folder, on transformers' Trainer.

A run folder holds ``recipe.yaml``, checkpoints while it trains, then ``adapter/`` (or ``model/``),
``loss.png`` and ``result.json``. It is complete when it has a ``result.json``.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from lorada.errors import saving
from lorada.files import written_whole
from lorada.run.adapt import (
    adapt,
    base_parameters,
    fold_prefixes,
    load_base,
    parameter_counts,
    plan_for,
)
from lorada.run.callbacks import (
    LogWithSave,
    SaveOnInterrupt,
    SealCheckpoints,
    StopOnNaN,
    refuse_broken,
)
from lorada.run.card import write_card
from lorada.run.data import Rows, head_size, training_rows
from lorada.run.effect_size import EffectSize
from lorada.run.encoding import collator, context_of, encode_rows, fit_context
from lorada.run.folder import Start, begin, check_folder
from lorada.run.lock import held
from lorada.run.models import kind_of, load_config, load_tokenizer, own_classes
from lorada.run.origin import weights_fingerprint
from lorada.run.packing import PackedCollator, pack, refuse_mixing, refuse_packing
from lorada.run.recipe import Recipe
from lorada.run.result import RESULT_FILE, hardware, peak_memory, versions, write_result
from lorada.run.seq2seq import (
    measured_names,
    set_languages,
    writes_texts,
)
from lorada.run.trainer import (
    give_maps_their_rate,
    make_trainer,
    measuring,
    one_line,
    trainer_class,
    training_arguments,
)
from lorada.run.vocabulary import refuse_unknown_tokens

logger = logging.getLogger(__name__)

AGAIN = "What was saved before is whole: free space, then lorada train --resume --output "


@dataclass(frozen=True)
class Trained:
    """What a run left behind."""

    run: Path
    result: dict[str, Any]
    interrupted: bool = False


def train(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> Trained:
    """Train a recipe into its output folder.

    Args:
        recipe: what to train.
        resume: continue from the last checkpoint of that folder, bit for bit.
        overwrite: delete what an earlier run left there, once everything else is in order.
        quiet: no progress bar.

    Raises:
        ValueError: for a folder that holds a run or in which another process trains, or anything
            in the recipe that does not fit.
        DivergedError: if the loss becomes NaN; checkpoints saved before stay.
        OSError: if the disk is full; what was saved before stays whole.
    """
    run = Path(recipe.output)
    with saving(run, "Free space, then run the command again"), held(run):
        start = check_folder(recipe, resume=resume, overwrite=overwrite)
        return _train(recipe, start, quiet=quiet)


def _train(recipe: Recipe, start: Start, *, quiet: bool) -> Trained:
    config = load_config(recipe.model, trust_remote_code=recipe.trust_remote_code)
    kind = kind_of(config)
    rows, held_out = training_rows(recipe, kind, own_classes(config))
    if recipe.packing:
        refuse_packing(rows.form, kind, recipe.method)
    plan = plan_for(recipe)
    writes = writes_texts(rows, kind)
    args = training_arguments(recipe, plan.arguments, quiet=quiet, writes=writes)
    measured = measured_names(args, held_out)
    set_seed(args.seed)
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code)
    set_languages(tokenizer, recipe.languages, rows.protocol.languages)
    base = load_base(recipe, head_size(rows))
    refuse_unknown_tokens(base.model, tokenizer)
    total = base_parameters(base.model, base.head)
    fitted = fit_context(recipe, base.model.config)
    dataset = encode_rows(rows, fitted, tokenizer, kind)
    evaluation = encode_rows(held_out, fitted, tokenizer, kind) if held_out else None
    pad = collator(rows.form, tokenizer, base.model)
    if recipe.packing:
        dataset, pad = pack(dataset, fitted.max_length), PackedCollator(tokenizer.pad_token_id)
        evaluation = pack(evaluation, fitted.max_length) if evaluation else None
    if plan.prepare is not None:
        batches = _batches(dataset, pad, args)
        plan = replace(plan, config=plan.prepare(base.model.to(args.device), batches))
    model = adapt(base, plan, recipe)
    if recipe.packing:
        refuse_mixing(model, max(args.train_batch_size, args.eval_batch_size if held_out else 1))
    scored = held_out if measured else None
    context = context_of(base.model.config)
    make = trainer_class(recipe, rows, scored, tokenizer, context, writes=writes)
    effect, interrupt = EffectSize(), SaveOnInterrupt()
    callbacks = [effect, interrupt, StopOnNaN(), LogWithSave(), *plan.callbacks]
    callbacks += [*measuring(args, recipe), SealCheckpoints()]
    with one_line("TrainingArguments"):
        trainer = make_trainer(model, args, (dataset, evaluation), pad, callbacks, make)
        if plan.optimizer is not None:
            trainer.optimizer = plan.optimizer(model, args)
        give_maps_their_rate(trainer, model)
    run = Path(recipe.output)
    begin(recipe, start, rows.fingerprint)
    again = AGAIN + quote(str(run))
    started = time.monotonic()
    try:
        _fit(trainer, start.checkpoint, again)
    finally:
        interrupt.restore()
        effect.stop()
    if interrupt.interrupted:
        return Trained(run, {"steps": trainer.state.global_step}, interrupted=True)
    with saving(f"the weights of {run}", again):
        _save_whole(model, tokenizer, recipe)
    parameters = parameter_counts(model, total, base.head, plan.with_head)
    result = _result(recipe, rows, trainer, parameters, measured)
    result["wall_time_s"] = round(time.monotonic() - started, 1)
    result["settings_from"] = plan.settings_from
    result["resumed_from"] = start.checkpoint.name if start.checkpoint else None
    with saving(run / RESULT_FILE, again):
        write_result(run, result)
    return Trained(run, result)


def _batches(
    dataset: Dataset, pad: Callable[..., Any], args: TrainingArguments
) -> DataLoader[dict[str, Any]]:
    """Shuffled batches for a method's preparation; the random numbers of training stay theirs."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        args.per_device_train_batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(args.seed),
        collate_fn=getattr(pad, "plain", pad),
    )


def _fit(trainer: Trainer, checkpoint: Path | None, again: str) -> None:
    """Train to the end; a full disk is told with the step, and ``again`` as the remedy."""
    try:
        _continue(trainer, checkpoint)
    except Exception:
        print(file=sys.stderr)  # ends the line of the progress bar
        with saving(f"{trainer.args.output_dir} at step {trainer.state.global_step}", again):
            raise


def _continue(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train to the end, from a checkpoint if there is one.

    Raises:
        DivergedError: if the weights are no numbers at the end.
    """
    state = None
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if checkpoint is None or state is None or state.global_step < state.max_steps:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    else:
        # The run ended between its last checkpoint and its result; the Trainer, asked to go
        # on from there, would take one step too many.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state
        if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            trainer._load_best_model()
    refuse_broken(trainer.model, trainer.args, trainer.state)


def _save_whole(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
) -> None:
    """Write the adapter (or the model) beside its place, then move it there in one step."""
    run, name = Path(recipe.output), "adapter" if isinstance(model, PeftModel) else "model"
    if isinstance(model, PeftModel):
        fold_prefixes(model)
    with written_whole(run / name) as fresh:
        model.save_pretrained(fresh)
        if name == "model":
            tokenizer.save_pretrained(fresh)
        else:
            write_card(fresh, recipe, model.peft_config["default"])


def _result(
    recipe: Recipe,
    rows: Rows,
    trainer: Trainer,
    parameters: dict[str, Any],
    measured: list[str],
) -> dict[str, Any]:
    shown = ["step", "loss", "eval_loss", *measured, "effect_size", "grad_norm"]
    history = [
        {key: entry[key] for key in shown if key in entry}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    effects = [entry["effect_size"] for entry in history if "effect_size" in entry]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return {
        "recipe": recipe.model_dump(),
        "method": recipe.method,
        "model": recipe.model,
        "base_sha256": weights_fingerprint(recipe.model),
        "task": recipe.task,
        "form": rows.form,
        "labels": list(rows.labels),
        "seed": trainer.args.seed,
        "data": {"file": Path(rows.path).name, "rows": len(rows.rows), "sha256": rows.fingerprint},
        "versions": versions(),
        "hardware": hardware(),
        "parameters": {**parameters, "paper": None},
        "steps": trainer.state.global_step,
        "peak_memory_bytes": peak_memory(),
        "train_loss": losses[-1] if losses else None,
        "effect_size": effects[-1] if effects else None,
        "metrics": {},
        "unparsable": None,
        "history": history,
    }
