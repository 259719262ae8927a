"""OWL's outlier ratio of a layer: the share of its weights that are far above the layer's mean.

    A_ij = |W_ij| · ‖X_j‖₂                  for every linear map of layer ℓ
    D_ℓ  = 100 · share of A_ij > M · mean(A) over all entries of the layer

X_j is the j-th input feature over the tokens of the calibration rows.
"Outlier Weighed Layerwise Sparsity (OWL)" (2023).
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorada.support.progress import progress_bar


def outlier_ratios(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    threshold: float = 13.0,
) -> list[float]:
    """Measure D of each layer.

    Args:
        model: called with each batch, in eval mode and without gradients.
        layers: the layers by name.
        batches: the calibration batches; pads are left out where there is an attention mask.
        threshold: M.

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
            for linear in (m for layer in layers.values() for m in linears(layer)):
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
    used = [(module, squares[module].sqrt()) for module in linears(layer) if module in squares]
    if not used:  # such as an expert that no token was sent to
        return 0.0
    # A is computed twice, to have it in memory for only one linear map at a time.
    maps = [partial(weighted_sizes, module, norms) for module, norms in used]
    entries = sum(int(module.get_parameter("weight").numel()) for module, _ in used)
    mean = sum(float(sizes().double().sum()) for sizes in maps) / entries
    return 100 * sum(int((sizes() > threshold * mean).sum()) for sizes in maps) / entries


def weighted_sizes(module: Any, norms: Tensor) -> Tensor:
    """A of one linear map, in the shape of its weight."""
    size: Tensor = module.weight.detach().float().abs()
    return size * (norms[:, None] if isinstance(module, Conv1D) else norms)
