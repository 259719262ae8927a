"""OMoE as a PEFT tuner: each linear layer gets several LoRA or DoRA experts and a router.

    y = W x + Σ_i g_i u_i,   g = softmax(W_r x),   (u_1, …, u_E) = Gram-Schmidt of (e_1, …, e_E)

for one token x. For LoRA the output e_i of expert i is (α/r) B_i A_i x. For DoRA it is the change
of W x by DoRA with the matrices and the magnitude of expert i. Gram-Schmidt makes the outputs
orthogonal. "OMoE: Diversifying Mixture of Low-Rank Adaptation by Orthogonal Finetuning" (2025). The
parameter counts in it are those of E = 2 DoRA experts of rank 16 on the FFN.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorada.functional.precision import wide
from lorada.tuners.base.config import (
    LoradaPeftConfig,
    register,
    require_choice,
    require_count,
    require_positive,
    require_rate,
)
from lorada.tuners.base.delta_layer import DeltaLayer, DeltaModel, plain_weight
from lorada.tuners.base.entries import Entries
from lorada.tuners.omoe.experts import expert_shares, orthogonalise, row_norms

FFN = ["gate_proj", "up_proj", "down_proj"]
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


@dataclass
class OmoeConfig(LoradaPeftConfig):
    """Number and kind of experts, and how the router mixes them.

    Attributes:
        experts: E, the number of experts on each linear layer.
        rank: r of each expert.
        alpha: α; the output of an expert is scaled by α/r.
        dropout: rate of the dropout on the input of the experts.
        use_dora: True for DoRA experts, each with its own magnitude; False for LoRA experts.
        routing: ``soft`` mixes all experts; ``top2`` the two with the largest g_i, divided by their
            sum.
        normalize: whether each u_i is divided by its norm. B then starts from N(0, 0.001²), since
            B = 0 has no direction, and so the model does not start as the base.
        target_modules: names or a regex of the linear layers that get experts; None for the three
            of the FFN of LLaMA-like models.
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
        """Whether B is zero at the start: see ``normalize``."""
        return self.init_weights and not self.normalize


class OmoeLayer(DeltaLayer):
    """A linear layer with the experts and routers of any number of adapters."""

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
        plain_weight(self.adapted, f"OMoE on {key}")
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
        """Σ_i g_i u_i of one adapter (…, out)."""
        config, down, up = self.configs[name], self.lora_down(name), self.lora_up(name)
        scale, x = config.alpha / config.rank, x.to(down.dtype)
        dropped = F.dropout(x, config.dropout, self.training)
        hidden = torch.einsum("...i,eri->...er", dropped, down)
        experts = wide(scale * torch.einsum("...er,eor->...eo", hidden, up))
        if config.use_dora:  # m (W + s B A) x / ‖W + s B A‖ − W x, with m the magnitude
            ratio = wide(self.lora_magnitude(name)) / row_norms(self.matrix(), down, up, scale)
            experts = ratio * experts + (ratio - 1) * self.without_bias(output).unsqueeze(-2)
        shares = expert_shares(F.linear(x, self.lora_router(name)), config.routing)
        # A sum and not a matrix product, which autocast would compute in half precision.
        return (shares.unsqueeze(-1) * orthogonalise(experts, config.normalize)).sum(-2)


class OmoeModel(DeltaModel):
    """Adds experts to the linear layers that an ``OmoeConfig`` names."""

    tuner_layer_cls = OmoeLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = dict.fromkeys(LLAMAS, FFN)
    not_mergeable = "the mixture of their experts differs by token; keep them as an adapter"


register("OMOE", OmoeConfig, OmoeModel)
