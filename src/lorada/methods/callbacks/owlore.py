"""OwLore: trains a few whole layers at a time, those with many outliers more often.

Every K steps γ layers are drawn, without replacement and with probabilities p_ℓ = D_ℓ / Σ D, where
D is OWL's outlier ratio. All their weights train, and all other layers are frozen. Embeddings, the
last norm and the head are never frozen. With GaLore's optimizer this is OwLore, with AdamW
OwLore-Full.

"OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for Memory-Efficient LLM
Fine-tuning" (2024).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.pytorch_utils import Conv1D

from lorada.methods.callbacks.layers import (
    LayerCallback,
    draw,
    generator_at,
    same_everywhere,
    training_batches,
)
from lorada.support.progress import progress_bar
from lorada.tuners.base.part_config import Count, Number, check_values

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class OwLoreCallback(LayerCallback):
    """Trains γ layers at a time and deletes the optimizer's state of the others.

    For transformers' Trainer and TRL's trainers alike:
    ``Trainer(..., callbacks=[OwLoreCallback()])``.
    """

    kept_attribute: ClassVar[str] = "weights"  # those of the model before training
    layers: Count = 5  # γ, how many train at a time; all where there are fewer
    every: Count = 50  # K, steps from one draw to the next
    # Sampling weight of each layer; None for the outlier ratios of the model, measured on rows of
    # the training set before the first step.
    weights: Sequence[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    sequences: Count = 128  # how many rows they are measured on
    threshold: Number = 13.0  # M; an outlier is larger than M times the mean

    def __post_init__(self) -> None:
        check_values(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Weigh the layers, and draw the first ones; in a resumed run those that were training."""
        model: nn.Module = kwargs["model"]
        layers = self.trained_layers(model, args)
        count = len(layers)
        if count < self.layers:
            logger.warning(
                "OwLore trains %d layers at a time and %s has %d: taking all",
                self.layers, type(model).__name__, count,
            )  # fmt: skip
        self.weights = self.resumed(state) or self.weights
        if self.weights is None:
            self.weights = self._measured(model, layers, args, kwargs["train_dataloader"])
        if len(self.weights) != count:
            raise ValueError(f"OwLore has {len(self.weights)} weights for {count} layers")
        self._activate(args.seed, state.global_step, kwargs["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw other layers when it is time."""
        if state.global_step % self.every == 0:
            self._activate(args.seed, state.global_step, kwargs["optimizer"])

    def _measured(
        self, model: nn.Module, layers: dict[str, nn.Module], args: TrainingArguments, loader: Any
    ) -> list[float]:
        """The outlier ratio of each layer, on rows of the training set."""
        # Step -1 has a generator that no draw of layers uses.
        generator = generator_at(args.seed, -1)
        batch_size = args.per_device_train_batch_size
        batches = training_batches(loader, self.sequences, batch_size, generator, args.device)
        measured = outlier_ratios(model, layers, batches, self.threshold)
        ratios: list[float] = same_everywhere(torch.tensor(measured, device=args.device)).tolist()
        return ratios

    def _activate(self, seed: int, step: int, optimizer: Any) -> None:
        """Train only the layers drawn for the period of K steps that contains ``step``."""
        assert self.weights is not None
        weights = torch.tensor(self.weights, dtype=torch.float64)
        # Layers without outliers may be drawn too, but only after all layers that have some.
        weights = weights.clamp_min(max(float(weights.max()), 1.0) * 1e-9)
        count = min(self.layers, len(weights))
        active = draw(weights, count, generator_at(seed, step // self.every))
        self.train_only(active)
        for index, parameters in enumerate(self._parameters):
            if index in active:
                continue
            for parameter in parameters:
                optimizer.state.pop(parameter, None)


def outlier_ratios(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    threshold: float = 13.0,
) -> list[float]:
    """OWL's outlier ratio D of each layer: the share of its weights far above the layer's mean.

        A_ij = |W_ij| · ‖X_j‖₂                  for every linear map of layer ℓ
        D_ℓ  = 100 · share of A_ij > M · mean(A) over all entries of the layer

    X_j is the j-th input feature over the tokens of the calibration rows.
    "Outlier Weighed Layerwise Sparsity (OWL)" (2023). Pads are left out where there is an attention
    mask.

    Returns:
        D in percent, in the order of ``layers``.
    """
    squares: dict[nn.Module, Tensor] = {}  # Σ X_j² of each linear map
    mask: Tensor | None = None

    def add_squares(module: nn.Module, args: tuple[Any, ...]) -> None:
        features = real_tokens(args[0].detach(), mask).float()
        squares[module] = squares.get(module, 0) + features.square().sum(0)

    was_training = model.training
    model.eval()
    try:
        with ExitStack() as stack, torch.no_grad():
            for layer in layers.values():
                for linear in linears(layer):
                    handle = linear.register_forward_pre_hook(add_squares)
                    stack.callback(handle.remove)
            for batch in progress_bar(batches, "Calibrating"):
                mask = batch.get("attention_mask")
                model(**batch)
    finally:
        model.train(was_training)
    return [outlier_ratio(layer, squares, threshold) for layer in layers.values()]


def linears(layer: nn.Module) -> list[nn.Module]:
    """The linear maps in a layer."""
    return [module for module in layer.modules() if isinstance(module, nn.Linear | Conv1D)]


def real_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """The inputs (tokens, features), without pads if the mask has their shape."""
    flat = x.reshape(-1, x.shape[-1])
    if mask is None or mask.dim() != 2 or mask.numel() != len(flat):
        return flat
    return flat[mask.reshape(-1).to(x.device).bool()]


def outlier_ratio(layer: nn.Module, squares: Mapping[nn.Module, Tensor], threshold: float) -> float:
    """D of one layer from Σ X_j² of its linear maps."""
    # A map may be missing, such as an expert that no token was sent to.
    measured: list[Any] = [linear for linear in linears(layer) if linear in squares]
    if not measured:
        return 0.0
    entries: int = sum(linear.weight.numel() for linear in measured)
    # A is computed twice, a map at a time: that of a whole layer would be as large as its weights.
    total = 0.0
    for linear in measured:
        # Rows on the device, which may lack fp64, and their sums in fp64.
        row_sums = _weighed_entries(linear, squares[linear]).sum(-1)
        total += float(row_sums.cpu().double().sum())
    bound = threshold * (total / entries)  # M · mean(A)
    outliers = 0
    for linear in measured:
        outliers += int((_weighed_entries(linear, squares[linear]) > bound).sum())
    return 100 * outliers / entries


def _weighed_entries(linear: Any, squares: Tensor) -> Tensor:
    """A_ij = |W_ij| · ‖X_j‖₂ of one linear map, given Σ X_j²."""
    norms = squares.sqrt()
    if isinstance(linear, Conv1D):  # its weight is (in, out)
        norms = norms[:, None]
    sizes: Tensor = linear.weight.detach().float().abs() * norms
    return sizes
