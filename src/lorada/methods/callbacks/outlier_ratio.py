"""OWL's layer-wise outlier ratio: how uneven the work of a layer's weights is.

    A_ij = |W_ij| · ‖X_j‖₂                  for every linear map of layer ℓ
    D_ℓ  = 100 · share of A_ij > M · mean(A) over all entries of the layer

X_j is the j-th input feature over the tokens of some calibration rows.
"Outlier Weighed Layerwise Sparsity (OWL)" (2023).
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorada.support.progress import watched


def outlier_ratios(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    threshold: float = 13.0,
) -> list[float]:
    """D of each layer, in percent, in the order of ``layers``.

    Args:
        model: called with each batch, in eval mode and without gradients.
        layers: the layers by name.
        batches: what the calibration tokens are taken from; pads are left out where there is an
            attention mask.
        threshold: M.
    """
    squares: dict[nn.Module, Tensor] = {}
    mask: list[Tensor | None] = [None]

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        features = real_tokens(args[0].detach(), mask[0]).float()
        squares[module] = squares.get(module, 0) + features.square().sum(0)

    was_training = model.training
    model.eval()
    try:
        with ExitStack() as stack, torch.no_grad():
            for linear in (m for layer in layers.values() for m in linears(layer)):
                handle = linear.register_forward_pre_hook(keep)
                stack.callback(handle.remove)
            for batch in watched(batches, "Calibrating"):
                mask[0] = batch.get("attention_mask")
                model(**batch)
    finally:
        model.train(was_training)
    return [outlier_ratio(layer, squares, threshold) for layer in layers.values()]


def linears(layer: nn.Module) -> list[nn.Module]:
    """The linear maps in a layer."""
    return [module for module in layer.modules() if isinstance(module, nn.Linear | Conv1D)]


def real_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """(tokens, features), without pads where the mask fits the input."""
    flat = x.reshape(-1, x.shape[-1])
    if mask is None or mask.dim() != 2 or mask.numel() != len(flat):
        return flat
    return flat[mask.reshape(-1).to(x.device).bool()]


def outlier_ratio(layer: nn.Module, squares: Mapping[nn.Module, Tensor], threshold: float) -> float:
    """D of one layer from Σ X_j² of its linear maps."""
    used = [(module, squares[module].sqrt()) for module in linears(layer) if module in squares]
    if not used:  # as an expert that no token was sent to
        return 0.0
    # Twice over the weights, so that no more than one A exists at a time.
    made = [partial(weighed, module, norms) for module, norms in used]
    entries = sum(a().numel() for a in made)
    mean = sum(float(a().double().sum()) for a in made) / entries
    return 100 * sum(int((a() > threshold * mean).sum()) for a in made) / entries


def weighed(module: Any, norms: Tensor) -> Tensor:
    """A of one linear map."""
    size: Tensor = module.weight.detach().float().abs()
    return size * (norms[:, None] if isinstance(module, Conv1D) else norms)
