"""A smaller scale of an adapter that is trained: less of what it learned, and less that it loses.

At 0 the model is its base, and at 1 what was trained. LoRA's layers and those like it have PEFT's
``scaling``, α/r, which is multiplied; lorada's parts, maps among them, multiply their terms.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lorada.data.rows.rows import Rows
from lorada.inference.load import Run
from lorada.inference.row_losses import row_losses
from lorada.methods.callbacks.ist import scaled_down

SAMPLE = 8  # rows on which a scale of 0 is compared with the base
# The same weights in the same batches may be rounded otherwise, in nats a token; and this share of
# what the adapter changes may be left at a scale of 0.
ROUNDED, LEFT = 1e-6, 0.01


@contextmanager
def scaled_adapter(model: nn.Module, scale: float) -> Iterator[None]:
    """Multiply the scale of all that a model's adapters add, in a ``with`` block."""
    layers = []
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(
            getattr(module, "scaling", None), dict
        ):
            layers.append(module)
    with scaled_down(layers, scale):
        yield


def why_no_scale(run: Run, rows: Rows) -> str:
    """Why a run has no scale between its base and what was trained; empty if it has one.

    No list of methods says it: it is tried on a few ``rows`` whether 0 is the base. It is not for
    DoRA, whose norms stay, for methods that multiply activations, as IA3, and beside whole modules
    that are trained.
    """
    if not isinstance(run.model, PeftModel):
        return "it has trained the model's own weights, which have no scale"
    sample = rows.part(range(min(SAMPLE, len(rows.rows))))
    of_base = _losses(run, sample, base=True)
    changed = np.abs(_losses(run, sample) - of_base)
    with scaled_adapter(run.model, 0.0):
        left = np.abs(_losses(run, sample) - of_base)
    # Rows without a loss are NaN in all of them.
    most_left = max(ROUNDED, LEFT * float(np.nanmax(changed, initial=0.0)))
    if np.nanmax(left, initial=0.0) > most_left:
        return "it has no scale: at 0 it would not be the model as it was"
    return ""


def _losses(run: Run, rows: Rows, *, base: bool = False) -> NDArray[np.float64]:
    return np.array(row_losses(run, rows, base=base), dtype=float)
