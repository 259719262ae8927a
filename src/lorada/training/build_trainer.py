"""Sets up a training: loads the weights, encodes the rows, places the method, makes the Trainer."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from lorada.data.dataset import collator, encode_rows, fit_context
from lorada.data.task_rows import Rows, head_size, protocol_settings
from lorada.methods.task_head import narrow_trained, widen_trained
from lorada.runs.recipe import Recipe
from lorada.support.processes import process_count
from lorada.training.arguments import argument_errors, held_out_metrics, training_arguments
from lorada.training.callbacks import RunCallback
from lorada.training.device_settings import loading_device
from lorada.training.inputs import PreparedTraining
from lorada.training.models.adapters import Base, adapt, load_base, saved_names
from lorada.training.models.loading import language_settings, refuse_long
from lorada.training.packing import PackedCollator, pack, refuse_mixing
from lorada.training.relative_norm import RelativeNorm
from lorada.training.trainer import (
    ChoiceTrainer,
    RunTrainer,
    ScoreScale,
    WritingTrainer,
    scale_of,
    scorer,
    writes_texts,
)
from lorada.training.training_memory import recomputes
from lorada.tuners.lmam import LmamConfig, map_configs
from lorada.tuners.pooling import attached

logger = logging.getLogger(__name__)

Collator = Callable[..., Any]


@dataclass(frozen=True)
class Setup:
    """A training that is ready to start; nothing is written yet.

    Attributes:
        base: the model before the method was placed on it.
        model: the model that trains.
        trainer: its Trainer.
        measured: the names of the metrics on held-out rows, besides the loss.
        saved: the names of the parameters that are saved, as ``saved_names`` says.
        scale: how scores are learned; None for other rows.
    """

    base: Base
    model: PeftModel | PreTrainedModel
    trainer: Trainer
    measured: list[str]
    saved: frozenset[str] | None
    scale: ScoreScale | None


def set_up(
    prepared: PreparedTraining, watchers: list[TrainerCallback], *, quiet: bool = False
) -> Setup:
    """Make the Trainer of a training; ``watchers`` are the caller's callbacks, which come first."""
    recipe, plan, held_out = prepared.recipe, prepared.plan, prepared.held_out
    args, measured, make = checked_arguments(prepared, quiet=quiet)
    set_seed(args.seed)
    base = load_base(prepared, head_size(prepared.rows), loading_device(args))
    scale = scale_of(prepared.rows, base.model)
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
    saved = saved_names(model, base, plan)
    if recipe.packing:
        refuse_mixing(model, max(args.train_batch_size, args.eval_batch_size if held_out else 1))
    make = partial(make, saved=saved, scale=scale)
    patience = recipe.early_stopping
    stopping = [] if patience is None else [EarlyStoppingCallback(patience)]
    run = RunCallback(measures=_measures(args, recipe))
    callbacks = [*watchers, *plan.callbacks, *stopping, run]
    with argument_errors():
        trainer = make_trainer(model, args, (train_rows, eval_rows), pad, callbacks, make)
        if plan.optimizer is not None:
            trainer.optimizer = plan.optimizer(model, args)
        _give_maps_their_rate(trainer, model)
    _refuse_unshared(trainer)
    return Setup(base, model, trainer, measured, saved, scale)


def checked_arguments(
    prepared: PreparedTraining, *, quiet: bool = False
) -> tuple[TrainingArguments, list[str], Callable[..., Trainer]]:
    """A training's arguments, metrics on held-out rows and class of Trainer, no weights loaded."""
    args = training_arguments(
        prepared.recipe,
        prepared.plan.arguments,
        quiet=quiet,
        writes=writes_texts(prepared.rows, prepared.kind),
        again=recomputes(prepared),
    )
    config = prepared.plan.config
    has_map = any(isinstance(part, LmamConfig) for part in getattr(config, "parts", [config]))
    if prepared.recipe.packing and args.torch_compile and has_map:
        raise ValueError(
            "packing=true torch_compile=true: in a compiled model a map cannot see where the rows "
            "of a sequence begin; leave one of the two out"
        )
    measured = held_out_metrics(args, prepared.held_out)
    return args, measured, trainer_class(prepared, args)


def _encode(
    prepared: PreparedTraining, base: Base, scale: ScoreScale | None
) -> tuple[Dataset, Dataset | None, Collator]:
    """Token ids of training and held-out rows, and their collator."""
    tokenizer, kind = prepared.tokenizer, prepared.kind
    fitted = fit_context(prepared.recipe, base.model.config)

    def encoded(rows: Rows) -> Dataset:
        learned = rows if scale is None else scale.learned(rows)
        return encode_rows(learned, fitted, tokenizer, kind)

    dataset = encoded(prepared.rows)
    held_out = None if prepared.held_out is None else encoded(prepared.held_out)
    if not fitted.packing:
        return dataset, held_out, collator(prepared.rows.form, tokenizer, base.model)
    packed = None if held_out is None else pack(held_out, fitted.max_length)
    return pack(dataset, fitted.max_length), packed, PackedCollator(tokenizer.pad_token_id)


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


def _measures(args: TrainingArguments, recipe: Recipe) -> bool:
    """Whether held-out rows are measured while training.

    ``dev_rows`` are measured unless the recipe says no; ``eval_data`` only if the recipe says so.
    """
    if args.eval_strategy != "no" or not recipe.dev_rows:
        return bool(args.eval_strategy != "no")
    if "eval_strategy" in recipe.training:
        logger.warning(
            "dev_rows=%d are kept back and not measured: training.eval_strategy=no", recipe.dev_rows
        )
        return False
    return True


def trainer_class(prepared: PreparedTraining, args: TrainingArguments) -> Callable[..., Trainer]:
    """The class of Trainer for the rows, with the arguments that only this class takes."""
    recipe, rows, tokenizer = prepared.recipe, prepared.rows, prepared.tokenizer
    smoothing = recipe.training.get("label_smoothing_factor")
    if smoothing and rows.form in ("choice", "score"):
        raise ValueError(
            f"training.label_smoothing_factor={smoothing} is for classes and texts, and {rows.path}"
            f" has {rows.form} rows: leave it out"
        )
    if not isinstance(args, Seq2SeqTrainingArguments):
        return ChoiceTrainer if rows.form == "choice" else RunTrainer
    generation = protocol_settings(recipe, rows.protocol, prepared.most_answer_tokens)
    metrics = None
    if args.predict_with_generate and prepared.held_out is not None:
        refuse_long(generation["max_new_tokens"], prepared.context)
        metrics = scorer(prepared.held_out, tokenizer)
    generation |= language_settings(tokenizer)
    return partial(WritingTrainer, generation=generation, compute_metrics=metrics)


def make_trainer(
    model: PeftModel | PreTrainedModel,
    args: TrainingArguments,
    datasets: tuple[Dataset, Dataset | None],
    pad: Collator,
    callbacks: list[Any],
    make: Callable[..., Trainer],
) -> Trainer:
    """A Trainer; ``make`` is what ``trainer_class`` returned."""
    batch, rows = args.train_batch_size * args.world_size, len(datasets[0])
    if args.dataloader_drop_last and rows < batch:
        raise ValueError(
            f"training.dataloader_drop_last=true leaves no batch of {rows} rows, where one takes "
            f"{batch}: leave it out, or take a smaller per_device_train_batch_size"
        )
    trainer = make(
        model=model,
        args=args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        data_collator=pad,
        callbacks=callbacks,
    )
    # RelativeNorm adds to a log line, so it must see the line before any logger does.
    listeners = trainer.callback_handler.callbacks
    listeners.sort(key=lambda callback: not isinstance(callback, RelativeNorm))
    return trainer


def _give_maps_their_rate(trainer: Trainer, model: PeftModel | PreTrainedModel) -> None:
    """Move the maps' factors to a separate parameter group if ``map_learning_rate`` is set."""
    rates = [part.map_learning_rate for part in map_configs(model) if part.map_learning_rate]
    if not rates:
        return
    maps = {id(p) for name, p in trainer.model.named_parameters() if ".lmam." in name}
    optimizer = trainer.create_optimizer()
    moved = []
    for group in optimizer.param_groups:
        moved += [p for p in group["params"] if id(p) in maps]
        group["params"] = [p for p in group["params"] if id(p) not in maps]
    if not any(group["params"] for group in optimizer.param_groups):
        logger.warning(
            "only maps train here, at lmam.map_learning_rate=%g; learning_rate is not used",
            rates[0],
        )
    optimizer.add_param_group(
        {"params": moved, "lr": rates[0], "weight_decay": trainer.args.weight_decay}
    )


def _refuse_unshared(trainer: Trainer) -> None:
    """Refuse processes that would each hold the whole model despite FSDP."""
    args = trainer.args
    shared = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if shared and process_count() > 1 and not trainer.is_fsdp_enabled:
        raise ValueError(
            f"training.fsdp={args.fsdp or 'true'} shards a model over accelerators, and there "
            "are none here: leave it out"
        )
