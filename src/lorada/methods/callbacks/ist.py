"""IST: train the adapters of a few layers at a time, fewer of those that matter least.

Every step, n_u layers are drawn with weights σ(-I) and only their adapters get gradients. Every
few steps, sets S_j of n_v layers are drawn with weights σ(I), the adapters in S_j are turned down
by a factor, and the loss ℓ_j of some training rows says what that cost:

    R_j = exp(-ℓ_j),   a_j = R_j - mean(R)
    I_i ← I_i + μ Σ_{j: i ∈ S_j} a_j σ(I_i)(1 - σ(I_i))

Where turning a layer down costs little its score rises, and it is drawn less often: I measures how
dispensable a layer is.

"Layer-wise Importance Matters: Less Memory for Better Performance in Parameter-Efficient
Fine-tuning of Large Language Models" (2024).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
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


class ISTCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Importance-aware sparse tuning over any adapter whose layers have a ``scaling``.

    For transformers' Trainer and TRL's trainers alike: ``Trainer(..., callbacks=[ISTCallback()])``.
    Adapter weights outside the layers (a head, the network of a prefix) train at every step.

    Args:
        update_frac: share of the layers that train in a step, n_u / L.
        suppress_frac: share of the layers that are turned down in a test, n_v / L.
        factor: what turned down means.
        every: steps from one update of the scores to the next.
        samples: sets that are compared in an update; so many forwards it costs.
        lr: μ, the rate of the scores.
        examples: training rows that the sets are compared on.

    Attributes:
        scores: I, one per layer in the model's order.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        update_frac: float = 0.25,
        suppress_frac: float = 0.5,
        factor: float = 0.25,
        every: int = 10,
        samples: int = 3,
        lr: float = 10.0,
        examples: int = 16,
    ) -> None:
        for name, share in (("update_frac", update_frac), ("suppress_frac", suppress_frac)):
            if not 0 < share <= 1:
                raise ValueError(f"{name}={share} must lie in (0, 1]")
        if not 0 < factor < 1:
            raise ValueError(f"factor={factor} must lie in (0, 1): it turns adapters down")
        for name, value in (("every", every), ("samples", samples), ("examples", examples)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.settings = {
            "update_frac": update_frac, "suppress_frac": suppress_frac, "factor": factor,
            "every": every, "samples": samples, "lr": lr, "examples": examples,
        }  # fmt: skip
        self.update_frac, self.suppress_frac, self.factor = update_frac, suppress_frac, factor
        self.every, self.samples, self.lr, self.examples = every, samples, lr, examples
        self.scores: list[float] = []
        self._switch: Switch | None = None
        self._adapters: list[list[BaseTunerLayer]] = []

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the settings and the scores."""
        return {"args": dict(self.settings), "attributes": {"scores": list(self.scores)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the adapter of each layer, and the scores of a run that is resumed.

        Raises:
            ValueError: for a model without adapters in two layers, an adapter that cannot be
                turned down, or the scores of another model.
        """
        if self._switch is not None:
            self._switch.all()  # a run that ended in an error has not
        model: nn.Module = kwargs["model"]
        let_gradients_through(model, args)
        self._switch = Switch(model)
        self._adapters = [adapters_in(layer) for layer in self._switch.layers.values()]
        count = sum(bool(adapters) for adapters in self._adapters)
        if count < 2 or count < len(self._adapters):
            raise ValueError(
                f"IST needs an adapter in at least two layers, and {type(model).__name__} has "
                f"{count}: choose a method such as lora"
            )
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        self.scores = [0.0] * count
        if state.global_step > 0 and isinstance(saved, dict):
            self.scores = list(saved["attributes"]["scores"])
        if len(self.scores) != count:
            raise ValueError(
                f"the checkpoint has scores of {len(self.scores)} layers, and adapters are in "
                f"{count}: resume with the method of that run"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the scores when it is time, then draw the layers of this step."""
        assert self._switch is not None
        generator = generator_at(args.seed, state.global_step)
        if state.global_step > 0 and state.global_step % self.every == 0:
            loader = kwargs["train_dataloader"]
            rows = training_rows(loader, self.examples, generator, "IST")
            batch = collate(loader, rows, args.device)
            self.update_scores(kwargs["model"], batch, generator)
        weights = torch.sigmoid(-torch.tensor(self.scores, dtype=torch.float64))
        self._switch.only(draw(weights, share_of(self.update_frac, len(weights)), generator))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make every adapter trainable again."""
        if self._switch is not None:
            self._switch.all()

    def update_scores(
        self, model: nn.Module, batch: dict[str, Any], generator: torch.Generator
    ) -> None:
        """Compare a few sets of layers, each turned down, on one batch."""
        scores = torch.tensor(self.scores, dtype=torch.float64)
        count = share_of(self.suppress_frac, len(scores))
        sets = different_sets(torch.sigmoid(scores), count, self.samples, generator)
        was_training = model.training
        model.eval()
        try:
            losses = torch.stack([self._loss(model, batch, chosen) for chosen in sets])
        finally:
            model.train(was_training)
        losses = same_everywhere(losses).double().cpu()
        if not losses.isnan().any():  # the step's own loss will be NaN as well, and says so
            self.scores = updated(scores, sets, losses, self.lr).tolist()

    def _loss(self, model: nn.Module, batch: dict[str, Any], chosen: list[int]) -> Tensor:
        layers = [adapter for index in chosen for adapter in self._adapters[index]]
        with torch.no_grad(), turned_down(layers, self.factor):
            output = model(**batch)
        loss = getattr(output, "loss", None)
        if loss is None:
            raise ValueError(
                f"IST compares losses, and {type(model).__name__} returned none: "
                "the rows need labels"
            )
        result: Tensor = loss.float().reshape(())
        return result


def adapters_in(layer: nn.Module) -> list[BaseTunerLayer]:
    """The tuner layers in a layer that have something to train.

    Raises:
        ValueError: for one that has no scale to turn down.
    """
    adapters = [
        module
        for module in layer.modules()
        if isinstance(module, BaseTunerLayer) and any(p.requires_grad for p in module.parameters())
    ]
    for adapter in adapters:
        if not isinstance(getattr(adapter, "scaling", None), dict):
            raise ValueError(
                f"IST turns adapters down by their scaling, which {type(adapter).__module__}."
                f"{type(adapter).__name__} does not have: use lora, dora, or lorada's own parts"
            )
    return adapters


@contextmanager
def turned_down(layers: Sequence[BaseTunerLayer], factor: float) -> Iterator[None]:
    """Multiply the scale of every adapter of these layers, and give each its own back."""
    before = [(layer.scaling, dict(layer.scaling)) for layer in layers]
    try:
        for layer in layers:
            for name in layer._get_available_adapters():
                layer.scaling[name] = factor * layer.scaling.get(name, 1.0)
        yield
    finally:
        for scaling, values in before:
            scaling.clear()
            scaling.update(values)


def share_of(share: float, layers: int) -> int:
    """⌊share · layers⌋, and at least one."""
    return max(1, int(share * layers))


def different_sets(
    weights: Tensor, count: int, samples: int, generator: torch.Generator
) -> list[list[int]]:
    """Up to ``samples`` sets of ``count`` layers, no two of them equal."""
    sets: list[list[int]] = []
    possible = min(samples, math.comb(len(weights), count))
    for _ in range(100 * samples):  # where the weights leave no other set, fewer have to do
        chosen = draw(weights, count, generator)
        if chosen not in sets:
            sets.append(chosen)
        if len(sets) == possible:
            break
    return sets


def updated(scores: Tensor, sets: list[list[int]], losses: Tensor, lr: float) -> Tensor:
    """I + μ Σ_j a_j σ(I)(1 - σ(I)) over the sets that a layer is in."""
    rewards = torch.exp(-losses)
    member = torch.zeros(len(sets), len(scores), dtype=scores.dtype)
    for j, chosen in enumerate(sets):
        member[j, chosen] = 1
    spread = torch.sigmoid(scores) * torch.sigmoid(-scores)
    return scores + lr * ((rewards - rewards.mean()) @ member) * spread
