"""The TrainingArguments of a run: our defaults, then the method's settings, then the recipe's.

On a CPU and on MPS the base is in fp32. On an accelerator that computes in bf16 it has the dtype of
its checkpoint, with bf16 in place of fp16, whose numbers overflow in training; NVIDIA's older cards
have fp16 alone, with a scaled loss. What trains is in fp32 everywhere (``mixed``), as bf16 loses
small updates; where the base is in 16 bits, the forward pass is under autocast.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainingArguments, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from lorada.data.rows.row_content import answer_of
from lorada.data.rows.rows import Rows
from lorada.methods.sizes_and_rates import default_rate
from lorada.runs.recipe import AUTO, MIXED, MIXED_FP16, Recipe
from lorada.support.processes import GPU_SHARE, is_main_process, only_cpu

logger = logging.getLogger(__name__)

AMPERE = (8, 0)  # the first generation of NVIDIA's cards with TF32
WORKERS = 2  # processes that make batches while the accelerator computes


def accelerator(settings: Mapping[str, Any]) -> torch.device | None:
    """The accelerator of a training with these TrainingArguments; None for a CPU and for MPS."""
    if settings.get("use_cpu") or not torch.accelerator.is_available():
        return None
    device = torch.accelerator.current_accelerator()
    if device is None or device.type == "mps":
        return None
    return device


def on_mps(settings: Mapping[str, Any]) -> bool:
    """Whether a training with these TrainingArguments is on an Apple GPU."""
    if settings.get("use_cpu") or not torch.accelerator.is_available():
        return False
    device = torch.accelerator.current_accelerator()
    return device is not None and device.type == "mps"


def answering_device(recipe: Recipe) -> torch.device | None:
    """Where a finished run answers: on the device that would train it; None for a CPU."""
    # Weights of 4 or 8 bits are made by kernels that MPS does not have.
    if recipe.quantization is None and on_mps({}):
        return torch.device("mps")
    return accelerator({})


def with_dtype(recipe: Recipe, config: Any) -> Recipe:
    """The recipe with the dtype that its base gets here, if it leaves that to the device.

    ``config`` is that of the base. A warning says so where the dtype is not fp32.
    """
    if recipe.dtype != AUTO:
        return recipe
    device_dtype = _device_dtype(recipe, config)
    with_device_dtype = recipe.model_copy(update={"dtype": device_dtype})
    if with_device_dtype.mixed and is_main_process():
        base_dtype = with_device_dtype.base_dtype
        logger.warning("dtype=auto takes %s on this device, which is %s with float32 where it "
                       "trains: dtype=float32 is wider", device_dtype, base_dtype)  # fmt: skip
    return with_device_dtype


def _device_dtype(recipe: Recipe, config: Any) -> str:
    """The dtype of a recipe for the base of a config on the accelerator here, if there is one."""
    device = accelerator(recipe.training)
    is_narrow_checkpoint = getattr(config, "dtype", None) in (torch.bfloat16, torch.float16)
    if device is None or not is_narrow_checkpoint:
        return "float32"
    # torch says bf16 is supported where it only emulates it, slowly.
    is_bf16_supported = getattr(getattr(torch, device.type, None), "is_bf16_supported", None)
    if is_bf16_supported is not None and is_bf16_supported(including_emulation=False):
        return MIXED
    return MIXED_FP16 if device.type == "cuda" else "float32"


def device_settings(recipe: Recipe) -> dict[str, Any]:
    """TrainingArguments for an accelerator; for a CPU and for MPS, only the autocast of mixed."""
    device = accelerator(recipe.training)
    settings = _autocast_settings(recipe, device)
    if device is None:
        # transformers asks to be told that autocast is for the CPU.
        if settings and not torch.accelerator.is_available():
            settings["use_cpu"] = True
        return settings
    settings |= {"dataloader_num_workers": WORKERS, "dataloader_pin_memory": True}
    if device.type == "cuda" and torch.cuda.get_device_capability() >= AMPERE:
        settings["tf32"] = True
    return settings


def _autocast_settings(recipe: Recipe, device: torch.device | None) -> dict[str, Any]:
    """TrainingArguments for the dtype that the forward pass computes in.

    Raises:
        ValueError: for ``dtype=mixed_float16`` without an accelerator.
    """
    if recipe.dtype == MIXED_FP16:
        if device is None:
            raise ValueError("dtype=mixed_float16 trains on an accelerator alone: take dtype=mixed")
        return {"fp16": True}
    in_bf16 = recipe.dtype == MIXED or (recipe.dtype == "bfloat16" and device is not None)
    # The user's fp16 wins, as the two exclude each other.
    if in_bf16 and not recipe.training.get("fp16"):
        return {"bf16": True}
    return {}


def take_one_device(args: Any, *, is_spread: bool = False) -> None:
    """Let one process use one accelerator, of several that are visible.

    A warning says how to use the others.

    Args:
        args: TrainingArguments, which are changed.
        is_spread: whether the base is spread over all of them by its ``device_map``. Then it uses
            them all, and nothing is warned of.
    """
    # The Trainer would copy the model to all of them (``DataParallel``), and in a copy the hooks of
    # adapters use the weights of the first device.
    visible = args.n_gpu
    if visible <= 1:
        return
    args._n_gpu = 1
    if is_spread:
        return
    if GPU_SHARE in os.environ:  # a job of a comparison or of a table
        remedy = "--gpus-per-job 1 runs a job on each, device_map=auto spreads a large base"
    else:
        remedy = f"To use all: torchrun --nproc_per_node {visible} -m lorada.cli train …"
    logger.warning("%d devices are visible and one process uses the first. %s", visible, remedy)


def loading_device(args: Any) -> torch.device | None:
    """The accelerator that weights are loaded to for a training; None to load them to the CPU.

    Under FSDP they are loaded to the CPU, from where it distributes them. To MPS the Trainer moves
    the model itself.
    """
    device: torch.device = args.device
    if args.fsdp or device.type in ("cpu", "mps"):
        return None
    return device


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
    # What trains gets a gradient in each step, but where a method or a pooling says otherwise.
    "ddp_find_unused_parameters": False,
}
MAPS_ALONE = ("lmam", "fmam")  # their own rate is a multiple of the head's
# Activations are computed again; the reentrant kind would need an input that has a gradient.
CHECKPOINTING: dict[str, Any] = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}


@contextmanager
def argument_errors() -> Iterator[None]:
    """Turn any error about TrainingArguments into one line.

    Raises:
        ValueError: in place of any error inside of the ``with`` block.
    """
    try:
        yield
    except Exception as error:  # of any class: the hub's client has its own
        text = str(error).strip() or type(error).__name__
        raise ValueError(f"TrainingArguments: {text.splitlines()[0]}") from error


def training_arguments(
    recipe: Recipe,
    method_settings: dict[str, Any] | None = None,
    *,
    quiet: bool = False,
    recompute: bool = False,
) -> Seq2SeqTrainingArguments:
    """Merge the recipe's settings over those of its method and our defaults, and check them.

    Args:
        recipe: whose ``training`` has the user's settings.
        method_settings: TrainingArguments that belong to the method.
        quiet: no progress bar.
        recompute: compute activations again in the backward pass, instead of keeping them.

    Raises:
        ValueError: for what transformers, DeepSpeed or the device would fail on later.
    """
    settings = {**_default_settings(recipe), **(method_settings or {}), **recipe.training}
    if recipe.early_stopping is not None:
        # Keeping the best checkpoint is what early stopping is, so not even the user turns it off.
        settings |= _early_stopping_settings(recipe, settings) | recipe.training
        settings["load_best_model_at_end"] = True
    if recompute:
        settings |= CHECKPOINTING
    _refuse_deepspeed(settings)
    settings["use_cpu"] = settings.get("use_cpu") or only_cpu()
    with argument_errors():
        # A copy, because transformers changes the fsdp_config that it is given.
        args = Seq2SeqTrainingArguments(
            output_dir=recipe.output, **deepcopy({"disable_tqdm": quiet, **settings})
        )
        # Before anything reads a batch size of ``args``, which is multiplied by the devices.
        take_one_device(args, is_spread=recipe.device_map is not None)
        _set_matmul_precision()
        _try_out(args)
    _refuse_arguments(recipe, args)
    return args


def default_learning_rate(recipe: Recipe, method_settings: dict[str, Any]) -> float:
    """The learning rate of a training whose recipe sets none.

    ``method_settings`` are the TrainingArguments that belong to the method.
    """
    settings = {**_default_settings(recipe), **method_settings}
    return float(settings["learning_rate"])


def _default_settings(recipe: Recipe) -> dict[str, Any]:
    """Our TrainingArguments for the device, the method and the pooling of a recipe."""
    settings = {**DEFAULTS, **device_settings(recipe)}
    if recipe.method in MAPS_ALONE:
        settings["learning_rate"] = default_rate(recipe.method)
    if recipe.pooling is not None:  # the layers that it passes over get no gradient
        settings["ddp_find_unused_parameters"] = True
    return settings


def _refuse_deepspeed(settings: dict[str, Any]) -> None:
    """Refuse DeepSpeed, which TrainingArguments or accelerate's environment may ask for."""
    by_accelerate = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    if by_accelerate or settings.get("deepspeed"):
        raise ValueError(
            "training under DeepSpeed is not tested: use training.fsdp=true, or leave out "
            "training.deepspeed and accelerate's settings of DeepSpeed"
        )


def _refuse_arguments(recipe: Recipe, args: TrainingArguments) -> None:
    """Refuse arguments that transformers takes and that no training of ours can have."""
    if recipe.mixed and not (args.bf16 or args.fp16):
        raise ValueError(
            f"dtype={recipe.dtype} trains under autocast: leave out training.bf16=false and "
            "training.fp16=false"
        )
    # Where ``max_steps`` is set (-1 is its default), transformers does not count epochs.
    length = "num_train_epochs" if args.max_steps == -1 else "max_steps"
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps", length):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(
                f"training.{name}={getattr(args, name):g} must be above 0, and finite: leave it "
                "out for the usual one"
            )


# TrainingArguments that a CPU does not take, or takes otherwise.
OF_DEVICE = ("use_cpu", "bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32")


def counting_arguments(recipe: Recipe) -> Seq2SeqTrainingArguments:
    """The arguments of a process that counts a recipe's rows and steps, and trains nothing.

    It leaves the accelerator to those that train: TrainingArguments for a card keep several hundred
    MB of the first one as long as their process lives. Without an accelerator they are those of the
    training, so that all that is wrong with them is found here.
    """
    if accelerator(recipe.training) is None:
        return training_arguments(recipe, quiet=True)
    settings = {name: value for name, value in recipe.training.items() if name not in OF_DEVICE}
    on_cpu = {"dtype": "float32", "training": {**settings, "use_cpu": True}}
    return training_arguments(recipe.model_copy(update=on_cpu), quiet=True)


def _set_matmul_precision() -> None:
    """Set transformers' precision of products by torch's other name too; compilers ask for that."""
    fp32_precision = getattr(torch.backends, "fp32_precision", "")
    matmul_precision = {"tf32": "high", "ieee": "highest"}.get(fp32_precision)
    if matmul_precision is not None:
        torch.set_float32_matmul_precision(matmul_precision)


def _try_out(args: TrainingArguments) -> None:
    """Make what the Trainer makes of arguments, so that wrong ones fail before weights load.

    These are the loggers of ``report_to``, the optimizer and the learning rate's schedule. Errors
    are those of transformers and torch, which ``argument_errors`` turns into one line.
    """
    for callback_class in get_reporting_integration_callbacks(args.report_to):
        callback_class()
    weights = [torch.zeros(1, requires_grad=True)]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(weights, lr=args.learning_rate)
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, nn.Linear(1, 1))
    # Optimizers that need the model itself, such as GaLore's, cannot be tried out on one weight.
    needs_model = bool({"params", "model", "optimizer_dict"} & settings.keys())
    if not needs_model:
        optimizer = optimizer_class(weights, **settings)
    get_scheduler(args.lr_scheduler_type, optimizer, 0, 100, dict(args.lr_scheduler_kwargs or {}))


def _early_stopping_settings(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    """TrainingArguments with which held-out rows are measured and the best checkpoint is kept.

    They are measured and saved every ``eval_steps`` if the recipe has these, else every epoch.

    Raises:
        ValueError: if there are no held-out rows, or they are not measured.
    """
    default_strategy = "steps" if "eval_steps" in recipe.training else "epoch"
    strategy = str(recipe.training.get("eval_strategy", default_strategy))
    has_held_out_rows = recipe.eval_data is not None or recipe.dev_rows > 0
    if strategy == "no" or not has_held_out_rows:
        raise ValueError(
            f"early_stopping={recipe.early_stopping} needs held-out rows that are measured: pass "
            "eval_data=FILE or dev_rows=N, and leave out training.eval_strategy=no"
        )
    return {
        "eval_strategy": strategy,
        "save_strategy": strategy,
        "load_best_model_at_end": True,
        "save_steps": settings.get("eval_steps") or settings["logging_steps"],
        # A resumed run goes on counting the evaluations without a better loss.
        "restore_callback_states_from_checkpoint": True,
    }


def held_out_metrics(
    args: Seq2SeqTrainingArguments, held_out: Rows | None, *, writes: bool
) -> list[str]:
    """The names of the metrics measured on held-out rows while training, besides the loss.

    Args:
        args: which may choose the best checkpoint by one of these metrics.
        held_out: rows that are measured while training, if there are any.
        writes: whether the model is an encoder–decoder whose generated texts may be scored.

    Raises:
        ValueError: for a ``metric_for_best_model`` that is not measured.
    """
    short_names: list[str] = []
    if held_out is not None and args.predict_with_generate and writes:
        # A protocol does not list its metrics. Their names are the keys of what ``score`` returns,
        # so the right answer of one row is scored to see them.
        first_row = held_out.rows[0]
        short_names = list(held_out.protocol.score([answer_of(first_row)], [first_row]))
    elif held_out is not None and held_out.form == "choice":
        short_names = ["accuracy"]
    names = [f"eval_{name}" for name in short_names]
    best_metric = args.metric_for_best_model
    if best_metric not in (None, "loss", "eval_loss", *names, *short_names):
        measured = f" ({', '.join(short_names)} are)" if short_names else ""
        raise ValueError(
            f"training.metric_for_best_model={best_metric!r} is not measured while training"
            f"{measured}: leave it out, for the held-out loss"
        )
    return names
