"""LaMDA as a PEFT tuner: a low-rank term in which only a small square matrix trains to the end.

    y = W x + s · (B M − U_r Σ_r) A x

Azizi et al., "LaMDA: Large Model Fine-Tuning via Spectrally Decomposed Low-Dimensional Adaptation"
(2024). A (r, in) is frozen and M (r, r) trains. B (out, r) trains at first;
``methods.callbacks.lamda_schedule`` freezes its columns one after another.

B, M and A start at U_r, Σ_r and V_rᵀ, the leading singular directions of W = U Σ Vᵀ. The paper
then subtracts s · U_r Σ_r V_rᵀ from W. Here W does not change, and U_r Σ_r is subtracted from B M,
which gives the same y.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from lorada.functional.precision import no_autocast, wide
from lorada.tuners.base.delta_layer import DeltaLayer, DeltaModel
from lorada.tuners.base.linears import linears, plain_matrix
from lorada.tuners.base.part_config import Count, LoradaPeftConfig, Number, register
from lorada.tuners.base.tuner import Entries, FrozenEntries

# The randomised decomposition computes this many more directions than it returns, and refines them
# in this many steps.
OVERSAMPLING, REFINEMENTS = 16, 4


@dataclass
class LamdaConfig(LoradaPeftConfig):
    """Rank and scale of the matrices, and which linear layers get them.

    Attributes:
        rank: r; with ``ranks="energy"`` the upper limit of the mean rank.
        scale: s, by which the product of the three matrices is multiplied.
        ranks: ``uniform`` gives every linear layer ``rank``. ``energy`` (LaMDA++) gives twice the
            mean to weights with a flat spectrum and half the mean to those with a steep one, and
            writes that to ``rank_pattern``.
        target_modules: names or a regex of the linear layers; None for all of every layer.
        exclude_modules: names or a regex of modules to leave out.
        rank_pattern: ranks that differ from ``rank``, by module name or pattern.
    """

    rank: Count = field(default=32)
    scale: Number = field(default=1.0)
    ranks: Literal["uniform", "energy"] = field(default="uniform")
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    rank_pattern: dict[str, Count] = field(default_factory=dict)


class LamdaLayer(DeltaLayer):
    """A linear layer with the matrices of any number of adapters.

    ``lora_U`` and ``lora_sigma`` are U_r and the diagonal of Σ_r. They are saved, since a second
    decomposition of the weight, perhaps in another dtype, would not give exactly the same numbers.
    """

    adapter_layer_names = ("lora_M", "lora_B")
    other_param_names = ("lora_A", "lora_U", "lora_sigma", "configs")
    lora_M: Entries
    lora_B: Entries
    configs: dict[str, LamdaConfig]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.lora_A = FrozenEntries(persistent=True)
        self.lora_U = FrozenEntries(persistent=True)
        self.lora_sigma = FrozenEntries(persistent=True)

    def update_layer(
        self, adapter_name: str, config: LamdaConfig, model: nn.Module, key: str
    ) -> None:
        """Create the matrices of an adapter.

        Raises:
            ValueError: for a rank above that of the weight.
        """
        self.configs[adapter_name] = config
        width_in, width_out = self.in_features, self.out_features
        pattern = config.rank_pattern
        rank = pattern.get(get_pattern_key(pattern, key), config.rank)
        highest_rank = min(width_in, width_out)
        if rank > highest_rank:
            raise ValueError(
                f"rank={rank} is more than a weight of {width_out} × {width_in} has: "
                f"choose {highest_rank} or less, or other target_modules"
            )
        self.lora_A[adapter_name] = self.new_weight(rank, width_in).data
        self.lora_M[adapter_name] = self.new_weight(rank, rank)
        self.lora_B[adapter_name] = self.new_weight(width_out, rank)
        self.lora_U[adapter_name] = self.new_weight(width_out, rank).data
        self.lora_sigma[adapter_name] = self.new_weight(rank).data
        with torch.no_grad():
            self._initialise(adapter_name, config, rank)

    def _initialise(self, name: str, config: LamdaConfig, rank: int) -> None:
        """Fill the matrices with the leading singular directions of W, in place.

        Raises:
            ValueError: if W is quantised.
        """
        down, middle, up = self.lora_A[name], self.lora_M[name], self.lora_B[name]
        # An adapter for inference is loaded next, and needs no slow decomposition.
        if not (config.inference_mode or up.is_meta):
            left, values, right = leading(plain_matrix(self.get_base_layer(), "LaMDA"), rank)
            down.copy_(right)
            middle.copy_(torch.diag(values))
            up.copy_(left)
            self.lora_U[name].copy_(left)
            self.lora_sigma[name].copy_(values)
        if not config.init_weights:
            up.add_(torch.randn_like(up), alpha=0.1)

    def term(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """The term s · (B M − U_r Σ_r) A x."""
        down = self.lora_A(name)
        hidden = F.linear(x.to(down.dtype), down)
        # Half precision would round away the difference of the two products.
        with no_autocast(x.device):
            left = self.left_factor(name)
        return F.linear(hidden, left.to(down.dtype)) * self.configs[name].scale

    def left_factor(self, name: str) -> Tensor:
        """B M − U_r Σ_r (out, r), in float32 or wider."""
        # At the start both products have the same factors, so their difference is exactly 0.
        start = wide(self.lora_U(name)) @ torch.diag(wide(self.lora_sigma(name)))
        return wide(self.lora_B(name)) @ wide(self.lora_M(name)) - start


class LamdaModel(DeltaModel):
    """Adds the matrices of LaMDA to the linear layers that a ``LamdaConfig`` names."""

    tuner_layer_cls = LamdaLayer

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        """Wrap the targets. With ``ranks="energy"``, first choose the ranks if none are given."""
        config = self.peft_config[adapter_name]
        if config.ranks == "energy" and not config.rank_pattern:
            self._prepare_adapter_config(config, self.get_model_config(model))
            config = _maybe_include_all_linear_layers(config, model)
            weights = {
                name: plain_matrix(linear, 'ranks="energy"')
                for name, linear in linears(model).items()
                if self._check_target_module_exists(config, name)
            }
            config.rank_pattern = ranks_by_energy(weights, config.rank)
        super().inject_adapter(model, adapter_name, *args, **kw)


def leading(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular directions of a weight: U_r (out, r), σ (r), V_rᵀ (r, in)."""
    computed = min(rank + OVERSAMPLING, *weight.shape)
    left, values, right = torch.svd_lowrank(weight.float(), q=computed, niter=REFINEMENTS)
    return left[:, :rank], values[:rank], right[:, :rank].T


def energy(weight: Tensor, rank: int) -> float:
    """E(r) = Σ_{i≤r} σ_i² / Σ_i σ_i², the leading share of a weight's squared norm."""
    _, values, _ = leading(weight, rank)
    return float(values.square().sum() / weight.float().square().sum())


def ranks_by_energy(weights: dict[str, Tensor], mean: int) -> dict[str, int]:
    """The ranks of LaMDA++: 2r̄, r̄ or r̄/2 for each weight, on average at most r̄.

    The third of the weights with the least energy E(r̄) gets 2r̄, the third with the most gets r̄/2,
    and the rest r̄. The average of these is above r̄. So weights go from 2r̄ to r̄, those with the most
    energy first, until the average is at most r̄. Then weights go from r̄/2 to r̄, those with the
    least energy first, as long as the average stays at most r̄.

    A rank is at most the smaller width of its weight. On the meta device all ranks are r̄.
    """
    if any(weight.is_meta for weight in weights.values()):
        return dict.fromkeys(weights, mean)
    energies = {name: energy(weight, min(mean, *weight.shape)) for name, weight in weights.items()}
    ordered = sorted(energies, key=energies.__getitem__)
    number, third = len(ordered), len(ordered) // 3
    half = max(1, mean // 2)
    ranks = [2 * mean] * third + [mean] * (number - 2 * third) + [half] * third
    budget = mean * number
    # From the last of those with 2r̄, which has the most energy of them.
    doubled = third
    while doubled and sum(ranks) > budget:
        doubled -= 1
        ranks[doubled] = mean
    # From the first of those with r̄/2, which has the least energy of them.
    halved = number - third
    while halved < number and sum(ranks) - half + mean <= budget:
        ranks[halved] = mean
        halved += 1
    rank_of = dict(zip(ordered, ranks, strict=True))
    return {name: min(rank, *weights[name].shape) for name, rank in rank_of.items()}


register("LAMDA", LamdaConfig, LamdaModel)
