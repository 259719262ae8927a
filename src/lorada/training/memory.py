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

# Bytes of a token in a layer for each unit of width, if all that the layer makes is kept: by the
# bits of a number.
KEPT_16_BIT, KEPT_32_BIT = 60, 100
FITS = 0.85  # the share of the free memory that weights and activations may take
TRAINED_BYTES = 16  # of a parameter in fp32, its gradient and AdamW's two moments
LAYERS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers")  # of encoder and decoder
QUANTIZED_BYTES = {"nf4": 0.6, "int8": 1.1}  # of a parameter
# TrainingArguments that say what ``activation_checkpointing`` says. Beside ``auto`` they decide.
TRAINERS_OWN = (
    "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "activation_checkpointing", "activation_checkpointing_kwargs",
)  # fmt: skip


def with_checkpointing(recipe: Recipe, *, recomputes: bool) -> Recipe:
    """The recipe with what ``activation_checkpointing=auto`` came to: ``full`` or ``off``.

    ``recomputes`` says whether the training computes activations again.
    """
    if recipe.activation_checkpointing != AUTO or _trainer_decides(recipe):
        return recipe
    decision = "full" if recomputes else "off"
    return recipe.model_copy(update={"activation_checkpointing": decision})


def _trainer_decides(recipe: Recipe) -> bool:
    """Whether TrainingArguments of the recipe already say if activations are computed again."""
    return any(name in recipe.training for name in TRAINERS_OWN)


def needs_recomputing(
    recipe: Recipe, config: Any, *, sequences_per_row: int = 1, trains_everything: bool = False
) -> bool:
    """Whether a training computes its activations again; where ``auto`` does, a warning says so.

    Processes that train together decide alike, by the one with the least memory: under FSDP each
    waits for the weights that another one asks for.

    Args:
        recipe: with ``activation_checkpointing``, the model's dtype and the size of a batch.
        config: of the base model.
        sequences_per_row: the most that any row has, one for each candidate.
        trains_everything: whether the method trains the base itself.
    """
    if recipe.activation_checkpointing != AUTO or accelerator(recipe.training) is None:
        return recipe.activation_checkpointing == "full"
    needed = step_bytes(
        recipe, config, sequences_per_row=sequences_per_row, trains_everything=trains_everything
    )
    # If one process fails here, all fail, instead of waiting in ``all_gather`` for it.
    with all_or_none():
        own_memory = available_bytes(recipe)
    least_memory = min(all_gather(own_memory))
    if needed <= FITS * least_memory:
        return False
    if is_main_process():
        logger.warning("activation_checkpointing=auto takes full, as weights and activations of a "
                       "step would be about %.0f of the %.0f GiB that are free: off is faster "
                       "where they fit", needed / 2**30, least_memory / 2**30)  # fmt: skip
    return True


def available_bytes(recipe: Recipe) -> int:
    """The bytes of the accelerator that a training may take: what is free, or its share of all.

    Asking what is free makes this process use the accelerator.
    """
    device = accelerator(recipe.training)
    assert device is not None
    # ``torch.cuda`` or ``torch.xpu``: the functions below have no common name in torch.accelerator.
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


def step_bytes(
    recipe: Recipe, config: Any, *, sequences_per_row: int = 1, trains_everything: bool = False
) -> float:
    """What the weights and the activations of a step take, if all that a layer makes is kept.

    0 where the model cannot compute activations again, the Trainer is told whether to, or the
    config does not say how many layers there are and how wide. The arguments are as in
    ``needs_recomputing``.
    """
    if _trainer_decides(recipe):
        return 0.0
    model, text_config = meta_model(config), config.get_text_config()
    if model is None or not model.supports_gradient_checkpointing:
        return 0.0
    # Configs of decoders and of encoder–decoders name their layers differently.
    layers = sum(getattr(text_config, name, None) or 0 for name in LAYERS)
    width = getattr(text_config, "hidden_size", None)
    if not layers or not width:
        return 0.0
    weight_bytes = model.num_parameters() * _bytes_per_parameter(recipe, trains_everything)
    # No row is longer than the model reads.
    context = context_of(stretched(config, recipe.rope_factor)) or recipe.max_length
    batch_size = {**DEFAULTS, **recipe.training}["per_device_train_batch_size"]
    tokens = batch_size * sequences_per_row * min(recipe.max_length, context)
    kept_bytes = KEPT_32_BIT if recipe.base_dtype == "float32" else KEPT_16_BIT
    return float(weight_bytes + kept_bytes * layers * width * tokens)


def _bytes_per_parameter(recipe: Recipe, trains_everything: bool) -> float:
    """The bytes of a parameter of the base, with its gradient and optimizer if it trains."""
    if trains_everything:
        return TRAINED_BYTES
    if recipe.quantization is not None:
        return QUANTIZED_BYTES[recipe.quantization]
    return 4.0 if recipe.base_dtype == "float32" else 2.0
