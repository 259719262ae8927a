"""``lorada train``: from a recipe to a run folder, on transformers' Trainer.

    recipe → prepare_training → set_up → Trainer → save_model, training_result → run folder

A run folder holds ``recipe.yaml``, checkpoints while it trains, then ``adapter/`` (``model/`` if
the base itself trains) and ``result.json``. It is complete when it has the last.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_WRAPPED_MODULE
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from lorada.data.commonest_answer import repeated_answer
from lorada.data.task_rows import Rows, head_of, protocol_settings
from lorada.data.tokenize import collator, encode_rows, fit_context
from lorada.methods.head_modules import narrow_trained, widen_trained
from lorada.methods.method import EVERYTHING
from lorada.runs.folder import STATE_FILE, Start, begin, check_folder, locked
from lorada.runs.recipe import AUTO, Recipe
from lorada.runs.result import hardware, peak_memory, versions, write_result
from lorada.support.error_messages import full_disk_in_one_line
from lorada.support.files import atomic_path
from lorada.support.processes import (
    all_gather,
    all_or_none,
    broadcast_from_main,
    join_processes,
    process_count,
)
from lorada.support.row_sources import file_names
from lorada.training.arguments import (
    argument_errors,
    held_out_metrics,
    loading_device,
    training_arguments,
)
from lorada.training.callbacks import RelativeNorm, RunCallback, SaveOnInterrupt, refuse_broken
from lorada.training.guessing_loss import guessing_loss
from lorada.training.inputs import PreparedTraining, prepare_training
from lorada.training.memory import as_it_trains, recomputes
from lorada.training.model_card import write_card, write_model_card
from lorada.training.models.adapters import (
    Base,
    adapt,
    fold_prefixes,
    load_base,
    parameter_counts,
    part_kinds,
    save_beside,
)
from lorada.training.models.loading import language_settings, refuse_long
from lorada.training.packing import pack, packed_batch, refuse_mixing
from lorada.training.trainer import (
    ChoiceTrainer,
    RunTrainer,
    ScoreScale,
    WritingTrainer,
    scale_of,
    scorer,
    writes_texts,
)
from lorada.tuners.lmam import LmamConfig, map_configs
from lorada.tuners.pooling import attached

logger = logging.getLogger(__name__)

AGAIN = "What was saved before is whole: free space, then run the command again with --resume"
Collator = Callable[..., Any]


@dataclass(frozen=True)
class Setup:
    """A training that is ready to start; nothing is written yet."""

    prepared: PreparedTraining
    base: Base
    model: PeftModel | PreTrainedModel
    trainer: RunTrainer
    measured: list[str]  # the names of the metrics on held-out rows, besides the loss
    scale: ScoreScale | None  # how scores are learned; None for rows of another form
    timed: RunCallback  # what has measured the time of a step, once it is trained


@dataclass(frozen=True)
class Trained:
    """The outcome of a training."""

    run: Path
    result: dict[str, Any]  # the fields of its ``result.json``; only ``steps`` if interrupted
    interrupted: bool = False  # by Ctrl-C, after a checkpoint was saved


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Train a recipe into its output folder.

    If ``torchrun`` or ``accelerate launch`` started several processes, all call this: they train
    together, only the first writes, and all return its result.

    Args:
        recipe: what to train.
        resume: continue from the last checkpoint in that folder, bit for bit.
        overwrite: delete an earlier run there, once everything else has been checked.
        quiet: no progress bar.
        callbacks: further callbacks of the Trainer; one that stops the training ends the run early.

    Raises:
        DivergedError: if the loss becomes NaN; checkpoints saved before stay.
        OtherProcessError: for any error, in all processes except the one that fails.
    """
    run = Path(recipe.output)
    with argument_errors():
        join_processes(recipe.training)
    effect, interrupt = RelativeNorm(), SaveOnInterrupt()
    with ExitStack() as stack:

        def lock_and_check() -> Start:
            stack.enter_context(locked(run))
            return check_folder(recipe, resume=resume, overwrite=overwrite)

        with full_disk_in_one_line(run, "Free space, then run the command again"):
            start = broadcast_from_main(lock_and_check)
            if recipe.dtype == AUTO and start.dtype is not None:  # as where it began
                recipe = recipe.model_copy(update={"dtype": start.dtype})
            with all_or_none():
                prepared = prepare_training(recipe)
            with all_or_none():
                setup = set_up(prepared, [effect, interrupt, *callbacks], quiet=quiet)
            again = setup.trainer.args.gradient_checkpointing
            resolved = as_it_trains(prepared.recipe, again=again)
            broadcast_from_main(lambda: begin(resolved, start, prepared.rows.fingerprint))
        with full_disk_in_one_line(run, AGAIN):
            return _fit(setup, start, effect, interrupt)


def _fit(setup: Setup, start: Start, effect: RelativeNorm, interrupt: SaveOnInterrupt) -> Trained:
    """Train to the end, and save what was trained and the result."""
    trainer, run, started = setup.trainer, Path(setup.prepared.recipe.output), time.monotonic()
    try:
        _continue(trainer, start.checkpoint)
    except Exception:
        print(file=sys.stderr)  # ends the line of the progress bar
        raise
    finally:
        interrupt.restore()
        effect.stop()
    if interrupt.interrupted:
        return Trained(run, {"steps": trainer.state.global_step}, interrupted=True)
    weights, peak = all_weights(trainer), max(all_gather(peak_memory()))

    def finish() -> dict[str, Any]:
        save_model(setup, weights)
        result = training_result(setup, peak)
        result["wall_time_s"] = round(time.monotonic() - started, 1)
        result["resumed_from"] = start.checkpoint.name if start.checkpoint else None
        write_result(run, result)
        return result

    return Trained(run, broadcast_from_main(finish))


def _continue(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train to the end, from a checkpoint if there is one; refuse broken weights at the end."""
    state = TrainerState.load_from_json(str(checkpoint / STATE_FILE)) if checkpoint else None
    if state is None or not _ended(state):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    else:
        # The run ended between its last checkpoint and its result. The Trainer would take one step
        # too many from there, so only the checkpoint's weights and state are loaded.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state
        if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            trainer._load_best_model()
    refuse_broken(trainer.model, trainer.args, trainer.state)


def _ended(state: TrainerState) -> bool:
    """Whether a training had ended in this state, after its last step or early."""
    early = state.stateful_callbacks.get("EarlyStoppingCallback")
    if early is not None:
        counted = early["attributes"]["early_stopping_patience_counter"]
        if counted >= early["args"]["early_stopping_patience"]:
            return True
    return bool(state.global_step >= state.max_steps)


def all_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """All weights of a model that processes share; None if each has all. All must call it."""
    if not trainer.is_fsdp_enabled:
        return None
    weights: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


def save_model(setup: Setup, weights: dict[str, torch.Tensor] | None) -> None:
    """Write the adapter or the trained model into the run's folder, whole or not at all.

    ``weights`` is what ``all_weights`` returned.
    """
    model, recipe = setup.model, setup.prepared.recipe
    if weights is not None:
        _unshard(model, weights)
    if setup.scale is not None:
        setup.scale.fold(model)
    adapted = isinstance(model, PeftModel)
    if adapted:
        fold_prefixes(model)
    with atomic_path(Path(recipe.output) / ("adapter" if adapted else "model")) as fresh:
        model.save_pretrained(fresh)
        if adapted:
            write_card(fresh, recipe, model.peft_config["default"], model.config)
        else:
            setup.prepared.tokenizer.save_pretrained(fresh)
            if recipe.pooling is not None:
                save_beside(model, fresh)
                write_model_card(fresh, recipe, [], ["POOLING"], "SEQ_CLS")


def _unshard(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Replace the shards of this process's model by whole weights."""
    whole: dict[int, nn.Parameter] = {}  # by the shard's id, so that tied weights stay tied
    for path, module in model.named_modules():
        for name, shard in list(module.named_parameters(recurse=False)):
            key = f"{path}.{name}".removeprefix(".").replace(f"{_CHECKPOINT_WRAPPED_MODULE}.", "")
            parameter = nn.Parameter(weights[key], requires_grad=shard.requires_grad)
            setattr(module, name, whole.setdefault(id(shard), parameter))


def training_result(setup: Setup, peak: int) -> dict[str, Any]:
    """The fields of ``result.json`` without those that ``train`` adds; ``peak`` is in bytes."""
    prepared, base = setup.prepared, setup.base
    recipe, rows, plan = prepared.recipe, prepared.rows, prepared.plan
    state, scale, measured_rows = setup.trainer.state, setup.scale, setup.trainer.eval_dataset
    shown = ["step", "loss", "eval_loss", *setup.measured, "relative_norm", "grad_norm"]
    history = [
        {key: entry[key] for key in shown if key in entry}
        for entry in state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    counts = parameter_counts(setup.model, base.total, base.head, plan.with_head)
    effects = [entry["relative_norm"] for entry in history if "relative_norm" in entry]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    run = Path(recipe.output)
    saved = [*(run / "adapter").rglob("*"), *(run / "model").rglob("*")]
    return {
        "recipe": recipe.model_dump(),
        "method": recipe.method,
        "model": recipe.model,
        "base_revision": getattr(prepared.config, "_commit_hash", None),  # on the hub
        "task": recipe.task,
        "form": rows.form,
        "labels": list(rows.labels),
        "metric": prepared.metric,
        "max_new_tokens": recipe.max_new_tokens or prepared.most_answer_tokens,
        "commonest_answer": repeated_answer(rows),
        "learned_scores": None if scale is None else {"mean": scale.mean, "sd": scale.sd},
        "pairs": all(row.get("text_pair") for row in rows.rows),
        "seed": setup.trainer.args.seed,
        "data": {"file": file_names(rows.path), "rows": len(rows.rows), "sha256": rows.fingerprint},
        "versions": versions(),
        "hardware": hardware(),
        "processes": process_count(),
        "parameters": {**counts, "paper": None},
        "settings_from": plan.settings_from,
        "started_from": recipe.from_adapter,
        "adapter_parts": part_kinds(setup.model),
        "adapter_bytes": sum(path.stat().st_size for path in saved if path.is_file()),
        "steps": state.global_step,
        "seconds_per_step": setup.timed.seconds_per_step,
        "peak_memory_bytes": peak,
        "train_loss": losses[-1] if losses else None,
        "relative_norm": effects[-1] if effects else None,
        "guessing_loss": None if measured_rows is None else guessing_loss(rows.form, measured_rows),
        "metrics": {},
        "unparsable": None,
        "history": history,
    }


def set_up(
    prepared: PreparedTraining, watchers: list[TrainerCallback], *, quiet: bool = False
) -> Setup:
    """Make the Trainer of a training; ``watchers`` are the caller's callbacks, which come first."""
    recipe, plan, held_out = prepared.recipe, prepared.plan, prepared.held_out
    args, measured, make = checked_arguments(prepared, quiet=quiet)
    set_seed(args.seed)
    base = load_base(prepared, head_of(prepared.rows), loading_device(args))
    scale = scale_of(prepared.rows, base.model)
    begun = recipe.from_adapter
    if scale is not None and begun is not None and Path(begun, STATE_FILE).is_file():
        raise ValueError(f"{begun} is a checkpoint, whose head learns other numbers than the rows "
                         "have: start from the adapter of the finished run")  # fmt: skip
    train_rows, eval_rows, pad = _encode(prepared, base, scale)
    if plan.prepare is not None:
        batches = _batches(train_rows, pad, args)
        with attached(base.model, recipe.pooling):
            plan = replace(plan, config=plan.prepare(base.model.to(args.device), batches))
    model = adapt(base, plan, recipe)
    if scale is not None:
        scale = scale.begin(model, base.drawn)
    if recipe.mixed:
        widen_trained(model)
    elif narrow_trained(model):
        logger.warning("dtype=%s: what trains in the base loses small updates, as it is in 16 bits "
                       "too: dtype=mixed keeps it in float32", recipe.dtype)  # fmt: skip
    patience = recipe.early_stopping
    stopping = [] if patience is None else [EarlyStoppingCallback(patience)]
    # dev_rows are measured unless the recipe says no; eval_data only if it says so.
    wanted = recipe.dev_rows and "eval_strategy" not in recipe.training
    run = RunCallback(measures=bool(wanted or args.eval_strategy != "no"))
    callbacks = [*watchers, *plan.callbacks, *stopping, run]
    with argument_errors():
        _refuse_no_batch(args, len(train_rows))
        trainer = make(model, args, pad, train_rows, eval_rows, callbacks=callbacks)
        if quiet:  # what it would print is logged too
            trainer.remove_callback(PrinterCallback)
        # RelativeNorm adds to a log line, so it must see the line before any logger does.
        listeners = trainer.callback_handler.callbacks
        listeners.sort(key=lambda callback: not isinstance(callback, RelativeNorm))
        if plan.optimizer is not None:
            trainer.optimizer = plan.optimizer(model, args)
        _give_maps_their_rate(trainer, model)
    if recipe.packing:
        with trainer.accelerator.autocast():  # as in its steps
            refuse_mixing(
                model, max(args.train_batch_size, args.eval_batch_size if held_out else 1)
            )
    return Setup(prepared, base, model, trainer, measured, scale, run)


def checked_arguments(
    prepared: PreparedTraining, *, quiet: bool = False
) -> tuple[Seq2SeqTrainingArguments, list[str], Callable[..., RunTrainer]]:
    """A training's arguments, metrics on held-out rows and class of Trainer, no weights loaded."""
    rows, plan = prepared.rows, prepared.plan
    most = max(len(row["candidates"]) for row in rows.rows) if rows.form == "choice" else 1
    whole = plan.trainable == EVERYTHING
    again = recomputes(prepared.recipe, prepared.config, sequences=most, whole=whole)
    args = training_arguments(prepared.recipe, prepared.plan.arguments, quiet=quiet, again=again)
    config = prepared.plan.config
    has_map = any(isinstance(part, LmamConfig) for part in getattr(config, "parts", [config]))
    if prepared.recipe.packing and args.torch_compile and has_map:
        raise ValueError(
            "packing=true torch_compile=true: in a compiled model a map cannot see where the rows "
            "of a sequence begin; leave one of the two out"
        )
    writes = writes_texts(prepared.rows, prepared.kind)
    measured = held_out_metrics(args, prepared.held_out, writes=writes)
    return args, measured, trainer_class(prepared, args)


def _encode(
    prepared: PreparedTraining, base: Base, scale: ScoreScale | None
) -> tuple[Dataset, Dataset | None, Collator]:
    tokenizer, kind = prepared.tokenizer, prepared.kind
    fitted = fit_context(prepared.recipe, base.model.config)

    def encoded(rows: Rows) -> Dataset:
        learned = rows if scale is None else scale.learned(rows)
        return encode_rows(learned, fitted, tokenizer, kind, reads=prepared.context)

    dataset = encoded(prepared.rows)
    held_out = None if prepared.held_out is None else encoded(prepared.held_out)
    if not fitted.packing:
        return dataset, held_out, collator(prepared.rows.form, tokenizer, base.model)
    packed = None if held_out is None else pack(held_out, fitted.max_length)
    padded = partial(packed_batch, pad=tokenizer.pad_token_id)
    return pack(dataset, fitted.max_length), packed, padded


def _batches(
    dataset: Dataset, pad: Collator, args: TrainingArguments
) -> DataLoader[dict[str, Any]]:
    """Shuffled batches for a method's preparation; the training's random numbers do not change."""
    generator = torch.Generator().manual_seed(args.seed)
    plain, size = getattr(pad, "plain", pad), args.per_device_train_batch_size
    return DataLoader(
        dataset,
        size,
        shuffle=True,
        generator=generator,
        collate_fn=plain,  # type: ignore[arg-type]
    )


def trainer_class(
    prepared: PreparedTraining, args: Seq2SeqTrainingArguments
) -> Callable[..., RunTrainer]:
    """The class of Trainer for the rows, with the arguments that only this class takes."""
    recipe, rows, tokenizer = prepared.recipe, prepared.rows, prepared.tokenizer
    smoothing = recipe.training.get("label_smoothing_factor")
    if smoothing and rows.form in ("choice", "labels", "score"):
        raise ValueError(
            f"training.label_smoothing_factor={smoothing} is for classes and texts, and {rows.path}"
            f" has {rows.form} rows: leave it out"
        )
    if args.push_to_hub and rows.form == "score":
        raise ValueError(
            "training.push_to_hub=true uploads checkpoints, which give scores as standard "
            "deviations from their mean: leave it out, and upload an export of the finished run"
        )
    if not writes_texts(rows, prepared.kind):
        return ChoiceTrainer if rows.form == "choice" else RunTrainer
    generation = protocol_settings(recipe, rows.protocol, prepared.most_answer_tokens)
    metrics = None
    if args.predict_with_generate and prepared.held_out is not None:
        refuse_long(generation["max_new_tokens"], prepared.context)
        metrics = scorer(prepared.held_out, tokenizer)
    generation |= language_settings(tokenizer)
    return partial(WritingTrainer, generation=generation, compute_metrics=metrics)


def _refuse_no_batch(args: TrainingArguments, rows: int) -> None:
    """Refuse to train on fewer rows than a batch where a part of one is dropped."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batch:
        raise ValueError(
            f"training.dataloader_drop_last=true leaves no batch of {rows} rows, where one takes "
            f"{batch}: leave it out, or take a smaller per_device_train_batch_size"
        )


def _give_maps_their_rate(trainer: Trainer, model: PeftModel | PreTrainedModel) -> None:
    """Move the maps' factors to a separate parameter group if ``map_learning_rate`` is set."""
    configs = [part for part in map_configs(model) if part.map_learning_rate is not None]
    if not configs:
        return
    rate = configs[0].rate_beside(trainer.args.learning_rate)
    maps = {id(p) for name, p in trainer.model.named_parameters() if ".lmam." in name}
    optimizer = trainer.create_optimizer()
    moved = []
    for group in optimizer.param_groups:
        moved += [p for p in group["params"] if id(p) in maps]
        group["params"] = [p for p in group["params"] if id(p) not in maps]
    optimizer.add_param_group(
        {"params": moved, "lr": rate, "weight_decay": trainer.args.weight_decay}
    )
