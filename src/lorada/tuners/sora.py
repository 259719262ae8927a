"""SoRA as a PEFT tuner: LoRA with a gate on each rank, which training can set to 0.

    y = W x + (α/r) · B( g ⊙ A dropout(x) )

Ding et al., "Sparse Low-rank Adaptation of Pre-trained Language Models" (2023). A starts
Kaiming-uniform, the gates g from N(0, 1) and B at 0. ``methods.callbacks.sora_thresholds``
moves the gates towards 0 after each step.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lorada.tuners.base.delta_layer import DeltaLayer, DeltaModel
from lorada.tuners.base.part_config import Count, LoradaPeftConfig, Number, Rate, register
from lorada.tuners.base.tuner import Entries


@dataclass
class SoraConfig(LoradaPeftConfig):
    """Rank at the start, and which linear layers are adapted.

    Attributes:
        rank: r, the number of ranks of each linear layer at the start.
        alpha: α. The scale is α/r.
        dropout: rate of the dropout on the input of A.
        penalty: λ of a penalty λ · mean|g| over all gates, which ``SoraCallback`` adds to the loss.
            The script of the released code has 10; the publication has no penalty, which is 0.
        target_modules: names or a regex of the linear layers; None for all of every layer.
        exclude_modules: names or a regex of modules to leave out.
    """

    rank: Count = field(default=8)
    alpha: Number = field(default=16.0)
    dropout: Rate = field(default=0.0)
    penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = field(default=0.0)
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)


class SoraLayer(DeltaLayer):
    """A linear layer with the gated ranks of any number of adapters."""

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
        rank = config.rank
        self.lora_A[adapter_name] = self.new_weight(rank, self.in_features)
        self.lora_gate[adapter_name] = self.new_weight(rank)
        self.lora_B[adapter_name] = self.new_weight(self.out_features, rank)
        with torch.no_grad():
            nn.init.kaiming_uniform_(self.lora_A[adapter_name], a=math.sqrt(5))
            self.lora_gate[adapter_name].normal_()
            if not config.init_weights:  # else B stays 0, so that the model starts as the base
                self.lora_B[adapter_name].normal_(std=0.1)

    def term(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """(α/r) · B( g ⊙ A dropout(x) )."""
        config, down = self.configs[name], self.lora_A(name)
        x = F.dropout(x.to(down.dtype), config.dropout, self.training)
        gated = F.linear(x, down) * self.lora_gate(name)
        return F.linear(gated, self.lora_B(name)) * (config.alpha / config.rank)


class SoraModel(DeltaModel):
    """Adds gated ranks to the linear layers that a ``SoraConfig`` names."""

    tuner_layer_cls = SoraLayer


def soft_threshold(gates: Tensor, xi: float) -> Tensor:
    """T_ξ of the publication: moves each gate by ξ towards 0, and to 0 if it is within ξ of it."""
    return gates.sign() * (gates.abs() - xi).clamp(min=0)


register("SORA", SoraConfig, SoraModel)
