"""OMoE as a PEFT tuner: orthogonal experts, each a LoRA or DoRA branch of one matrix.

    y = W x + Σ_i g_i u_i,   g = softmax(W_r x),   u = Gram-Schmidt of (e_1, …, e_E)

for one token x, with e_i = (α/r) B_i A_i x, or DoRA_i(x) − W x where each expert has its own
magnitude. From "OMoE: Diversifying Mixture of Low-Rank Adaptation by Orthogonal Finetuning"
(2025); E = 2 DoRA experts of rank 16 on the FFN give the parameter counts it is printed with.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorada.tuners.base.config import (
    LoradaPeftConfig,
    register,
    require_choice,
    require_count,
    require_positive,
    require_rate,
)
from lorada.tuners.base.delta_layer import DeltaLayer, DeltaModel
from lorada.tuners.base.entries import Entries, wide
from lorada.tuners.omoe.experts import gates_of, orthogonalise, row_norms

FFN = ["gate_proj", "up_proj", "down_proj"]
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


@dataclass
class OmoeConfig(LoradaPeftConfig):
    """How many experts, of which kind, and how they are mixed.

    Attributes:
        experts: E, the number of experts on each matrix.
        rank: r of each expert.
        alpha: α; an expert is scaled by α/r.
        dropout: rate on the input of the experts' low-rank branches.
        use_dora: DoRA experts, each with its own magnitude; False for LoRA experts.
        routing: ``soft`` mixes all experts, ``top2`` the two with the largest gates, re-normalised.
        normalize: whether each u_i is divided by its norm. The start is then no identity: B is
            drawn from N(0, 0.001²), as B = 0 has no direction.
        target_modules: names of the matrices that get experts; None for the three of the FFN of
            LLaMA-like models.
        exclude_modules: names or a regex of modules to leave out.

    Raises:
        ValueError: for a value out of range.
    """

    experts: int = field(default=2)
    rank: int = field(default=16)
    alpha: float = field(default=32.0)
    dropout: float = field(default=0.05)
    use_dora: bool = field(default=True)
    routing: str = field(default="soft")
    normalize: bool = field(default=False)
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self, "experts", "rank")
        require_positive(self, "alpha")
        require_choice(self, "routing", ("soft", "top2"))
        if self.routing == "top2" and self.experts < 2:
            raise ValueError(
                f"routing='top2' needs two experts or more, not experts={self.experts}"
            )
        require_rate(self, "dropout")

    @property
    def starts_as_base(self) -> bool:
        """Whether B is zero at step 0, which a normalised expert's is not."""
        return self.init_weights and not self.normalize


class OmoeLayer(DeltaLayer):
    """A matrix with the experts of any number of adapters around it."""

    adapter_layer_names = ("lora_down", "lora_up", "lora_magnitude", "lora_router")
    lora_down: Entries
    lora_up: Entries
    lora_magnitude: Entries
    lora_router: Entries
    configs: dict[str, OmoeConfig]

    def update_layer(
        self, adapter_name: str, config: OmoeConfig, model: nn.Module, key: str
    ) -> None:
        """Create the experts and the router of an adapter.

        Raises:
            ValueError: for a quantised weight.
        """
        base = self.adapted
        if type(base.weight) is not nn.Parameter or not base.weight.is_floating_point():
            raise ValueError(
                f"{key} is quantised ({type(base.weight).__name__}, {base.weight.dtype}), "  # type: ignore[union-attr]
                "which OmoeConfig does not support: load the model in float32, bfloat16 or float16"
            )
        down = self.new_weight(config.experts, config.rank, self.in_features)
        up = self.new_weight(config.experts, self.out_features, config.rank)
        router = self.new_weight(config.experts, self.in_features)
        with torch.no_grad():
            for matrix in (*down, router):
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
            if not config.init_weights:
                up.normal_(std=0.1)
            elif config.normalize:
                up.normal_(std=1e-3)
        self.configs[adapter_name] = config
        self.lora_down[adapter_name] = down
        self.lora_up[adapter_name] = up
        self.lora_router[adapter_name] = router
        if config.use_dora:
            norms = row_norms(self.matrix(), down, up, config.alpha / config.rank)
            self.lora_magnitude[adapter_name] = nn.Parameter(norms)

    def term(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """Σ_i g_i u_i of one adapter, (…, in) → (…, out)."""
        config, down, up = self.configs[name], self.lora_down(name), self.lora_up(name)
        scale, x = config.alpha / config.rank, x.to(down.dtype)
        dropped = F.dropout(x, config.dropout, self.training)
        hidden = torch.einsum("...i,eri->...er", dropped, down)
        branches = wide(scale * torch.einsum("...er,eor->...eo", hidden, up))
        if config.use_dora:
            norms = row_norms(self.matrix(), down, up, scale)
            ratio = wide(self.lora_magnitude(name)) / norms
            branches = ratio * branches + (ratio - 1) * self.without_bias(output).unsqueeze(-2)
        gates = gates_of(F.linear(x, self.lora_router(name)), config.routing)
        # No product of matrices: those leave fp32 under autocast.
        return (gates.unsqueeze(-1) * orthogonalise(branches, config.normalize)).sum(-2)


class OmoeModel(DeltaModel):
    """Puts experts around every matrix that an ``OmoeConfig`` names."""

    tuner_layer_cls = OmoeLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = dict.fromkeys(LLAMAS, FFN)
    not_mergeable = "their experts are weighed anew for each token; keep them as an adapter"


register("OMOE", OmoeConfig, OmoeModel)
