"""SHiRA-SNIP: chooses the entries of each weight that a sparse adapter trains.

PEFT's ``ShiraConfig`` trains r·(in + out) entries of each weight W, which a mask function chooses.
SNIP takes those with the largest |W · ḡ|, where ḡ is the mean gradient of the loss over calibration
batches. From "Sparse High Rank Adapters" (2024), which does not say how many batches.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftConfig, ShiraConfig
from peft.tuners.shira import ShiraModel
from torch import Tensor, nn

from lorada.support.processes import made_by_first
from lorada.support.progress import progress_bar
from lorada.tuners import LoradaConfig
from lorada.tuners.base.injection import all_or_nothing

PROBE = "snip"


def snip(
    model: nn.Module, batches: Iterable[Any], *, config: PeftConfig, calibration: int = 8
) -> PeftConfig:
    """Choose the entries that the SHiRA parts of a config train, by backward passes of the base.

    The model is left as it was. Beside the sum of the gradients of every weight, in fp32, the
    gradient of only one weight is in memory at a time.

    Args:
        model: the base model, without adapters.
        batches: arguments of the model, labels included.
        config: a ``ShiraConfig``, or a stack with such a part.
        calibration: how many batches to take.

    Returns:
        A copy of ``config`` with masks that fit only this model.

    Raises:
        ValueError: for a config without such a part, a weight that gets no gradient, no batches, or
            batches that give no loss.
    """
    config = copy.deepcopy(config)
    parts = [part for part in _parts(config) if isinstance(part, ShiraConfig)]
    if not parts:
        raise ValueError(
            f"{type(config).__name__} has no ShiraConfig for SNIP to choose entries of"
        )
    chosen = list(islice(batches, calibration))
    if not chosen:
        raise ValueError(f"SNIP got no batches to calibrate on (calibration={calibration})")
    counts = {
        module: part.r * sum(module.weight.shape)
        for part in parts
        for module in _targets(model, part)
    }
    best = _best_entries(model, chosen, counts)
    # Several processes may order equal scores differently, so all take the first one's choice.
    entries = made_by_first(lambda: [best[module].cpu() for module in counts])
    mask_fn = _mask_function(dict(zip(counts, entries, strict=True)))
    for part in parts:
        part.mask_type, part.mask_fn = "snip", mask_fn
    return config


def _parts(config: PeftConfig) -> list[PeftConfig]:
    return config.parts if isinstance(config, LoradaConfig) else [config]


def _targets(model: nn.Module, part: ShiraConfig) -> list[nn.Linear]:
    """The modules that PEFT adapts for a part, found by a trial injection that is undone."""
    found: list[nn.Linear] = []
    probe = copy.deepcopy(part)
    probe.mask_fn = lambda base_layer, r, **_: found.append(base_layer)
    try:
        with _same_trainable(model), all_or_nothing(model, PROBE):
            ShiraModel(model, {PROBE: probe}, PROBE).unload()
    except TypeError as error:
        raise ValueError(f"SHiRA: {' '.join(str(error).split())}") from error
    for module in found:
        if not module.weight.is_floating_point():
            raise ValueError(
                f"SNIP needs the gradient of {_name(model, module)}, whose weight is "
                f"{module.weight.dtype}: load the model without quantisation"
            )
    return found


def _best_entries(
    model: nn.Module, batches: list[Any], counts: dict[nn.Linear, int]
) -> dict[nn.Linear, Tensor]:
    """The flat indices of the entries with the largest |W · ḡ| of each module's weight."""
    sums: dict[Tensor, Tensor] = {}

    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient, weight.grad = weight.grad.float(), None
        sums[weight] = sums[weight].add_(gradient) if weight in sums else gradient

    with _only_gradients_of(model, counts), ExitStack() as stack:
        for module in counts:
            hook = module.weight.register_post_accumulate_grad_hook(add)
            stack.callback(hook.remove)
        for batch in progress_bar(batches, "Calibrating"):
            loss = _loss(model, batch)
            if loss.requires_grad:
                loss.backward()
    best = {}
    for module, count in counts.items():
        if module.weight not in sums:
            raise ValueError(
                f"SNIP: no gradient of the loss reaches {_name(model, module)}: "
                "leave it out of target_modules"
            )
        score = (module.weight.detach().float() * sums.pop(module.weight)).abs().flatten()
        if not score.isfinite().all():
            raise ValueError(f"SNIP: the gradient of {_name(model, module)} is not finite")
        # topk takes an exact number; a threshold would take more where scores are equal.
        best[module] = score.topk(count, sorted=False).indices
    return best


@contextmanager
def _same_trainable(model: nn.Module) -> Iterator[None]:
    """Restore afterwards which parameters are trainable."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad = requires_grad


@contextmanager
def _only_gradients_of(model: nn.Module, modules: Iterable[nn.Linear]) -> Iterator[None]:
    """Give gradients to these modules' weights only, without dropout; restore all afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with _same_trainable(model), torch.enable_grad():
            model.eval().requires_grad_(False)
            for module in modules:
                module.weight.requires_grad_(True)
            yield
    finally:
        for module in modules:
            module.weight.grad = None
        for part, training in modes:
            part.training = training


def _loss(model: nn.Module, batch: Any) -> Tensor:
    device = next(model.parameters()).device
    inputs = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in batch.items()}
    loss = getattr(model(**inputs), "loss", None)
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"SNIP: the model gives no loss for a batch of {', '.join(batch)}: add labels"
        )
    return loss


def _mask_function(best: dict[nn.Linear, Tensor]) -> Callable[..., Tensor]:
    """The mask function of a config. PEFT copies configs, and the copies share this function."""
    entries = WeakKeyDictionary(best)

    def mask_fn(base_layer: nn.Linear, r: int, **_: Any) -> Tensor:
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


def _name(model: nn.Module, module: nn.Module) -> str:
    return next(str(name) for name, other in model.named_modules() if other is module)
