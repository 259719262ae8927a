"""What a training takes of an accelerator's memory, and whether it computes activations again.

    weights + activations of a step ≤ 0.85 of what is free:  all that a layer makes is kept

An estimate, before anything is loaded. Counted are the tensors that autograd keeps of LLaMA with
LoRA and a map, as CUDA keeps them: a dropout's mask is one byte an entry there, and on a CPU a
number of 32 bits (``test_checkpointing.py`` counts). The gradients and the optimizer's states of an
adapter, and what a kernel needs for itself, are in the 0.15 that are left.
"""

import logging
from typing import Any

import torch

from lorada.data.tokenize import context_of
from lorada.methods.meta_model import meta_model
from lorada.runs.recipe import AUTO, Recipe
from lorada.support.processes import all_gather, all_or_none, gpu_share, is_main_process
from lorada.training.arguments import DEFAULTS, accelerator
from lorada.training.models.loading import stretched

logger = logging.getLogger(__name__)

# Bytes of a token in a layer, for each unit of width, with numbers of 16 and of 32 bits.
KEPT = (60, 100)
FITS = 0.85  # the share of the free memory that weights and activations may take
TRAINED_BYTES = 16  # of a parameter in fp32, its gradient and AdamW's two moments
LAYERS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers")  # of encoder and decoder
WEIGHT_BYTES = {"nf4": 0.6, "int8": 1.1}  # of a parameter that is quantised
# TrainingArguments that say what ``activation_checkpointing`` says. Beside ``auto`` they decide.
TRAINERS_OWN = tuple(
    f"{kind}_checkpointing{more}" for kind in ("gradient", "activation") for more in ("", "_kwargs")
)


def as_it_trains(recipe: Recipe, *, again: bool) -> Recipe:
    """The recipe with ``off``, or ``full`` if computed ``again``, in place of ``auto``."""
    if recipe.activation_checkpointing != AUTO or recipe.training.keys() & set(TRAINERS_OWN):
        return recipe
    return recipe.model_copy(update={"activation_checkpointing": "full" if again else "off"})


def recomputes(recipe: Recipe, config: Any, *, sequences: int = 1, whole: bool = False) -> bool:
    """Whether a training computes its activations again; where ``auto`` does, a line says so.

    A row has up to ``sequences``, one for each candidate; a method may train the ``whole`` base.
    Processes that train together decide alike, by the one with the least memory: under FSDP each
    waits for the weights that another one asks for.
    """
    asked = recipe.activation_checkpointing
    if asked != AUTO or accelerator(recipe.training) is None:
        return asked == "full"
    need = step_bytes(recipe, config, sequences=sequences, whole=whole)
    with all_or_none():
        own = memory_here(recipe)
    memory = min(all_gather(own))
    if need > FITS * memory and is_main_process():
        sizes = (f"{size / 2**30:.0f}" for size in (need, memory))
        logger.warning("activation_checkpointing=auto takes full, as weights and activations of a "
                       "step would be about %s of the %s GiB that are free: off is faster where "
                       "they fit", *sizes)  # fmt: skip
    return need > FITS * memory


def memory_here(recipe: Recipe) -> int:
    """The bytes of the accelerator that a training may take: what is free, or its share of all.

    Asking what is free makes this process use the accelerator.
    """
    device = accelerator(recipe.training)
    assert device is not None
    module = getattr(torch, device.type)
    free, total = module.mem_get_info()
    # What an earlier model of this process has left to torch's allocator is free too.
    reusable = module.memory_reserved() - module.memory_allocated()
    return int(min(free + reusable, gpu_share() * total))


def device_bytes(recipe: Recipe) -> int | None:
    """The memory of the accelerator that a recipe trains on; None for a CPU and for MPS."""
    device = accelerator(recipe.training)
    if device is None:
        return None
    return int(getattr(torch, device.type).get_device_properties(device).total_memory)


def step_bytes(recipe: Recipe, config: Any, *, sequences: int = 1, whole: bool = False) -> float:
    """What the weights and the activations of a step take, if all that a layer makes is kept.

    0 where the model cannot compute activations again, the Trainer is told whether to, or the
    config does not say how many layers there are and how wide. ``sequences`` and ``whole`` are as
    in ``recomputes``.
    """
    model, text = meta_model(config), config.get_text_config()
    own = any(name in recipe.training for name in TRAINERS_OWN)
    layers = sum(getattr(text, name, None) or 0 for name in LAYERS)
    width = getattr(text, "hidden_size", None)
    if own or model is None or not model.supports_gradient_checkpointing or not (layers and width):
        return 0.0
    wide = recipe.base_dtype == "float32"
    context = context_of(stretched(config, recipe.rope_factor)) or recipe.max_length
    rows = {**DEFAULTS, **recipe.training}["per_device_train_batch_size"] * sequences
    units = layers * width * rows * min(recipe.max_length, context)
    weight = WEIGHT_BYTES.get(recipe.quantization or "", 4.0 if wide else 2.0)
    weight = TRAINED_BYTES if whole else weight
    return float(model.num_parameters() * weight + KEPT[wide] * units)
