"""Decides whether a training computes its activations again in the backward pass.

``activation_checkpointing`` is ``off``, ``full`` (all within a layer), or ``auto``: ``off`` on CPU
and MPS; on an accelerator ``full`` if the base has more than 1e9 parameters or a row may have more
than 1,024 tokens, else ``off``.
"""

import logging
from typing import Any

from lorada.methods.meta_model import meta_model
from lorada.runs.by_device import accelerator
from lorada.runs.data.dataset import context_of
from lorada.runs.recipe import Recipe
from lorada.support.processes import is_first

logger = logging.getLogger(__name__)

LARGE = 1e9  # parameters
LONG = 1024  # tokens


def recomputes(recipe: Recipe, config: Any) -> bool:
    """Whether a training here computes its activations again; a line says so if ``auto`` decides.

    ``config`` is that of the base.
    """
    asked = recipe.activation_checkpointing
    if asked != "auto":
        return asked == "full"
    if accelerator(recipe.training) is None:
        return False
    reason = why_full(recipe, config)
    if reason is not None and is_first():
        logger.warning("activation_checkpointing=auto takes full: %s", reason)
    return reason is not None


def as_it_trains(recipe: Recipe, *, again: bool) -> Recipe:
    """The recipe with ``off`` or ``full`` in place of ``auto``, to be repeated as it was.

    ``again`` says whether activations are computed again.
    """
    if recipe.activation_checkpointing != "auto":
        return recipe
    return recipe.model_copy(update={"activation_checkpointing": "full" if again else "off"})


def why_full(recipe: Recipe, config: Any) -> str | None:
    """Why ``auto`` takes ``full`` on an accelerator; None if it takes ``off``."""
    model = meta_model(config)
    own = any("checkpointing" in name for name in recipe.training)  # the Trainer's: they decide
    if own or model is None or not model.supports_gradient_checkpointing:
        return None
    parameters = model.num_parameters()
    length = min(recipe.max_length, context_of(config) or recipe.max_length)
    if parameters > LARGE:
        return f"the model has {parameters:,} parameters"
    return f"rows may have {length:,} tokens" if length > LONG else None
