"""SHiRA-SNIP: chooses the entries of each weight that a sparse adapter trains.

PEFT's ``ShiraConfig`` trains r·(in + out) entries of each weight W, which a mask function chooses.
SNIP takes those with the largest |W · ḡ|, where ḡ is the mean gradient of the loss over calibration
batches. From "Sparse High Rank Adapters" (2024), which does not say how many batches.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftConfig, ShiraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from torch import Tensor, nn

from lorada.support.processes import broadcast_from_main
from lorada.support.progress import progress_bar
from lorada.tuners import LoradaConfig


def snip(
    model: nn.Module, batches: Iterable[Any], *, config: PeftConfig, calibration: int = 8
) -> PeftConfig:
    """Choose the entries that the SHiRA parts of a config train, by backward passes of the base.

    The model is left as it was.

    Args:
        model: the base model, without adapters.
        batches: arguments of the model, labels included; ``calibration`` of them are taken.
        config: a ``ShiraConfig``, or a stack with such a part.
        calibration: how many batches to take.

    Returns:
        A copy of ``config`` with masks that fit only this model.

    Raises:
        ValueError: for a config without SHiRA, or no batch to calibrate on.
    """
    config = copy.deepcopy(config)  # the caller's may be trained on another model
    all_parts = config.parts if isinstance(config, LoradaConfig) else [config]
    parts = [part for part in all_parts if isinstance(part, ShiraConfig)]
    if not parts:
        raise ValueError(
            f"{type(config).__name__} has no ShiraConfig for SNIP to choose entries of"
        )
    calibration_batches = list(islice(batches, calibration))
    if not calibration_batches:
        raise ValueError(f"SNIP got no batches to calibrate on (calibration={calibration})")
    counts = {}  # name of a module → how many entries of its weight train
    for part in parts:
        for name, module in _targets(model, part).items():
            counts[name] = part.r * sum(module.weight.shape)
    best = _best_entries(model, calibration_batches, counts)
    # Several processes may order equal scores differently, so all take the first one's choice.
    entries = broadcast_from_main(lambda: {name: flat.cpu() for name, flat in best.items()})
    mask_fn = _mask_function({model.get_submodule(name): entries[name] for name in counts})
    for part in parts:
        part.mask_type, part.mask_fn = "snip", mask_fn
    return config


def _targets(model: nn.Module, part: ShiraConfig) -> dict[str, nn.Linear]:
    """The modules that PEFT adapts for a part, by name.

    A part that adapts no linear layer, quantised weights, and more entries than a weight has are
    refused.
    """
    part = _maybe_include_all_linear_layers(part, model)
    targets = {}
    for name, module in model.named_modules():
        if not part.target_modules or not isinstance(module, nn.Linear):
            continue
        if check_target_module_exists(part, name):
            targets[name] = module
    if not targets:
        raise ValueError(f"SHiRA: target_modules={part.target_modules} match no linear layer")
    for name, module in targets.items():
        if not module.weight.is_floating_point():
            raise ValueError(
                f"SNIP needs the gradient of {name}, whose weight is {module.weight.dtype}: load "
                "the model without quantisation"
            )
        if part.r * sum(module.weight.shape) > module.weight.numel():
            raise ValueError(
                f"SHiRA: r={part.r} takes more entries than {name} has, in a weight of "
                f"{tuple(module.weight.shape)}: lower it"
            )
    return targets


def _best_entries(
    model: nn.Module, batches: list[Any], counts: dict[str, int]
) -> dict[str, Tensor]:
    """The flat indices of the entries with the largest |W · ḡ| of each module's weight.

    A weight that no gradient reaches, and a gradient that is not finite, are refused.
    """
    weights = {name: model.get_parameter(f"{name}.weight") for name in counts}
    sums = _summed_gradients(model, batches, weights)
    best = {}
    for name, count in counts.items():
        if name not in sums:
            raise ValueError(
                f"SNIP: no gradient of the loss reaches {name}: leave it out of target_modules"
            )
        score = (weights[name].detach().float() * sums.pop(name)).abs().flatten()
        if not score.isfinite().all():
            raise ValueError(f"SNIP: the gradient of {name} is not finite")
        # topk takes an exact number; a threshold would take more where scores are equal.
        best[name] = score.topk(count, sorted=False).indices
    return best


def _summed_gradients(
    model: nn.Module, batches: list[Any], weights: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The sum over the batches of the loss's gradient by each weight, in float32.

    A weight that no gradient reaches is left out. The mean ḡ orders entries as their sum does.

    Raises:
        ValueError: for a batch without labels, which gives no loss.
    """
    sums: dict[str, Tensor] = {}
    device = next(model.parameters()).device
    with _gradients_of(model, weights.values()):
        for batch in progress_bar(batches, "Calibrating"):
            inputs = {
                key: value.to(device) if isinstance(value, Tensor) else value
                for key, value in batch.items()
            }
            loss = getattr(model(**inputs), "loss", None)
            if loss is None:
                raise ValueError(f"SNIP: no loss for a batch of {', '.join(batch)}: add labels")
            if not loss.requires_grad:  # none of the weights takes part in this batch
                continue
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    sums[name] = sums.get(name, 0.0) + gradient.float()
    return sums


@contextmanager
def _gradients_of(model: nn.Module, weights: Iterable[Tensor]) -> Iterator[None]:
    """Give gradients to these weights only, without dropout; restore all afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with torch.enable_grad():
            model.eval().requires_grad_(False)
            for weight in weights:
                weight.requires_grad_(True)
            yield
    finally:
        for parameter, requires_grad in trained:
            parameter.requires_grad = requires_grad
        for module, training in modes:
            module.training = training


def _mask_function(best: dict[nn.Module, Tensor]) -> Callable[..., Tensor]:
    """The mask function of a config. PEFT copies configs, and the copies share this function.

    It refuses a layer for which no entries were chosen.
    """
    entries = WeakKeyDictionary(best)

    def mask_fn(base_layer: nn.Linear, r: int, **_: Any) -> Tensor:
        """The entries that train in one weight, as PEFT's SHiRA asks for them: 1 there, else 0.

        Raises:
            ValueError: for a layer or rank for which no entries were chosen.
        """
        weight = base_layer.weight
        if base_layer not in entries or len(entries[base_layer]) != r * sum(weight.shape):
            raise ValueError(
                f"SNIP has chosen no entries for r={r} of this {type(base_layer).__name__}"
                f"{tuple(weight.shape)}: call snip() with the model and config that are trained"
            )
        mask = torch.zeros_like(weight, requires_grad=False)
        mask.view(-1)[entries[base_layer].to(weight.device)] = 1
        return mask

    return mask_fn
