"""The TrainingArguments of a run: our defaults, then the method's settings, then the recipe's."""

import importlib.util
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainingArguments, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from lorada.data.rows import answer_of
from lorada.data.task_rows import Rows
from lorada.runs.recipe import Recipe
from lorada.support.errors import how_to_install
from lorada.support.processes import only_cpu
from lorada.training.device_settings import device_settings, take_one_device

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
    "dataloader_pin_memory": False,
}
# Activations are computed again; the reentrant kind would need an input that has a gradient.
CHECKPOINTING: dict[str, Any] = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}


@contextmanager
def argument_errors() -> Iterator[None]:
    """Turn any error about TrainingArguments into a ``ValueError`` of one line."""
    try:
        yield
    except Exception as error:  # of any class: the hub's client has its own
        text = str(error).strip() or type(error).__name__
        raise ValueError(f"TrainingArguments: {text.splitlines()[0]}") from error


def training_arguments(
    recipe: Recipe,
    method: dict[str, Any] | None = None,
    *,
    quiet: bool = False,
    writes: bool = False,
    again: bool = False,
) -> TrainingArguments:
    """The recipe's settings, over those of its method, over our defaults for the device.

    If an encoder–decoder learns to write (``writes``), they are ``Seq2SeqTrainingArguments``. With
    ``again``, activations are computed again in the backward pass.
    """
    report = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    if not report and "report_to" not in recipe.training:
        logger.warning("no TensorBoard logs: %s", how_to_install("logging"))
    ours = {**DEFAULTS, **device_settings(recipe), "report_to": report}
    settings = {**ours, **(method or {}), **recipe.training}
    if recipe.early_stopping is not None:
        settings |= _for_early_stopping(recipe, settings)
    if again:
        settings |= CHECKPOINTING
    if recipe.pooling is not None:  # the layers that it passes over get no gradient
        settings.setdefault("ddp_find_unused_parameters", True)
    by_accelerate = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    if by_accelerate or settings.get("deepspeed"):
        raise ValueError(
            "training under DeepSpeed is not tested: use training.fsdp=true, or leave out "
            "training.deepspeed and accelerate's settings of DeepSpeed"
        )
    settings["use_cpu"] = settings.get("use_cpu") or only_cpu()
    made = Seq2SeqTrainingArguments if writes else TrainingArguments
    if not writes:
        settings = _without_seq2seq(settings)
    with argument_errors():
        # A copy, because transformers changes the fsdp_config that it is given.
        args: TrainingArguments = made(
            output_dir=recipe.output, **deepcopy({"disable_tqdm": quiet, **settings})
        )
        take_one_device(args, recipe.output)
        _tell_compiler_of_tf32()
        _try_out(args)
    if recipe.mixed and not (args.bf16 or args.fp16):
        raise ValueError(
            f"dtype={recipe.dtype} trains under autocast: leave out training.bf16=false and "
            "training.fp16=false"
        )
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:  # the Trainer would divide by it
            raise ValueError(f"training.{name}={getattr(args, name)} must be at least 1")
    if args.max_steps == 0:
        raise ValueError("training.max_steps=0 must be at least 1, or left out for whole epochs")
    if args.max_steps < 0 and not 0 < args.num_train_epochs < math.inf:
        raise ValueError(
            f"training.num_train_epochs={args.num_train_epochs:g} is no number of epochs to train: "
            "give one above 0, or max_steps"
        )
    return args


def _tell_compiler_of_tf32() -> None:
    """Set transformers' precision of products by torch's other name too; compilers ask for that."""
    known = {"tf32": "high", "ieee": "highest"}.get(getattr(torch.backends, "fp32_precision", ""))
    if known is not None:
        torch.set_float32_matmul_precision(known)


def _try_out(args: TrainingArguments) -> None:
    """Make what the Trainer makes of arguments, so that wrong ones fail before weights load."""
    for report in get_reporting_integration_callbacks(args.report_to):
        report()
    weights = [torch.zeros(1, requires_grad=True)]
    tried: torch.optim.Optimizer = torch.optim.SGD(weights, lr=args.learning_rate)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, nn.Linear(1, 1))
    if not {"params", "model", "optimizer_dict"} & settings.keys():  # those are of the model itself
        tried = kind(weights, **settings)
    get_scheduler(args.lr_scheduler_type, tried, 0, 100, dict(args.lr_scheduler_kwargs or {}))


def _for_early_stopping(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    """TrainingArguments with which held-out rows are measured and the best checkpoint is kept.

    They are measured and saved every ``eval_steps`` if the recipe has these, else every epoch.
    """
    asked = f"early_stopping={recipe.early_stopping}"
    if recipe.eval_data is None and not recipe.dev_rows:
        raise ValueError(f"{asked} needs held-out rows: pass eval_data=FILE or dev_rows=N")
    every = "steps" if "eval_steps" in recipe.training else "epoch"
    every = str(recipe.training.get("eval_strategy", every))
    wanted = {
        "eval_strategy": every, "save_strategy": every, "load_best_model_at_end": True,
        "save_steps": settings.get("eval_steps") or settings["logging_steps"],
        "restore_callback_states_from_checkpoint": True,
    }  # fmt: skip
    for name, value in wanted.items():
        if recipe.training.get(name, value) != value or every == "no":
            given = recipe.training.get(name, "no")
            raise ValueError(
                f"{asked} measures and saves together, and keeps the best: leave out "
                f"training.{name}={given}"
            )
    return wanted


def _without_seq2seq(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that only ``Seq2SeqTrainingArguments`` has; raises if one is set."""
    known = TrainingArguments.__dataclass_fields__
    for name, value in settings.items():
        if name not in known and value:
            raise ValueError(
                f"training.{name}={value} is for encoder–decoder models that write "
                "texts: leave it out"
            )
    return {key: value for key, value in settings.items() if key in known}


def held_out_metrics(args: TrainingArguments, held_out: Rows | None) -> list[str]:
    """The names of the metrics measured on held-out rows while training, besides the loss."""
    chooses = held_out is not None and held_out.form == "choice"
    names = ["eval_accuracy"] if chooses else []
    if getattr(args, "predict_with_generate", False):
        if held_out is None:
            raise ValueError(
                "training.predict_with_generate=true needs held-out rows: pass eval_data=FILE or "
                "dev_rows=N"
            )
        row = held_out.rows[:1]
        scored = held_out.protocol.score([answer_of(row[0])], row)  # one row tells the names
        names = [f"eval_{name}" for name in scored]
    short = [name.removeprefix("eval_") for name in names]
    best = args.metric_for_best_model
    if best not in (None, "loss", "eval_loss", *names, *short):
        raise ValueError(
            f"training.metric_for_best_model={best!r} is not measured while training"
            + (f" ({', '.join(short)} are)" if short else "")
            + ": leave it out, for the held-out loss"
        )
    return names
