"""OwLore: full fine-tuning of a few layers at a time, those with many outliers more often.

Every K steps all layers are frozen and γ of them, drawn without replacement with probabilities
p_ℓ = D_ℓ / Σ D (D is OWL's outlier ratio), train completely. Embeddings, the last norm and the
head are never frozen. With GaLore's optimizer this is OwLore, with AdamW OwLore-Full.

"OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for Memory-Efficient LLM
Fine-tuning" (2024).
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from lorada.methods.callbacks.layers import (
    Switch,
    collate,
    draw,
    generator_at,
    let_gradients_through,
    same_everywhere,
    training_rows,
)
from lorada.methods.callbacks.outlier_ratio import outlier_ratios

logger = logging.getLogger(__name__)

LAYERS = 5  # that train at a time, where nobody says how many


class OwLoreCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Trains γ layers at a time and drops the optimizer's memory of the others.

    For transformers' Trainer and TRL's trainers alike:
    ``Trainer(..., callbacks=[OwLoreCallback()])``.

    Args:
        layers: γ, how many layers train at a time; None for 5, or all where there are fewer.
        every: K, steps from one draw to the next.
        weights: sampling weight of each layer; None for the outlier ratios of the model, measured
            on rows of the training set before the first step.
        sequences: how many rows that is.
        threshold: M, how many times the mean an outlier is.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        layers: int | None = None,
        every: int = 50,
        weights: Sequence[float] | None = None,
        sequences: int = 128,
        threshold: float = 13.0,
    ) -> None:
        for name, value in (("layers", layers), ("every", every), ("sequences", sequences)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if threshold <= 0:
            raise ValueError(f"threshold={threshold} must be positive")
        if weights is not None and not all(weight >= 0 for weight in weights):
            raise ValueError(f"weights={list(weights)} must not be negative")
        self.layers, self.every, self.sequences = layers, every, sequences
        self.threshold = threshold
        self.weights = None if weights is None else list(weights)
        self._switch: Switch | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the settings and the weights, which a resume cannot measure."""
        names = ("layers", "every", "sequences", "threshold")
        args = {name: getattr(self, name) for name in names}
        return {"args": args, "attributes": {"weights": self.weights}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Weigh the layers, and draw the first or those that a resumed run was training.

        Raises:
            ValueError: for more layers than there are, or weights of another number of them.
        """
        if self._switch is not None:
            self._switch.all()  # a run that ended in an error has not
        model: nn.Module = kwargs["model"]
        let_gradients_through(model, args)
        self._switch = Switch(model)
        count = len(self._switch.layers)
        if self.layers is None:
            self.layers = min(LAYERS, count)
            if count < LAYERS:
                logger.warning(
                    "OwLore trains %d layers at a time and %s has %d: taking all",
                    LAYERS, type(model).__name__, count,
                )  # fmt: skip
        if self.layers > count:
            raise ValueError(
                f"layers={self.layers} of OwLore is more than the {count} layers of "
                f"{type(model).__name__} that train"
            )
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        if state.global_step > 0 and isinstance(saved, dict):
            self.weights = saved["attributes"]["weights"]
        if self.weights is None:
            self.weights = self._measured(model, args, kwargs["train_dataloader"])
        if len(self.weights) != count:
            raise ValueError(f"OwLore has {len(self.weights)} weights for {count} layers")
        self._activate(args.seed, state.global_step, kwargs["optimizer"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw other layers when it is time."""
        if state.global_step % self.every == 0:
            self._activate(args.seed, state.global_step, kwargs["optimizer"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make every layer trainable again."""
        if self._switch is not None:
            self._switch.all()

    def _measured(self, model: nn.Module, args: TrainingArguments, loader: Any) -> list[float]:
        assert self._switch is not None
        # Step -1: not the numbers that the first draw gets.
        rows = training_rows(loader, self.sequences, generator_at(args.seed, -1), "OwLore")
        size = max(1, args.per_device_train_batch_size)
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        batches = (collate(loader, part, args.device) for part in parts)
        measured = outlier_ratios(model, self._switch.layers, batches, self.threshold)
        ratios: list[float] = same_everywhere(torch.tensor(measured, device=args.device)).tolist()
        if not any(ratios):
            logger.warning(
                "no weight is %g times the mean of its layer: OwLore draws all layers alike",
                self.threshold,
            )
        return ratios

    def _activate(self, seed: int, step: int, optimizer: Any) -> None:
        """Train the layers of the period that a step is in, and no other."""
        assert self._switch is not None
        assert self.weights is not None
        assert self.layers is not None
        weights = torch.tensor(self.weights, dtype=torch.float64)
        # A layer without outliers comes after all that have some, and is not out of reach.
        weights = weights.clamp_min(max(float(weights.max()), 1.0) * 1e-9)
        active = draw(weights, self.layers, generator_at(seed, step // self.every))
        self._switch.only(active)
        for index, parameters in enumerate(self._switch.parameters):
            for parameter in parameters if index not in active else ():
                optimizer.state.pop(parameter, None)
