"""LaMDA as a PEFT tuner: only a small square matrix between two projections trains to the end.

    y = W x + s · B M A x

A (r, in) is frozen, M (r, r) trains, B (out, r) trains until its columns are frozen one after
another (``procedures.lamda``). With ``init="spectral"`` B, M and A start at U_r, Σ_r and V_rᵀ of
W = U Σ Vᵀ, and what they give is taken from the frozen weight, W_res = W − s · U_r Σ_r V_rᵀ, so
that the start is the identity. W itself is left as it is: W_res x is W x less a second term.
Azizi et al., "LaMDA: Large Model Fine-Tuning via Spectrally Decomposed Low-Dimensional Adaptation"
(2024).
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available as has_autocast
from transformers.pytorch_utils import Conv1D

from lorada.tuners.base.config import (
    LoradaPeftConfig,
    register,
    require_choice,
    require_count,
    require_positive,
)
from lorada.tuners.base.delta_layer import (
    DeltaLayer,
    DeltaModel,
    check_ranks,
    plain_weight,
    rank_of,
)
from lorada.tuners.base.entries import Entries, FrozenEntries, wide
from lorada.tuners.base.linears import linear_of

# What the randomised decomposition of a weight looks at beside the leading directions, and how
# often it refines them.
OVERSAMPLING, REFINEMENTS = 16, 4


@dataclass
class LamdaConfig(LoradaPeftConfig):
    """How large M is, where, and how A, M and B start.

    Attributes:
        rank: r; with ``ranks="energy"`` the mean of all ranks.
        scale: s.
        init: ``spectral`` (the leading singular directions of the weight) or ``released`` (A
            Kaiming-uniform, B at 0, M as a linear layer starts, as the released code does).
        ranks: ``uniform``, or ``energy`` (LaMDA++): a weight whose spectrum is flat gets twice the
            mean rank, one whose spectrum is steep half of it. Filled into ``rank_pattern``.
        target_modules: names or a regex of the linear maps; None for all of every layer.
        exclude_modules: names or a regex of modules to leave out.
        rank_pattern: ranks by module name where they differ from ``rank``.

    Raises:
        ValueError: for a value out of range.
    """

    rank: int = field(default=32)
    scale: float = field(default=1.0)
    init: str = field(default="spectral")
    ranks: str = field(default="uniform")
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    rank_pattern: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self, "rank")
        require_positive(self, "scale")
        require_choice(self, "init", ("spectral", "released"))
        require_choice(self, "ranks", ("uniform", "energy"))
        check_ranks(self, smallest=1)


class LamdaLayer(DeltaLayer):
    """A linear map with spectrally decomposed terms."""

    adapter_layer_names = ("lora_M", "lora_B")
    # U and σ are the start of B and of M's diagonal. They are saved: a decomposition of the base
    # at another time or in another dtype would not give them again to the last bit.
    other_param_names = ("lora_A", "lora_U", "lora_sigma", "configs")
    lora_M: Entries
    lora_B: Entries
    configs: dict[str, LamdaConfig]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.lora_A = FrozenEntries()
        self.lora_U = FrozenEntries()
        self.lora_sigma = FrozenEntries()

    def update_layer(
        self, adapter_name: str, config: LamdaConfig, model: nn.Module, key: str
    ) -> None:
        """Create A, M and B of an adapter, and U and σ of a spectral one.

        Raises:
            ValueError: for a rank that is larger than the weight, or a quantised weight.
        """
        self.configs[adapter_name] = config
        width_in, width_out, rank = self.in_features, self.out_features, rank_of(config, key)
        if rank > min(width_in, width_out):
            raise ValueError(
                f"rank={rank} is more than a weight of {width_out} × {width_in} has: "
                f"choose {min(width_in, width_out)} or less, or other target_modules"
            )
        self.lora_A[adapter_name] = self.new_weight(rank, width_in).data
        self.lora_M[adapter_name] = self.new_weight(rank, rank)
        self.lora_B[adapter_name] = self.new_weight(width_out, rank)
        if config.init == "spectral":
            self.lora_U[adapter_name] = self.new_weight(width_out, rank).data
            self.lora_sigma[adapter_name] = self.new_weight(rank).data
        with torch.no_grad():
            self._start(adapter_name, config, rank)

    def _start(self, name: str, config: LamdaConfig, rank: int) -> None:
        down, middle, up = self.lora_A[name], self.lora_M[name], self.lora_B[name]
        if config.init == "spectral":
            # What is loaded comes with its own values, and a decomposition takes its time.
            if not (config.inference_mode or up.is_meta):
                weight = weight_of(self, 'init="spectral"')
                assert weight is not None
                left, values, right = leading(weight, rank)
                down.copy_(right)
                middle.copy_(torch.diag(values))
                up.copy_(left)
                self.lora_U[name].copy_(left)
                self.lora_sigma[name].copy_(values)
        else:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            nn.init.kaiming_uniform_(middle, a=math.sqrt(5))
        if not config.init_weights:
            up.add_(torch.randn_like(up), alpha=0.1)

    def term(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """The term s · (B M − U Σ) A x for x (…, in) → (…, out)."""
        down = self.lora_A(name)
        hidden = F.linear(x.to(down.dtype), down)
        kind = x.device.type
        # In half precision, the difference of two products that are almost equal would be noise.
        autocast = torch.autocast(kind, enabled=False) if has_autocast(kind) else nullcontext()
        with autocast:
            outer = self.outer(name)
        return F.linear(hidden, outer.to(down.dtype)) * self.configs[name].scale

    def delta(self, name: str) -> Tensor:
        """The matrix s · (B M − U Σ) A."""
        return self.outer(name) @ wide(self.lora_A(name)) * self.configs[name].scale

    def outer(self, name: str) -> Tensor:
        """B M − U Σ (out, r), in float32 or wider; B M for a start at B = 0."""
        outer = wide(self.lora_B(name)) @ wide(self.lora_M(name))
        if name in self.lora_U:
            # At the start the same product of the same numbers: the difference is exactly 0.
            outer = outer - wide(self.lora_U(name)) @ torch.diag(wide(self.lora_sigma(name)))
        return outer


class LamdaModel(DeltaModel):
    """Places spectrally decomposed terms on the linear maps that a ``LamdaConfig`` names."""

    tuner_layer_cls = LamdaLayer

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        """Wrap the targets, after choosing the ranks of LaMDA++ if they are not given or loaded."""
        config = self.peft_config[adapter_name]
        if config.ranks == "energy" and not config.rank_pattern:
            self._prepare_adapter_config(config, self.get_model_config(model))
            config = _maybe_include_all_linear_layers(config, model)
            found = {
                name: weight_of(module, 'ranks="energy"')
                for name, module in model.named_modules()
                if not name.endswith(".base_layer")
                and self._check_target_module_exists(config, name)
            }
            weights = {name: weight for name, weight in found.items() if weight is not None}
            config.rank_pattern = ranks_by_energy(weights, config.rank)
        super().inject_adapter(model, adapter_name, *args, **kw)


def weight_of(module: nn.Module, wish: str) -> Tensor | None:
    """The weight (out, in) of a linear map, whatever wraps it; None for other modules.

    Raises:
        ValueError: if it is quantised, naming what was wished.
    """
    linear = linear_of(module)
    if linear is None:
        return None
    weight = plain_weight(linear, wish).detach()
    return weight.T if isinstance(linear, Conv1D) else weight


def leading(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular directions of a weight: U (out, r), σ (r), Vᵀ (r, in)."""
    looked_at = min(rank + OVERSAMPLING, *weight.shape)
    left, values, right = torch.svd_lowrank(weight.float(), q=looked_at, niter=REFINEMENTS)
    return left[:, :rank], values[:rank], right[:, :rank].T


def energy(weight: Tensor, rank: int) -> float:
    """E(r) = Σ_{i≤r} σ_i² / Σ_i σ_i², the share of a weight that its leading directions hold."""
    held = leading(weight, rank)[1].square().sum()
    return float(held / weight.float().square().sum())


def ranks_by_energy(weights: dict[str, Tensor], mean: int) -> dict[str, int]:
    """Ranks of three classes, 2r̄, r̄ and r̄/2, given out by need with r̄ as their mean.

    Sorted by E(r̄), the third with the least energy gets 2r̄ and the third with the most r̄/2. As
    this is more than r̄ on average, the first class then gives weights to the second until it is
    not; for an odd r̄ or number of weights, the third gives back what fits.

    Args:
        weights: matrices by name; on the meta device, where there is no spectrum, all get r̄.
        mean: r̄.
    """
    if any(weight.is_meta for weight in weights.values()):
        return dict.fromkeys(weights, mean)
    energies = {name: energy(weight, min(mean, *weight.shape)) for name, weight in weights.items()}
    ordered = sorted(energies, key=energies.__getitem__)
    third = len(ordered) // 3
    first, last = third, len(ordered) - third  # where the first class ends and the last begins
    half = max(1, mean // 2)

    def total(first: int, last: int) -> int:
        return 2 * mean * first + mean * (last - first) + half * (len(ordered) - last)

    budget = mean * len(ordered)
    while first and total(first, last) > budget:
        first -= 1
    while last < len(ordered) and total(first, last + 1) <= budget:
        last += 1
    classes = [2 * mean] * first + [mean] * (last - first) + [half] * (len(ordered) - last)
    return {
        name: min(rank, *weights[name].shape) for name, rank in zip(ordered, classes, strict=True)
    }


class LamdaCount(NamedTuple):
    """Parameters that train: at the start, over the run on average, and at the end."""

    start: int
    average: int
    end: int


def lamda_count(model: nn.Module, adapter_name: str = "default", eta: float = 0.3) -> LamdaCount:
    """Count what trains of LaMDA parts whose B is frozen evenly over the first η of a run."""
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, LamdaLayer) and adapter_name in layer.lora_M
    ]
    squares = sum(layer.lora_M[adapter_name].numel() for layer in layers)
    columns = sum(layer.lora_B[adapter_name].numel() for layer in layers)
    return LamdaCount(squares + columns, squares + round(eta / 2 * columns), squares)


register("LAMDA", LamdaConfig, LamdaModel)
