"""The Trainer of a run: its arguments, its class, and the learning rate that maps have."""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from lorada.processes import without_accelerator
from lorada.run.choices import ChoiceTrainer
from lorada.run.data import Rows, protocol_settings
from lorada.run.effect_size import EffectSize
from lorada.run.encoding import lengths_of
from lorada.run.recipe import Recipe
from lorada.run.sampler import LikeLengths
from lorada.run.seq2seq import WritingTrainer, beginning, refuse_long, scorer, without_writing
from lorada.tuners import LmamConfig, LoradaConfig

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.03,
    "logging_steps": 10,
    "save_steps": 100,
    "save_total_limit": 2,
    "remove_unused_columns": False,
    "logging_nan_inf_filter": False,
    "dataloader_pin_memory": torch.cuda.is_available(),
}


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn whatever a library makes of a bad setting into one line about the setting."""
    try:
        yield
    except Exception as error:  # of whatever kind: a hub that is out of reach has kinds of its own
        text = str(error).strip() or type(error).__name__
        raise ValueError(f"{what}: {text.splitlines()[0]}") from error


def training_arguments(
    recipe: Recipe,
    method: dict[str, Any] | None = None,
    *,
    quiet: bool = False,
    writes: bool = False,
) -> TrainingArguments:
    """The TrainingArguments of a recipe, over those of its method and our defaults.

    Args:
        recipe: the recipe.
        method: what its method overrides.
        quiet: no progress bar.
        writes: whether it trains an encoder–decoder to write texts.

    Raises:
        ValueError: for a value that TrainingArguments refuses.
    """
    report = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    if not report and "report_to" not in recipe.training:
        logger.warning("no TensorBoard logs: pip install 'lorada[logging]'")
    settings = {**DEFAULTS, "report_to": report, **(method or {}), **recipe.training}
    settings["use_cpu"] = settings.get("use_cpu") or without_accelerator()
    made = Seq2SeqTrainingArguments if writes else TrainingArguments
    if not writes:
        settings = without_writing(settings)
    with one_line("TrainingArguments"):
        # A copy: of what it is given it changes fsdp_config.
        args = made(output_dir=recipe.output, **deepcopy({"disable_tqdm": quiet, **settings}))
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:  # which the Trainer finds out by dividing by it
            raise ValueError(f"training.{name}={getattr(args, name)} must be at least 1")
    if args.max_steps == 0:
        raise ValueError("training.max_steps=0 must be at least 1, or left out for whole epochs")
    return args


def trainer_class(
    recipe: Recipe,
    rows: Rows,
    measured: Rows | None,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    *,
    writes: bool,
) -> Callable[..., Trainer]:
    """The class of Trainer for a form of rows, with what it needs beside other classes."""
    if not writes:
        return ChoiceTrainer if rows.form == "choice" else Trainer
    settings = protocol_settings(recipe, rows.protocol)
    if measured is not None:
        refuse_long(settings["max_new_tokens"], context)
    return partial(
        WritingTrainer,
        generation={**settings, **beginning(tokenizer)},
        compute_metrics=None if measured is None else scorer(measured, tokenizer),
    )


def make_trainer(
    model: PeftModel | PreTrainedModel,
    args: TrainingArguments,
    datasets: tuple[Dataset, Dataset | None],
    pad: Callable[..., Any],
    callbacks: list[Any],
    make: Callable[..., Trainer],
) -> Trainer:
    """A Trainer of a class that ``trainer_class`` gave, its callbacks in the order they need."""
    trainer = make(
        model=model,
        args=args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        data_collator=pad,
        callbacks=callbacks,
    )
    if args.train_sampling_strategy == "group_by_length":
        size = args.train_batch_size * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        sampler = LikeLengths(lengths_of(datasets[0]), size, seed)
        trainer._get_train_sampler = lambda dataset=None: sampler
        # Held-out rows stay in their own order, in which answers are compared with them.
        alone = args.world_size <= 1
        trainer._get_eval_sampler = lambda rows: SequentialSampler(rows) if alone else None
    # EffectSize adds to a log line, so it must see the line before any logger does.
    listeners = trainer.callback_handler.callbacks
    listeners.sort(key=lambda callback: not isinstance(callback, EffectSize))
    return trainer


def give_maps_their_rate(trainer: Trainer, model: PeftModel | PreTrainedModel) -> None:
    """Move the maps' factors to a parameter group of their own if they have their own rate."""
    config = model.peft_config["default"] if isinstance(model, PeftModel) else None
    parts = config.parts if isinstance(config, LoradaConfig) else []
    rates = [
        p.map_learning_rate for p in parts if isinstance(p, LmamConfig) and p.map_learning_rate
    ]
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
