"""SoRA as a PEFT tuner: a low-rank term whose ranks have gates that training sets to zero.

    y = W x + (α/r) · B( g ⊙ A drop(x) )

g starts from N(0, 1), A Kaiming-uniform, B at 0: the identity at step 0. After each step the gates
are thresholded (``procedures.sora``); a rank whose gate is 0 can be dropped (``prune``). Ding et
al., "Sparse Low-rank Adaptation of Pre-trained Language Models" (2023).
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorada.tuners.base.config import (
    LoradaPeftConfig,
    register,
    require_count,
    require_positive,
    require_rate,
)
from lorada.tuners.base.delta_layer import DeltaLayer, DeltaModel, check_ranks, rank_of
from lorada.tuners.base.entries import Entries, wide


@dataclass
class SoraConfig(LoradaPeftConfig):
    """How many ranks there are to begin with, and where.

    Attributes:
        rank: r, the ranks of each matrix at the start.
        alpha: α; the term is scaled by α/r, also after ranks were dropped.
        dropout: of the input of A.
        penalty: λ of the penalty λ · mean|g| over all gates that the released code has in its loss
            (10 in its script); 0, as in the publication, for none. ``SoraCallback`` adds it.
        target_modules: names or a regex of the linear maps; None for all of every layer.
        exclude_modules: names or a regex of modules to leave out.
        rank_pattern: ranks by module name where they differ from ``rank``; ``prune`` writes it.

    Raises:
        ValueError: for a value out of range.
    """

    rank: int = field(default=8)
    alpha: float = field(default=16.0)
    dropout: float = field(default=0.0)
    penalty: float = field(default=0.0)
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    rank_pattern: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self, "rank")
        require_positive(self, "alpha")
        require_rate(self, "dropout")
        number = isinstance(self.penalty, int | float) and not isinstance(self.penalty, bool)
        if not number or not 0 <= self.penalty < math.inf:
            raise ValueError(f"penalty={self.penalty!r} must be a number from 0 on")
        check_ranks(self, smallest=0)


class SoraLayer(DeltaLayer):
    """A linear map with gated low-rank terms."""

    adapter_layer_names = ("lora_A", "lora_gate", "lora_B")
    lora_A: Entries
    lora_gate: Entries
    lora_B: Entries
    configs: dict[str, SoraConfig]

    def update_layer(
        self, adapter_name: str, config: SoraConfig, model: nn.Module, key: str
    ) -> None:
        """Create A, g and B of an adapter."""
        self.configs[adapter_name] = config
        rank = rank_of(config, key)
        self.lora_A[adapter_name] = self.new_weight(rank, self.in_features)
        self.lora_gate[adapter_name] = self.new_weight(rank)
        self.lora_B[adapter_name] = self.new_weight(self.out_features, rank)
        if rank == 0:
            return
        with torch.no_grad():
            nn.init.kaiming_uniform_(self.lora_A[adapter_name], a=math.sqrt(5))
            self.lora_gate[adapter_name].normal_()
            if not config.init_weights:
                self.lora_B[adapter_name].normal_(std=0.1)

    def term(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """(α/r) · B( g ⊙ A drop(x) ) for x (…, in) → (…, out)."""
        config, down = self.configs[name], self.lora_A(name)
        x = F.dropout(x.to(down.dtype), config.dropout, self.training)
        gated = F.linear(x, down) * self.lora_gate(name)
        return F.linear(gated, self.lora_B(name)) * (config.alpha / config.rank)

    def delta(self, name: str) -> Tensor:
        """(α/r) · B diag(g) A, with the gates folded into A."""
        config = self.configs[name]
        folded = wide(self.lora_gate(name))[:, None] * wide(self.lora_A(name))
        product: Tensor = wide(self.lora_B(name)) @ folded
        return product * (config.alpha / config.rank)

    def keep(self, name: str, ranks: Tensor) -> None:
        """Drop all ranks of an adapter but these."""
        down, gate, up = self.lora_A[name], self.lora_gate[name], self.lora_B[name]
        for entries, old, new in (
            (self.lora_A, down, down[ranks]),
            (self.lora_gate, gate, gate[ranks]),
            (self.lora_B, up, up[:, ranks]),
        ):
            fresh = new.detach().clone().contiguous()
            entries[name] = nn.Parameter(fresh, requires_grad=old.requires_grad)


class SoraModel(DeltaModel):
    """Places gated low-rank terms on the linear maps that a ``SoraConfig`` names."""

    tuner_layer_cls = SoraLayer


def soft_threshold(gates: Tensor, xi: float) -> Tensor:
    """T_ξ of the publication: gates come ξ nearer to 0, those within ξ of it become 0."""
    return gates.sign() * (gates.abs() - xi).clamp(min=0)


def released_threshold(gates: Tensor, xi: float) -> Tensor:
    """The thresholding of the released code, in whose third statement gates within 2ξ become 0."""
    moved = torch.where(gates > xi, gates - xi, torch.where(gates < -xi, gates + xi, gates))
    return torch.where(moved.abs() < xi, torch.zeros_like(moved), moved)


THRESHOLDS = {"soft": soft_threshold, "released": released_threshold}


class SoraCount(NamedTuple):
    """Parameters of an adapter.

    ``matrices`` are A and B with all ranks, ``left`` what remains without the ranks whose gate is
    0: in + out + 1 for each other gate.
    """

    matrices: int
    gates: int
    zero_gates: int
    left: int


def sora_count(model: nn.Module, adapter_name: str = "default") -> SoraCount:
    """Count the parameters of SoRA parts, each gate by the sizes of its own matrices."""
    matrices = gates = zeros = left = 0
    for layer in sora_layers(model, adapter_name).values():
        gate, width = layer.lora_gate[adapter_name], layer.in_features + layer.out_features
        on = int(torch.count_nonzero(gate.detach())) if not gate.is_meta else gate.numel()
        matrices += gate.numel() * width
        gates += gate.numel()
        zeros += gate.numel() - on
        left += on * (width + 1)
    return SoraCount(matrices, gates, zeros, left)


def sora_layers(model: nn.Module, adapter_name: str) -> dict[str, SoraLayer]:
    """The SoRA layers that hold an adapter, by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SoraLayer) and adapter_name in module.lora_gate
    }


def prune(model: Any, adapter_name: str = "default") -> SoraCount:
    """Drop the ranks whose gate is 0, after training; the outputs stay what they are.

    What is saved afterwards is smaller, and its config says which ranks are left.

    Args:
        model: a ``PeftModel``.
        adapter_name: whose SoRA parts are pruned.

    Returns:
        The count before, whose ``left`` is what the adapter has now.
    """
    count = sora_count(model, adapter_name)
    for name, layer in sora_layers(model.base_model.model, adapter_name).items():
        ranks = layer.lora_gate[adapter_name].detach().nonzero().flatten()
        layer.keep(adapter_name, ranks)
        config = layer.configs[adapter_name]
        # The first pattern that matches counts. Alone, the part is not nested in others.
        config.rank_pattern = {name.replace(".base_layer", ""): len(ranks), **config.rank_pattern}
    return count


register("SORA", SoraConfig, SoraModel)
