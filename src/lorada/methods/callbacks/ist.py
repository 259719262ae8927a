"""IST: trains the adapters of a few layers at a time, those of important layers more often.

In every step n_u layers are drawn with weights σ(-I), and only their adapters get gradients. Every
few steps sets S_j of n_v layers are drawn with weights σ(I). ℓ_j is the loss on some training rows
while the adapters of S_j are scaled down by a factor:

    R_j = exp(-ℓ_j),   a_j = R_j - mean(R)
    I_i ← I_i + μ Σ_{j: i ∈ S_j} a_j σ(I_i)(1 - σ(I_i))

Where scaling a layer down costs little, its score I rises: I measures how dispensable a layer is.

"Layer-wise Importance Matters: Less Memory for Better Performance in Parameter-Efficient
Fine-tuning of Large Language Models" (2024).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import Tensor, nn

from lorada.methods.callbacks.layers import (
    LayerCallback,
    draw,
    generator_at,
    same_everywhere,
    training_batches,
)
from lorada.tuners.base.part_config import Count, Number, check_values


@dataclass(eq=False)
class ISTCallback(LayerCallback):
    """Importance-aware sparse tuning over any adapter whose layers have a ``scaling``.

    For transformers' Trainer and TRL's trainers alike: ``Trainer(..., callbacks=[ISTCallback()])``.
    Adapter weights outside the layers (a head, the network of a prefix) train at every step.
    """

    kept_attribute: ClassVar[str] = "scores"
    # Share of the layers that train in a step, n_u / L.
    update_frac: Annotated[float, Field(gt=0, le=1)] = 0.25
    # Share of the layers that are scaled down in a set, n_v / L.
    suppress_frac: Annotated[float, Field(gt=0, le=1)] = 0.5
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.25  # what their scale is multiplied by
    every: Count = 10  # steps from one update of the scores to the next
    samples: Count = 3  # number of sets in an update, each of which takes one forward pass
    lr: Number = 10.0  # μ, the learning rate of the scores
    examples: Count = 16  # number of training rows to compare the sets on
    # I, one for each layer in the model's order.
    scores: list[float] = field(default_factory=list, init=False)
    _adapters: list[list[BaseTunerLayer]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        check_values(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the adapters of each layer, and the scores of a run that is resumed."""
        model: nn.Module = kwargs["model"]
        layers = self.trained_layers(model, args)
        self._adapters = [adapters_in(layer) for layer in layers.values()]
        count = sum(bool(adapters) for adapters in self._adapters)
        if count < 2 or count < len(self._adapters):
            raise ValueError(
                f"IST needs an adapter in at least two layers, and {type(model).__name__} has "
                f"{count}: choose a method such as lora"
            )
        self.scores = list(self.resumed(state) or [0.0] * count)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the scores when it is time, then draw the layers of this step."""
        step = state.global_step
        generator = generator_at(args.seed, step)
        if step > 0 and step % self.every == 0:
            # All of the training rows that sets are compared on, in one batch.
            batches = training_batches(
                kwargs["train_dataloader"], self.examples, self.examples, generator, args.device
            )
            self.update_scores(kwargs["model"], next(batches), generator)
        # σ(-I): the less dispensable a layer is, the more often it trains.
        weights = torch.sigmoid(-torch.tensor(self.scores, dtype=torch.float64))
        count = share_of(self.update_frac, len(weights))
        self.train_only(draw(weights, count, generator))

    def update_scores(
        self, model: nn.Module, batch: dict[str, Any], generator: torch.Generator
    ) -> None:
        """Compare a few sets of layers, each scaled down, on one batch."""
        scores = torch.tensor(self.scores, dtype=torch.float64)
        count = share_of(self.suppress_frac, len(scores))
        sets = different_sets(torch.sigmoid(scores), count, self.samples, generator)
        was_training = model.training
        model.eval()  # dropout would differ from set to set
        try:
            losses = torch.stack([self._loss_without(layers, model, batch) for layers in sets])
        finally:
            model.train(was_training)
        losses = same_everywhere(losses).cpu().double()
        if not losses.isnan().any():  # if any is, the training's own loss will report it
            self.scores = updated_scores(scores, sets, losses, self.lr).tolist()

    def _loss_without(
        self, layer_indices: list[int], model: nn.Module, batch: dict[str, Any]
    ) -> Tensor:
        """The loss on a batch while the adapters of some layers are scaled down."""
        adapters: list[BaseTunerLayer] = []
        for index in layer_indices:
            adapters += self._adapters[index]
        with torch.no_grad(), scaled_down(adapters, self.factor):
            loss = getattr(model(**batch), "loss", None)
        if loss is None:
            raise ValueError("IST compares losses, and the model returned none: add labels")
        result: Tensor = loss.float().reshape(())
        return result


def adapters_in(layer: nn.Module) -> list[BaseTunerLayer]:
    """The tuner layers with trainable parameters in a layer."""
    adapters = []
    for module in layer.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if not any(parameter.requires_grad for parameter in module.parameters()):
            continue
        if not isinstance(getattr(module, "scaling", None), dict):
            raise ValueError(
                f"IST scales adapters down by their scaling, which {type(module).__module__}."
                f"{type(module).__name__} does not have: use lora, dora, or lorada's own parts"
            )
        adapters.append(module)
    return adapters


@contextmanager
def scaled_down(layers: Sequence[BaseTunerLayer], factor: float) -> Iterator[None]:
    """Multiply the scale of every adapter in these tuner layers, and restore it afterwards."""
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            for name in layer._get_available_adapters():
                # Our own layers have an entry only while they are scaled.
                layer.scaling[name] = factor * layer.scaling.get(name, 1.0)
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.clear()
            layer.scaling.update(scaling)


def share_of(share: float, layers: int) -> int:
    """⌊share · layers⌋, but at least 1."""
    return max(1, int(share * layers))


def different_sets(
    weights: Tensor, count: int, samples: int, generator: torch.Generator
) -> list[list[int]]:
    """Draw up to ``samples`` sets of ``count`` layers, no two of them equal."""
    sets: list[list[int]] = []
    wanted = min(samples, math.comb(len(weights), count))
    for _ in range(100 * samples):  # extreme weights may never give as many different sets
        layer_indices = draw(weights, count, generator)
        if layer_indices not in sets:
            sets.append(layer_indices)
        if len(sets) == wanted:
            break
    return sets


def updated_scores(scores: Tensor, sets: list[list[int]], losses: Tensor, lr: float) -> Tensor:
    """The new scores: I + μ Σ_j a_j σ(I)(1 - σ(I)), summed over the sets that a layer is in."""
    rewards = torch.exp(-losses)  # R
    member = torch.zeros(len(sets), len(scores), dtype=scores.dtype)  # 1 where i ∈ S_j
    for j, layer_indices in enumerate(sets):
        member[j, layer_indices] = 1
    slope = torch.sigmoid(scores) * torch.sigmoid(-scores)  # σ(I)(1 - σ(I))
    return scores + lr * ((rewards - rewards.mean()) @ member) * slope
