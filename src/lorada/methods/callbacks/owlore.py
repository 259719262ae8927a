"""OwLore: trains a few whole layers at a time, those with many outliers more often.

Every K steps γ layers are drawn, without replacement and with probabilities p_ℓ = D_ℓ / Σ D, where
D is OWL's outlier ratio. All their weights train, and all other layers are frozen. Embeddings, the
last norm and the head are never frozen. With GaLore's optimizer this is OwLore, with AdamW
OwLore-Full.

"OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for Memory-Efficient LLM
Fine-tuning" (2024).
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from lorada.methods.callbacks.layers import LayerCallback, LayerSwitch
from lorada.methods.callbacks.outlier_ratio import outlier_ratios
from lorada.methods.callbacks.sampling import (
    collate,
    draw,
    generator_at,
    same_everywhere,
    training_rows,
)

logger = logging.getLogger(__name__)

LAYERS = 5  # how many train at a time by default


class OwLoreCallback(LayerCallback):
    """Trains γ layers at a time and deletes the optimizer's state of the others.

    For transformers' Trainer and TRL's trainers alike:
    ``Trainer(..., callbacks=[OwLoreCallback()])``.

    Args:
        layers: γ, how many layers train at a time; None for 5, or all where there are fewer.
        every: K, steps from one draw to the next.
        weights: sampling weight of each layer; None for the outlier ratios of the model, measured
            on rows of the training set before the first step.
        sequences: how many rows they are measured on.
        threshold: M; an outlier is larger than M times the mean.

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

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the settings, and the weights of the model before training."""
        names = ("layers", "every", "sequences", "threshold")
        settings = {name: getattr(self, name) for name in names}
        return {"args": settings, "attributes": {"weights": self.weights}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Weigh the layers, and draw the first ones; in a resumed run those that were training.

        Raises:
            ValueError: for more layers than there are, or weights of another number of layers.
        """
        model: nn.Module = kwargs["model"]
        switch = self.switch_on(model, args)
        count = len(switch.layers)
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
        self.weights = self.resumed(state, "weights") or self.weights
        if self.weights is None:
            self.weights = self._measured(model, switch, args, kwargs["train_dataloader"])
        if len(self.weights) != count:
            raise ValueError(f"OwLore has {len(self.weights)} weights for {count} layers")
        self._activate(args.seed, state.global_step, kwargs["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw other layers when it is time."""
        if state.global_step % self.every == 0:
            self._activate(args.seed, state.global_step, kwargs["optimizer"])

    def _measured(
        self, model: nn.Module, switch: LayerSwitch, args: TrainingArguments, loader: Any
    ) -> list[float]:
        """The outlier ratio of each layer, on rows of the training set."""
        # Step -1 has a generator that no draw of layers uses.
        rows = training_rows(loader, self.sequences, generator_at(args.seed, -1), "OwLore")
        size = max(1, args.per_device_train_batch_size)
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        batches = (collate(loader, part, args.device) for part in parts)
        measured = outlier_ratios(model, switch.layers, batches, self.threshold)
        ratios: list[float] = same_everywhere(torch.tensor(measured, device=args.device)).tolist()
        if not any(ratios):
            logger.warning(
                "no weight is %g times the mean of its layer: OwLore draws all layers alike",
                self.threshold,
            )
        return ratios

    def _activate(self, seed: int, step: int, optimizer: Any) -> None:
        """Train only the layers drawn for the period of K steps that contains ``step``."""
        assert self._switch is not None
        assert self.weights is not None
        assert self.layers is not None
        weights = torch.tensor(self.weights, dtype=torch.float64)
        # Layers without outliers may be drawn too, but only after all layers that have some.
        weights = weights.clamp_min(max(float(weights.max()), 1.0) * 1e-9)
        active = draw(weights, self.layers, generator_at(seed, step // self.every))
        self._switch.only(active)
        for index, parameters in enumerate(self._switch.parameters):
            for parameter in parameters if index not in active else ():
                optimizer.state.pop(parameter, None)
