"""``lorada train``: from a recipe to a run folder, on transformers' Trainer.

A run folder holds ``recipe.yaml``, checkpoints while it trains, then ``adapter/`` (or ``model/``),
``loss.png`` and ``result.json``. It is complete when it has a ``result.json``.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_WRAPPED_MODULE
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from lorada.methods.build import Plan
from lorada.runs.data.dataset import collator, context_of, encode_rows, fit_context
from lorada.runs.data.packing import PackedCollator, pack, refuse_mixing, refuse_packing
from lorada.runs.data.rows import Rows, head_size, training_rows
from lorada.runs.folder.folder import Start, begin, check_folder
from lorada.runs.folder.lock import locked
from lorada.runs.folder.model_card import write_card
from lorada.runs.folder.result import RESULT_FILE, hardware, peak_memory, versions, write_result
from lorada.runs.models.adapters import (
    adapt,
    base_parameters,
    fold_prefixes,
    load_base,
    parameter_counts,
    plan_for,
)
from lorada.runs.models.loading import kind_of, load_config, load_tokenizer, own_classes
from lorada.runs.models.origin import weights_fingerprint
from lorada.runs.models.vocabulary import refuse_unknown_tokens
from lorada.runs.recipe import Recipe
from lorada.runs.training.callbacks import (
    LogWithSave,
    SaveOnInterrupt,
    SealCheckpoints,
    StopOnNaN,
    refuse_broken,
)
from lorada.runs.training.effect_size import EffectSize
from lorada.runs.training.seq2seq_trainer import (
    measured_names,
    set_languages,
    writes_texts,
)
from lorada.runs.training.trainer import (
    give_maps_their_rate,
    make_trainer,
    measuring,
    one_line,
    trainer_class,
    training_arguments,
)
from lorada.support.errors import saving
from lorada.support.files import written_whole
from lorada.support.processes import anywhere, count, from_first, gathered, join, together

logger = logging.getLogger(__name__)

AGAIN = "What was saved before is whole: free space, then lorada train --resume --output "


@dataclass(frozen=True)
class Trained:
    """What a run left behind."""

    run: Path
    result: dict[str, Any]
    interrupted: bool = False


@dataclass(frozen=True)
class _Ready:
    """All that a run needs, checked and loaded, before anything is written."""

    trainer: Trainer
    model: PeftModel | PreTrainedModel
    plan: Plan
    head: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    measured: list[str]
    total: int
    effect: EffectSize
    interrupt: SaveOnInterrupt


def train(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> Trained:
    """Train a recipe into its output folder.

    Where ``torchrun`` or ``accelerate launch`` started several processes, all call this: they
    train together, the first alone writes, and all get what it wrote.

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
        OtherProcessError: for any of these, in all processes but the one that has it.
    """
    run = Path(recipe.output)
    with one_line("TrainingArguments"):
        join(recipe.training)
    with saving(run, "Free space, then run the command again"), ExitStack() as kept:

        def enter() -> Start:
            kept.enter_context(locked(run))
            return check_folder(recipe, resume=resume, overwrite=overwrite)

        start = from_first(enter)
        with together():
            ready = _ready(recipe, quiet=quiet)
        return _train(recipe, start, ready)


def _ready(recipe: Recipe, *, quiet: bool) -> _Ready:
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
    _refuse_unshared(trainer)
    return _Ready(
        trainer, model, plan, base.head, tokenizer, rows, measured, total, effect, interrupt
    )


def _train(recipe: Recipe, start: Start, ready: _Ready) -> Trained:
    trainer, run = ready.trainer, Path(recipe.output)
    from_first(lambda: begin(recipe, start, ready.rows.fingerprint))
    again = AGAIN + quote(str(run))
    _save_states_together(trainer)
    started = time.monotonic()
    try:
        _fit(trainer, start.checkpoint, again)
    finally:
        ready.interrupt.restore()
        ready.effect.stop()
    if anywhere(ready.interrupt.interrupted, trainer.args.device):
        return Trained(run, {"steps": trainer.state.global_step}, interrupted=True)
    weights, peak = _all_weights(trainer), max(gathered(peak_memory()))

    def finish() -> dict[str, Any]:
        with saving(f"the weights of {run}", again):
            _save_whole(ready.model, weights, ready.tokenizer, recipe)
        result = _result(recipe, ready, peak)
        result["wall_time_s"] = round(time.monotonic() - started, 1)
        result["resumed_from"] = start.checkpoint.name if start.checkpoint else None
        with saving(run / RESULT_FILE, again):
            write_result(run, result)
        return result

    return Trained(run, from_first(finish))


def _refuse_unshared(trainer: Trainer) -> None:
    """Refuse processes that would each train a whole model by themselves, or keep one whole.

    Raises:
        ValueError: for what was asked for and would not happen.
    """
    args = trainer.args
    if args.world_size != count():
        raise ValueError(f"{count()} processes were started, and {args.world_size} would train")
    shared = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if shared and count() > 1 and not trainer.is_fsdp_enabled:
        raise ValueError(
            f"training.fsdp={args.fsdp or 'true'} shares a model out among accelerators, and there "
            "are none here: leave it out"
        )


def _save_states_together(trainer: Trainer) -> None:
    """Let no process go on before all have saved their random numbers in a checkpoint.

    So that the first, which writes ``trainer_state.json`` next, finishes one that is whole.
    """
    save = trainer._save_rng_state

    def save_and_wait(folder: str) -> None:
        save(folder)
        gathered(None)

    trainer._save_rng_state = save_and_wait


def _all_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """All weights of a model that is shared out among processes; None where each has it whole."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    weights: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


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


def _make_whole(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put the weights of a model of which each process had a share back into it."""
    whole: dict[int, nn.Parameter] = {}  # by what it stands for, so that tied weights stay tied
    for place, module in model.named_modules():
        for name, share in list(module.named_parameters(recurse=False)):
            key = f"{place}.{name}".removeprefix(".").replace(f"{_CHECKPOINT_WRAPPED_MODULE}.", "")
            all_of_it = nn.Parameter(weights[key], requires_grad=share.requires_grad)
            setattr(module, name, whole.setdefault(id(share), all_of_it))


def _save_whole(
    model: PeftModel | PreTrainedModel,
    weights: dict[str, torch.Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
) -> None:
    """Write the adapter (or the model) beside its place, then move it there in one step."""
    run, name = Path(recipe.output), "adapter" if isinstance(model, PeftModel) else "model"
    if weights is not None:
        _make_whole(model, weights)
    if isinstance(model, PeftModel):
        fold_prefixes(model)
    with written_whole(run / name) as fresh:
        model.save_pretrained(fresh)
        if name == "model":
            tokenizer.save_pretrained(fresh)
        else:
            write_card(fresh, recipe, model.peft_config["default"])


def _result(recipe: Recipe, ready: _Ready, peak: int) -> dict[str, Any]:
    trainer, rows = ready.trainer, ready.rows
    shown = ["step", "loss", "eval_loss", *ready.measured, "effect_size", "grad_norm"]
    history = [
        {key: entry[key] for key in shown if key in entry}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    counts = parameter_counts(ready.model, ready.total, ready.head, ready.plan.with_head)
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
        "processes": count(),
        "parameters": {**counts, "paper": None},
        "settings_from": ready.plan.settings_from,
        "steps": trainer.state.global_step,
        "peak_memory_bytes": peak,
        "train_loss": losses[-1] if losses else None,
        "effect_size": effects[-1] if effects else None,
        "metrics": {},
        "unparsable": None,
        "history": history,
    }
