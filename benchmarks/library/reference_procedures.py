"""What the callbacks of lorada do to a training step, without lorada.

Each function gets the reference without the callback and lorada's own setup, and returns the
reference with it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from library import handwritten_methods as handwritten
from library.training_setup import (
    LEARNING_RATE,
    SEED,
    STEPS,
    TrainingSetup,
    by_layer,
    owlore_layers,
    weight_decay,
)
from torch import nn
from torch.optim import AdamW

from lorada.methods.callbacks.adalora_pruning import AdaLoraCallback
from lorada.methods.callbacks.ist import ISTCallback
from lorada.methods.callbacks.lamda_schedule import LamdaCallback
from lorada.methods.callbacks.longlora import ShiftedAttention
from lorada.methods.callbacks.owlore import OwLoreCallback
from lorada.methods.callbacks.sora_thresholds import SoraCallback
from lorada.methods.galore import galore

GALORE_RANK = 256


def _draw_ist_layers(setup: TrainingSetup, ours: TrainingSetup) -> TrainingSetup:
    """Draw a quarter of the layers for each step."""
    layers = by_layer(setup.parameters)
    count = max(1, len(layers) // 4)

    def before_step(step: int) -> None:
        handwritten.train_some_layers(layers, count, SEED * 1_000_003 + step)

    return replace(setup, before_step=before_step)


def _draw_owlore_layers(setup: TrainingSetup, ours: TrainingSetup) -> TrainingSetup:
    """Draw a few layers before the first step; with GaLore's optimizer, project their matrices."""
    assert ours.plan is not None
    model: Any = setup.model
    layers = by_layer(setup.parameters)
    handwritten.train_some_layers(layers, owlore_layers(model.config), SEED * 1_000_003)
    projects = ours.plan.optimizer is galore
    matrices = [p for layer in layers for p in layer if p.dim() == 2] if projects else []
    projected = set(matrices)
    rest = [p for p in setup.parameters.values() if p not in projected]
    optimizer = AdamW(rest, lr=LEARNING_RATE, weight_decay=0.0)
    state: dict[nn.Parameter, dict[str, Any]] = {}

    def update(step: int) -> None:
        optimizer.step()
        handwritten.galore_step(matrices, state, lr=LEARNING_RATE, rank=GALORE_RANK)

    return replace(setup, update=update)


def _threshold_sora_gates(setup: TrainingSetup, ours: TrainingSetup) -> TrainingSetup:
    """Put the gates into a parameter group without weight decay, and threshold them."""
    assert ours.plan is not None
    gates = [p for n, p in setup.parameters.items() if n.endswith(".gate")]
    others = [p for n, p in setup.parameters.items() if not n.endswith(".gate")]
    groups = [{"params": others, "weight_decay": weight_decay(ours.plan)}, {"params": gates}]
    optimizer = AdamW(groups, LEARNING_RATE, weight_decay=0.0)

    def update(step: int) -> None:
        optimizer.step()
        handwritten.soft_threshold(gates, 3e-4)

    return replace(setup, update=update)


def _freeze_lamda_columns(setup: TrainingSetup, ours: TrainingSetup) -> TrainingSetup:
    """Freeze the columns of each B one after another."""
    frozen = handwritten.FrozenColumns([p for n, p in setup.parameters.items() if n[-2:] == ".B"])
    step_of_optimizer = setup.update

    def before_step(step: int) -> None:
        frozen.share = min(1.0, step / (0.3 * STEPS))

    def update(step: int) -> None:
        frozen.keep(lambda: step_of_optimizer(step))

    return replace(setup, before_step=before_step, update=update)


def _call_adalora_allocator(setup: TrainingSetup, ours: TrainingSetup) -> TrainingSetup:
    """Call the allocator of PEFT's AdaLoRA after each step."""
    model: Any = setup.model
    step_of_optimizer = setup.update

    def update(step: int) -> None:
        step_of_optimizer(step)
        model.base_model.update_and_allocate(step + 1)

    return replace(setup, update=update)


def _shift_attention(setup: TrainingSetup, ours: TrainingSetup) -> TrainingSetup:
    """Write shifted sparse attention into the attention's forward."""
    model: Any = setup.model
    handwritten.shifted_attention(model.get_base_model())
    return setup


# By callback: words for it, and what it does.
PROCEDURES: dict[type, tuple[str, Callable[[TrainingSetup, TrainingSetup], TrainingSetup]]] = {
    ISTCallback: ("requires_grad flips", _draw_ist_layers),
    OwLoreCallback: ("requires_grad flips", _draw_owlore_layers),
    SoraCallback: ("thresholds", _threshold_sora_gates),
    LamdaCallback: ("frozen columns", _freeze_lamda_columns),
    AdaLoraCallback: ("its allocator", _call_adalora_allocator),
    ShiftedAttention: ("a block mask", _shift_attention),
}
