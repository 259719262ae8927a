"""GaLore: AdamW with the moments of a low-rank projection of the gradient.

A weight with the gradient G (m × n) is updated with the singular vectors of an earlier G:

    m ≥ n:  Q = top-r right singular vectors (r × n),   G~ = G Qᵀ,   ΔW = α N(G~) Q
    m < n:  P = top-r left singular vectors (m × r),    G~ = Pᵀ G,   ΔW = α P N(G~)

    W ← W - η ΔW,   then   W ← W - η λ W

N is Adam's direction with bias correction. The projector Q or P is computed at the first step of a
weight, and again after every ``refresh`` steps of that weight.

"GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection" (2024).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from lorada.methods.callbacks.layers import layers_of


class GaLoreAdamW(torch.optim.Optimizer):
    """AdamW that projects the gradients of the parameter groups that have a ``rank``.

    The state of a parameter is a step count, two moments of the projected gradient and the
    projector, in the dtype of the parameter. A parameter whose state is deleted starts again with a
    new projector.

    A group may have a ``rank`` r (else it gets plain AdamW), the steps from one projector to the
    next (``refresh``) and α (``scale``).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "rank": None, "refresh": 100, "scale": 1.0,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """One step of one parameter, in the names of the equations above: W, G, G~, N."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        steps_done = state.get("step", 0)
        projects = group["rank"] is not None
        tall = gradient.dim() == 2 and gradient.shape[0] >= gradient.shape[1]  # m ≥ n
        if projects:
            if steps_done % group["refresh"] == 0:
                state["projector"] = projector(gradient, group["rank"], tall)
            gradient = _project(gradient, state["projector"], tall)
        if steps_done == 0:
            state["first"] = torch.zeros_like(gradient)
            state["second"] = torch.zeros_like(gradient)
        state["step"] = steps_done + 1
        direction = _adam_direction(gradient, state, group["betas"], group["eps"])
        if projects:
            direction = _project_back(direction, state["projector"], tall).mul_(group["scale"])
        parameter.add_(direction, alpha=-group["lr"])
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])


def _adam_direction(
    gradient: Tensor, state: dict[str, Any], betas: tuple[float, float], eps: float
) -> Tensor:
    """N: Adam's direction with bias correction; it updates the moments of the state."""
    beta1, beta2 = betas
    first, second, step = state["first"], state["second"], state["step"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = second.sqrt().div_((1 - beta2**step) ** 0.5).add_(eps)
    direction: Tensor = (first / root).div_(1 - beta1**step)
    return direction


def _project(gradient: Tensor, vectors: Tensor, tall: bool) -> Tensor:
    """G~ = G Qᵀ of a tall gradient, else Pᵀ G."""
    return gradient @ vectors.T if tall else vectors.T @ gradient


def _project_back(direction: Tensor, vectors: Tensor, tall: bool) -> Tensor:
    """N Q of a tall weight, else P N."""
    return direction @ vectors if tall else vectors @ direction


def projector(gradient: Tensor, rank: int, tall: bool) -> Tensor:
    """The top r singular vectors of a gradient: Q (r, n) if ``tall`` (m ≥ n), else P (m, r)."""
    # The decomposition has no kernel in half precision.
    widened = gradient if gradient.dtype == torch.float64 else gradient.float()
    left, _, right = torch.linalg.svd(widened, full_matrices=False)
    vectors: Tensor = right[:rank] if tall else left[:, :rank]
    return vectors.contiguous().to(gradient.dtype)


def galore(
    model: nn.Module,
    args: TrainingArguments,
    *,
    rank: int = 256,
    refresh: int = 100,
    scale: float = 1.0,
) -> GaLoreAdamW:
    """Make the optimizer of OwLore: GaLore for the matrices of the layers, AdamW for the rest.

    For the stock Trainer: ``Trainer(model, args, optimizers=(galore(model, args), None), ...)``,
    with all parameters trainable that train at any time. ``refresh`` counts the steps from one
    projector to the next.
    """
    matrix_ids = set()  # of those that are projected
    for layer in layers_of(model).values():
        for parameter in layer.parameters():
            if parameter.requires_grad and parameter.dim() == 2:
                matrix_ids.add(id(parameter))
    if not matrix_ids:
        raise ValueError(
            f"GaLore found no trainable matrix in the layers of {type(model).__name__}"
        )
    decayed_names = set(Trainer.get_decay_parameter_names(None, model))
    # One group for each combination: is it projected, and does it decay?
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_projected, decays = id(parameter) in matrix_ids, name in decayed_names
            groups.setdefault((is_projected, decays), []).append(parameter)
    projection = {"rank": rank, "refresh": refresh, "scale": scale}
    optimizer_groups = []
    for (is_projected, decays), parameters in groups.items():
        group = {"params": parameters, "weight_decay": args.weight_decay if decays else 0.0}
        if is_projected:
            group |= projection
        optimizer_groups.append(group)
    return GaLoreAdamW(
        optimizer_groups,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
