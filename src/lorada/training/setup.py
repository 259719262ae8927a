"""From what was read to a Trainer that is ready to start: ``set_up``, step by step.

    settings → base model → data sets → method → adapted model → callbacks → Trainer

Each step takes what those before it return. The order matters: random numbers are drawn for a task
head when the base is loaded and for the adapter when it is placed, so both come after the seed.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from lorada.data.answer_length import generation_of
from lorada.data.batches import collator
from lorada.data.rows.rows import Rows
from lorada.data.rows.training_rows import head_of
from lorada.data.tokenize import encode_rows, fit_context
from lorada.methods.build import Plan
from lorada.methods.head_modules import narrow_trained, widen_trained
from lorada.methods.lora_matrices import give_b_its_rate
from lorada.methods.method import EVERYTHING
from lorada.runs.checkpoints import STATE_FILE
from lorada.runs.recipe import Recipe
from lorada.training.arguments import (
    argument_errors,
    held_out_metrics,
    loading_device,
    training_arguments,
)
from lorada.training.callbacks import RelativeNorm, RunCallback, StepTimer
from lorada.training.inputs import PreparedTraining
from lorada.training.memory import needs_recomputing
from lorada.training.models.adapters import Base, adapt, load_base
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

Collator = Callable[..., Any]
TrainerClass = Callable[..., RunTrainer]


@dataclass(frozen=True)
class TrainerSettings:
    """What a Trainer is told, all of it known before weights are loaded."""

    args: Seq2SeqTrainingArguments
    metric_names: list[str]  # of what is measured on held-out rows, besides the loss
    trainer_class: TrainerClass  # with the arguments that only this class takes


@dataclass(frozen=True)
class EncodedRows:
    """The rows as the model reads them."""

    train: Dataset
    held_out: Dataset | None
    collator: Collator  # makes a padded batch of several


@dataclass(frozen=True)
class Setup:
    """A training that is ready to start; nothing is written yet."""

    prepared: PreparedTraining
    base: Base
    model: PeftModel | PreTrainedModel
    trainer: RunTrainer
    metric_names: list[str]  # of what is measured on held-out rows, besides the loss
    score_scale: ScoreScale | None  # how scores are learned; None for rows of another form
    step_timer: StepTimer  # knows the time of a step, once the model is trained


def set_up(
    prepared: PreparedTraining, first_callbacks: Sequence[TrainerCallback], *, quiet: bool = False
) -> Setup:
    """Load the model, place the method on it and make the Trainer.

    Args:
        prepared: what was read of the base model and the rows.
        first_callbacks: callbacks of the caller, which see each event before those of the run.
        quiet: no progress bar, and nothing printed of what is logged.

    Raises:
        ValueError: for what only the model or the encoded rows show to be impossible, such as rows
            that fill no batch, or packed rows that see each other in this model.
    """
    recipe = prepared.recipe
    settings = trainer_settings(prepared, quiet=quiet)
    set_seed(settings.args.seed)  # before anything is drawn at random: see the head of this file
    base = load_base(prepared, head_of(prepared.rows), loading_device(settings.args))
    score_scale = _score_scale(prepared, base)
    encoded = _encode(prepared, base, score_scale)
    plan = _finish_plan(prepared, base, encoded, settings.args)
    model = adapt(base, plan, recipe)
    if score_scale is not None:  # the adapter has given the head another name
        score_scale = score_scale.begin(model, base.drawn)
    _set_trained_dtype(model, recipe)
    step_timer = StepTimer()
    own_callbacks = [step_timer, *_own_callbacks(recipe, settings.args)]
    callbacks = [*first_callbacks, *plan.callbacks, *own_callbacks]
    trainer = _make_trainer(settings, model, encoded, callbacks, quiet=quiet)
    _set_optimizer(trainer, model, plan)
    if recipe.packing:
        _refuse_mixed_rows(trainer, model, measures=encoded.held_out is not None)
    return Setup(prepared, base, model, trainer, settings.metric_names, score_scale, step_timer)


def trainer_settings(prepared: PreparedTraining, *, quiet: bool = False) -> TrainerSettings:
    """Choose the Trainer's class and arguments, and check them; no weights are loaded.

    Raises:
        ValueError: for TrainingArguments that transformers, the rows or the device do not allow,
            and for packing and ``torch_compile`` together with a map.
    """
    recipe, plan, rows = prepared.recipe, prepared.plan, prepared.rows
    sequences_per_row = 1
    if rows.form == "choice":  # each candidate is read after the prompt, in a sequence of its own
        sequences_per_row = max(len(row["candidates"]) for row in rows.rows)
    recompute = needs_recomputing(
        recipe,
        prepared.config,
        sequences_per_row=sequences_per_row,
        trains_everything=plan.trainable == EVERYTHING,
    )
    args = training_arguments(recipe, plan.arguments, quiet=quiet, recompute=recompute)
    if recipe.packing and args.torch_compile and _has_map(plan):
        raise ValueError(
            "packing=true torch_compile=true: in a compiled model a map cannot see where the rows "
            "of a sequence begin; leave one of the two out"
        )
    writes = writes_texts(rows, prepared.kind)
    metric_names = held_out_metrics(args, prepared.held_out, writes=writes)
    return TrainerSettings(args, metric_names, trainer_class(prepared, args))


def _has_map(plan: Plan) -> bool:
    """Whether the adapter of a plan has a map among its parts."""
    parts = getattr(plan.config, "parts", [plan.config])
    return any(isinstance(part, LmamConfig) for part in parts)


def _score_scale(prepared: PreparedTraining, base: Base) -> ScoreScale | None:
    """How scores are learned on this base; None for rows of another form.

    A checkpoint to start from is refused: its head learns numbers in another unit than the rows.
    """
    score_scale = scale_of(prepared.rows, base.model)
    start_adapter = prepared.recipe.from_adapter
    if score_scale is None or start_adapter is None:
        return score_scale
    # Only at its end a run puts its head into the unit of the rows.
    if Path(start_adapter, STATE_FILE).is_file():
        raise ValueError(f"{start_adapter} is a checkpoint, whose head learns other numbers than "
                         "the rows have: start from the adapter of the finished run")  # fmt: skip
    return score_scale


def _encode(prepared: PreparedTraining, base: Base, score_scale: ScoreScale | None) -> EncodedRows:
    """The rows as tokens and labels; with ``packing``, several rows in a sequence."""
    recipe = fit_context(prepared.recipe, base.model.config)
    tokenizer = prepared.tokenizer

    def encode(rows: Rows) -> Dataset:
        """Encode rows, and pack them if the recipe says so."""
        if score_scale is not None:
            rows = score_scale.learned(rows)
        encoded = encode_rows(rows, recipe, tokenizer, prepared.kind, reads=prepared.context)
        return pack(encoded, recipe.max_length) if recipe.packing else encoded

    train = encode(prepared.rows)
    held_out = None
    if prepared.held_out is not None:
        held_out = encode(prepared.held_out)
    if recipe.packing:
        batch_collator = partial(packed_batch, pad=tokenizer.pad_token_id)
    else:
        batch_collator = collator(prepared.rows.form, tokenizer, base.model)
    return EncodedRows(train, held_out, batch_collator)


def _finish_plan(
    prepared: PreparedTraining, base: Base, encoded: EncodedRows, args: TrainingArguments
) -> Plan:
    """The plan of the method, complete: some methods look at the model and the data first.

    SHiRA with SNIP chooses the weights to train by their gradients on a few batches.
    """
    plan = prepared.plan
    if plan.prepare is None:
        return plan
    batches = _preparation_batches(encoded, args)
    # The gradients have to be those of the model as it will train, with its pooling.
    with attached(base.model, prepared.recipe.pooling):
        config = plan.prepare(base.model.to(args.device), batches)
    return replace(plan, config=config)


def _preparation_batches(
    encoded: EncodedRows, args: TrainingArguments
) -> DataLoader[dict[str, Any]]:
    """Shuffled batches for a method's preparation; the training's random numbers do not change."""
    return DataLoader(
        encoded.train,
        args.per_device_train_batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(args.seed),
        collate_fn=encoded.collator,
    )


def _set_trained_dtype(model: PeftModel | PreTrainedModel, recipe: Recipe) -> None:
    """Put what trains into float32 under a mixed dtype; elsewhere warn if it stays in 16 bits."""
    if recipe.mixed:
        widen_trained(model)
        return
    if narrow_trained(model):
        logger.warning("dtype=%s: what trains in the base loses small updates, as it is in 16 bits "
                       "too: dtype=mixed keeps it in float32", recipe.dtype)  # fmt: skip


def _own_callbacks(recipe: Recipe, args: TrainingArguments) -> list[TrainerCallback]:
    """The callbacks that the recipe asks for, and that of every run."""
    callbacks: list[TrainerCallback] = []
    if recipe.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping))
    # dev_rows are measured unless the recipe says no; eval_data only if it says so.
    measures_dev_rows = recipe.dev_rows > 0 and "eval_strategy" not in recipe.training
    measures = measures_dev_rows or args.eval_strategy != "no"
    callbacks.append(RunCallback(measures=measures))
    return callbacks


def _make_trainer(
    settings: TrainerSettings,
    model: PeftModel | PreTrainedModel,
    encoded: EncodedRows,
    callbacks: list[TrainerCallback],
    *,
    quiet: bool,
) -> RunTrainer:
    """Make the Trainer, and put what completes a log line before what logs it.

    Raises:
        ValueError: if the rows do not make a single batch, or the Trainer does not take its
            arguments.
    """
    with argument_errors():
        _refuse_no_batch(settings.args, len(encoded.train))
        trainer = settings.trainer_class(
            model,
            settings.args,
            encoded.collator,
            encoded.train,
            encoded.held_out,
            callbacks=callbacks,
        )
        if quiet:  # what it would print is logged too
            trainer.remove_callback(PrinterCallback)
        # RelativeNorm adds to a log line, so it must see the line before any logger does.
        listeners = trainer.callback_handler.callbacks
        listeners.sort(key=lambda callback: not isinstance(callback, RelativeNorm))
    return trainer


def _refuse_no_batch(args: TrainingArguments, rows: int) -> None:
    """Refuse to train on fewer rows than a batch where a part of one is dropped."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batch:
        raise ValueError(
            f"training.dataloader_drop_last=true leaves no batch of {rows} rows, where one takes "
            f"{batch}: leave it out, or take a smaller per_device_train_batch_size"
        )


def _set_optimizer(trainer: RunTrainer, model: PeftModel | PreTrainedModel, plan: Plan) -> None:
    """Give the Trainer the optimizer of the method, and maps and LoRA's B rates of their own.

    Raises:
        ValueError: if the optimizer cannot be made from the TrainingArguments.
    """
    with argument_errors():
        # ``create_optimizer`` makes an optimizer only if the Trainer has none yet, so it may be
        # called several times, and the training uses the one that is changed here.
        if plan.optimizer is not None:
            trainer.optimizer = plan.optimizer(model, trainer.args)
        if plan.rate_ratio is not None:
            give_b_its_rate(trainer.create_optimizer(), trainer.model, plan.rate_ratio)
        _give_maps_their_rate(trainer, model)


def _give_maps_their_rate(trainer: Trainer, model: PeftModel | PreTrainedModel) -> None:
    """Move the maps' factors to a separate parameter group if ``map_learning_rate`` is set.

    A parameter must be in one group only, so they leave the groups that they are in.
    """
    configs = [part for part in map_configs(model) if part.map_learning_rate is not None]
    if not configs:
        return
    map_rate = configs[0].rate_beside(trainer.args.learning_rate)
    map_ids = {id(p) for name, p in trainer.model.named_parameters() if ".lmam." in name}
    optimizer = trainer.create_optimizer()
    map_parameters = []
    for group in optimizer.param_groups:
        map_parameters += [p for p in group["params"] if id(p) in map_ids]
        group["params"] = [p for p in group["params"] if id(p) not in map_ids]
    optimizer.add_param_group(
        {"params": map_parameters, "lr": map_rate, "weight_decay": trainer.args.weight_decay}
    )


def _refuse_mixed_rows(
    trainer: RunTrainer, model: PeftModel | PreTrainedModel, *, measures: bool
) -> None:
    """Refuse packing on a model in which rows of a sequence see each other.

    It is tried out with the batch sizes of the training, as kernels choose their way by them.
    """
    args = trainer.args
    batch_size = max(args.train_batch_size, args.eval_batch_size if measures else 1)
    with trainer.accelerator.autocast():  # as in its steps
        refuse_mixing(model, batch_size)


def trainer_class(prepared: PreparedTraining, args: Seq2SeqTrainingArguments) -> TrainerClass:
    """The class of Trainer for the rows, with the arguments that only this class takes.

    Raises:
        ValueError: for TrainingArguments that rows of this form cannot be trained with.
    """
    rows = prepared.rows
    _refuse_for_form(prepared, args)
    if writes_texts(rows, prepared.kind):
        return _writing_trainer(prepared, args)
    if rows.form == "choice":
        return ChoiceTrainer
    return RunTrainer


def _refuse_for_form(prepared: PreparedTraining, args: Seq2SeqTrainingArguments) -> None:
    """Refuse TrainingArguments that rows of this form cannot be trained with."""
    rows = prepared.rows
    smoothing = prepared.recipe.training.get("label_smoothing_factor")
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


def _writing_trainer(prepared: PreparedTraining, args: Seq2SeqTrainingArguments) -> TrainerClass:
    """The Trainer of an encoder–decoder, told how it writes and how its texts are scored.

    Raises:
        ValueError: if it is to write more tokens than it has positions for.
    """
    recipe, tokenizer = prepared.recipe, prepared.tokenizer
    generation = generation_of(recipe, prepared.rows.protocol, prepared.max_answer_tokens)
    compute_metrics = None
    if args.predict_with_generate and prepared.held_out is not None:
        refuse_long(generation["max_new_tokens"], prepared.context)
        compute_metrics = scorer(prepared.held_out, tokenizer)
    generation |= language_settings(tokenizer)
    return partial(WritingTrainer, generation=generation, compute_metrics=compute_metrics)
