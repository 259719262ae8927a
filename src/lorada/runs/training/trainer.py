"""The Trainer of a run: its arguments, its class, and the learning rate that maps have."""

import importlib.util
import logging
import math
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
    get_scheduler,
)

from lorada.runs.data.dataset import lengths_of
from lorada.runs.data.length_sampler import LengthGroupedSampler
from lorada.runs.data.rows import Rows, protocol_settings
from lorada.runs.recipe import Recipe
from lorada.runs.training.callbacks import MeasureHeldOut
from lorada.runs.training.choice_trainer import ChoiceTrainer
from lorada.runs.training.effect_size import EffectSize
from lorada.runs.training.mean_loss import MeanTrainer
from lorada.runs.training.seq2seq_trainer import (
    WritingTrainer,
    beginning,
    refuse_long,
    scorer,
    without_writing,
)
from lorada.support.processes import without_accelerator
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


class _Discreet:
    """Arguments whose token stays out of ``training_args.bin``, which goes where the weights go."""

    stock: type[TrainingArguments]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as transformers' own class, for whoever opens the file, and without the token."""
        plain = object.__new__(self.stock)
        vars(plain).update(vars(self), hub_token=None)
        return plain.__reduce_ex__(0)  # a higher protocol wants the class of what is pickled


class _Arguments(_Discreet, TrainingArguments):  # type: ignore[misc]
    stock = TrainingArguments


class _WritingArguments(_Discreet, Seq2SeqTrainingArguments):  # type: ignore[misc]
    stock = Seq2SeqTrainingArguments


def measuring(args: TrainingArguments, recipe: Recipe) -> list[MeasureHeldOut]:
    """What has held-out rows measured while training, the last step's weights among them.

    Rows that were kept back are, unless the recipe says no; an ``eval_data`` where it says so.
    """
    if args.eval_strategy != "no":
        return [MeasureHeldOut()]
    if recipe.dev_rows and "eval_strategy" in recipe.training:
        logger.warning(
            "dev_rows=%d are kept back and not measured: training.eval_strategy=no", recipe.dev_rows
        )
        return []
    return [MeasureHeldOut()] if recipe.dev_rows else []


def _refuse_no_batch(args: TrainingArguments, rows: int) -> None:
    """Refuse encoded rows to learn from that are fewer than a batch, where one has to be full."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batch:
        raise ValueError(
            f"training.dataloader_drop_last=true leaves no batch of {rows} rows, where one takes "
            f"{batch}: leave it out, or take a smaller per_device_train_batch_size"
        )


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
    made = _WritingArguments if writes else _Arguments
    if not writes:
        settings = without_writing(settings)
    with one_line("TrainingArguments"):
        # A copy: of what it is given it changes fsdp_config.
        args: TrainingArguments = made(
            output_dir=recipe.output, **deepcopy({"disable_tqdm": quiet, **settings})
        )
        _check_scheduler(args)
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:  # which the Trainer finds out by dividing by it
            raise ValueError(f"training.{name}={getattr(args, name)} must be at least 1")
    if args.max_steps == 0:
        raise ValueError("training.max_steps=0 must be at least 1, or left out for whole epochs")
    if args.max_steps < 0 and not 0 < args.num_train_epochs < math.inf:
        raise ValueError(
            f"training.num_train_epochs={args.num_train_epochs:g} is no number of epochs to train: "
            "take one above 0, or max_steps"
        )
    return args


def _check_scheduler(args: TrainingArguments) -> None:
    """Make the schedule once on nothing, so that an argument it lacks is known before training."""
    chosen = args.lr_scheduler_kwargs
    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if not chosen:
        return
    if name in ("constant", "constant_with_warmup"):
        raise ValueError(f"lr_scheduler_kwargs={chosen!r}: {name} has no arguments: leave them out")
    try:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
        schedule = get_scheduler(name, optimizer, 0, 100, dict(chosen))
        for rate in getattr(schedule, "lr_lambdas", []):
            for step in range(101):
                rate(step)
    except Exception as error:  # each schedule has its own kinds
        raise ValueError(f"lr_scheduler_kwargs={chosen!r} of {name}: {error}") from error


def trainer_class(
    recipe: Recipe,
    rows: Rows,
    measured: Rows | None,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
    *,
    writes: bool,
) -> Callable[..., Trainer]:
    """The class of Trainer for a form of rows, with what it needs beside other classes.

    Raises:
        ValueError: for smoothed labels of rows that have none, or more tokens than there is room.
    """
    smoothing = recipe.training.get("label_smoothing_factor")
    if smoothing and rows.form in ("choice", "score"):
        raise ValueError(
            f"training.label_smoothing_factor={smoothing} is for classes and texts, and {rows.path}"
            f" has {rows.form} rows: leave it out"
        )
    if not writes:
        return ChoiceTrainer if rows.form == "choice" else MeanTrainer
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
    """A Trainer of a class that ``trainer_class`` gave, its callbacks in the order they need.

    Raises:
        ValueError: if there are fewer rows than a batch, and none that is not full may be taken.
    """
    _refuse_no_batch(args, len(datasets[0]))
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
        sampler = LengthGroupedSampler(lengths_of(datasets[0]), size, seed)
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
