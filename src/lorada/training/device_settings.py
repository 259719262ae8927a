"""What a recipe leaves to the device: ``auto`` in two fields, and the Trainer's device settings.

On a CPU and on MPS the base is in fp32. On an accelerator that computes in bf16 it has the dtype of
its checkpoint, with bf16 in place of fp16, whose numbers overflow in training; NVIDIA's older cards
have fp16 alone, with a scaled loss. What trains is in fp32 everywhere, in the base too (``mixed``),
because bf16 loses small updates; where the base is in 16 bits, the forward pass is under autocast.

Activations are computed again in the backward pass (``activation_checkpointing``) on an accelerator
if the base has more than 1e9 parameters or a row may have more than 1,024 tokens, unless a step
without that fits in its memory (``training_memory.py``).
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from lorada.data.dataset import context_of
from lorada.methods.meta_model import meta_model
from lorada.runs.recipe import AUTO, MIXED, MIXED_FP16, Recipe
from lorada.support.processes import is_first
from lorada.training.models.loading import stretched

logger = logging.getLogger(__name__)

AMPERE = (8, 0)  # the first generation of NVIDIA's cards with TF32
LARGE, LONG = 1e9, 1024  # parameters; tokens of a row
WORKERS = 2  # processes that make batches while the accelerator computes
# TrainingArguments that say what ``activation_checkpointing`` says. Beside ``auto`` they decide.
TRAINERS_OWN = tuple(
    f"{kind}_checkpointing{more}" for kind in ("gradient", "activation") for more in ("", "_kwargs")
)


def accelerator(settings: Mapping[str, Any]) -> torch.device | None:
    """The accelerator of a training with these TrainingArguments; None for a CPU and for MPS."""
    if settings.get("use_cpu") or not _there():
        return None
    device = torch.accelerator.current_accelerator()
    return None if device is None or device.type == "mps" else device


def _there() -> bool:
    return torch.accelerator.is_available()


def device_bytes(recipe: Recipe) -> int | None:
    """The memory of the accelerator that a recipe trains on; None for a CPU and for MPS."""
    device = accelerator(recipe.training)
    if device is None:
        return None
    return int(getattr(torch, device.type).get_device_properties(device).total_memory)


def dtype_on(recipe: Recipe, config: Any, *, narrow: bool) -> str:
    """The dtype of a recipe's base, on a device with 16 bits (``narrow``) or another."""
    if recipe.dtype != AUTO:
        return recipe.dtype
    saved = str(getattr(config, "dtype", None)).removeprefix("torch.")
    if not narrow or saved in ("None", "float32", "float64"):
        return "float32"
    return MIXED


def with_dtype(recipe: Recipe, config: Any) -> Recipe:
    """The recipe with the dtype that its base gets here, if it leaves that to the device.

    ``config`` is that of the base. A line says so where it is not fp32.
    """
    if recipe.dtype != AUTO:
        return recipe
    device = accelerator(recipe.training)
    module = None if device is None else getattr(torch, device.type, None)
    supported = getattr(module, "is_bf16_supported", None)
    bf16 = supported is not None and bool(supported(including_emulation=False))
    fp16 = device is not None and device.type == "cuda"
    chosen = dtype_on(recipe, config, narrow=bf16 or fp16)
    if chosen == MIXED and not bf16:
        chosen = MIXED_FP16
    found = recipe.model_copy(update={"dtype": chosen})
    if found.mixed and is_first():
        logger.warning("dtype=auto takes %s on this device, which is %s with float32 where it "
                       "trains: dtype=float32 is wider", chosen, found.base_dtype)  # fmt: skip
    return found


def device_settings(recipe: Recipe) -> dict[str, Any]:
    """TrainingArguments for an accelerator; for a CPU and for MPS, only the autocast of mixed.

    Raises:
        ValueError: for a dtype that needs an accelerator; accelerate would leave out its autocast.
    """
    device = accelerator(recipe.training)
    if recipe.dtype == MIXED_FP16 and device is None:
        raise ValueError("dtype=mixed_float16 trains on an accelerator alone: take dtype=mixed")
    narrow = recipe.dtype == MIXED or (recipe.dtype == "bfloat16" and device is not None)
    settings: dict[str, Any] = {"bf16": True} if narrow and not recipe.training.get("fp16") else {}
    if recipe.dtype == MIXED_FP16:
        settings["fp16"] = True
    if device is None:  # transformers asks to be told that autocast is for the CPU
        return {**settings, "use_cpu": True} if settings and not _there() else settings
    settings |= {"dataloader_num_workers": WORKERS, "dataloader_pin_memory": True}
    if device.type == "cuda" and torch.cuda.get_device_capability() >= AMPERE:
        settings["tf32"] = True
    return settings


def take_one_device(args: Any, output: str) -> None:
    """Let one process use one accelerator, of several that are visible.

    The Trainer would copy the model to all of them (``DataParallel``), and in a copy the hooks of
    adapters use the weights of the first device.
    """
    visible = args.n_gpu
    if visible > 1:
        args._n_gpu = 1
        logger.warning(
            "%d devices are visible and one process uses the first. To use all: torchrun "
            "--nproc_per_node %d -m lorada.cli train …, with --output %s as here",
            visible, visible, output,
        )  # fmt: skip


def loading_device(args: Any) -> torch.device | None:
    """Where weights are loaded for a training; None if FSDP or nothing places them elsewhere."""
    device: torch.device = args.device
    return None if args.fsdp or device.type in ("cpu", "mps") else device


def as_it_trains(recipe: Recipe, *, again: bool) -> Recipe:
    """The recipe with ``off``, or ``full`` if computed ``again``, in place of ``auto``."""
    if recipe.activation_checkpointing != AUTO or recipe.training.keys() & set(TRAINERS_OWN):
        return recipe
    return recipe.model_copy(update={"activation_checkpointing": "full" if again else "off"})


def why_full(recipe: Recipe, config: Any) -> str | None:
    """Why a step may not fit in an accelerator's memory unless ``auto`` takes ``full``; or None."""
    model = meta_model(config)
    own = any(name in recipe.training for name in TRAINERS_OWN)
    if own or model is None or not model.supports_gradient_checkpointing:
        return None
    parameters, length = model.num_parameters(), longest(recipe, config)
    if parameters > LARGE:
        return f"the model has {parameters:,} parameters"
    return f"rows may have {length:,} tokens" if length > LONG else None


def longest(recipe: Recipe, config: Any) -> int:
    """The most tokens that a row may have: ``max_length``, if the model can read so many."""
    context = context_of(stretched(config, recipe.rope_factor))
    return min(recipe.max_length, context or recipe.max_length)
