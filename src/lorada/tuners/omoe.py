"""OMoE as a PEFT tuner: each linear layer gets several DoRA experts and a router.

    y = W x + Σ_i g_i u_i,   g = softmax(W_r x),   (u_1, …, u_E) = Gram-Schmidt of (e_1, …, e_E)

for one token x. The output e_i of expert i is the change of W x by DoRA with the matrices and the
magnitude of the expert. Gram-Schmidt makes the outputs orthogonal. "OMoE: Diversifying Mixture of
Low-Rank Adaptation by Orthogonal Finetuning" (2025). The parameter counts in it are those of E = 2
experts of rank 16 on the FFN.

Shapes: E experts, r rank, d width of the output.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorada.functional.precision import no_autocast, wide
from lorada.tuners.base.delta_layer import DeltaLayer, DeltaModel
from lorada.tuners.base.linears import matrix, plain_matrix
from lorada.tuners.base.part_config import Count, LoradaPeftConfig, Number, Rate, register
from lorada.tuners.base.tuner import Entries

FFN = ["gate_proj", "up_proj", "down_proj"]
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
ROWS = 1024  # how many rows of a weight are converted to float32 at a time
EPSILON = 1e-20  # added to ⟨u, u⟩. So small since the outputs of experts start near 0.


@dataclass
class OmoeConfig(LoradaPeftConfig):
    """Number and size of the experts.

    Attributes:
        experts: E, the number of experts on each linear layer.
        rank: r of each expert.
        alpha: α; the output of an expert is scaled by α/r.
        dropout: rate of the dropout on the input of the experts.
        target_modules: names or a regex of the linear layers that get experts; None for the three
            of the FFN of LLaMA-like models.
        exclude_modules: names or a regex of modules to leave out.
    """

    experts: Count = field(default=2)
    rank: Count = field(default=16)
    alpha: Number = field(default=32.0)
    dropout: Rate = field(default=0.05)
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)


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
        """Create the experts and the router of an adapter."""
        weight = plain_matrix(self.get_base_layer(), f"OMoE on {key}")
        down = self.new_weight(config.experts, config.rank, self.in_features)
        up = self.new_weight(config.experts, self.out_features, config.rank)
        router = self.new_weight(config.experts, self.in_features)
        with torch.no_grad():
            for drawn in (*down, router):
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
            if not config.init_weights:
                up.normal_(std=0.1)
        self.configs[adapter_name] = config
        self.lora_down[adapter_name] = down
        self.lora_up[adapter_name] = up
        self.lora_router[adapter_name] = router
        norms = row_norms(weight, down, up, config.alpha / config.rank)
        self.lora_magnitude[adapter_name] = nn.Parameter(norms)

    def term(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """Σ_i g_i u_i of one adapter (…, out)."""
        config = self.configs[name]
        down, up = self.lora_down(name), self.lora_up(name)  # A (E, r, in) and B (E, out, r)
        scale, x = config.alpha / config.rank, x.to(down.dtype)
        dropped = F.dropout(x, config.dropout, self.training)
        hidden = torch.einsum("...i,eri->...er", dropped, down)
        low_rank = wide(
            scale * torch.einsum("...er,eor->...eo", hidden, up)
        )  # s B A x, (…, E, out)
        # DoRA's change of W x, with m the magnitude: e = m (W + s B A) x / ‖W + s B A‖ − W x
        norms = row_norms(matrix(self.get_base_layer()), down, up, scale)
        ratio = wide(self.lora_magnitude(name)) / norms
        experts = ratio * low_rank + (ratio - 1) * self.without_bias(output).unsqueeze(-2)
        # The router reads x without dropout.
        shares = torch.softmax(wide(F.linear(x, self.lora_router(name))), -1)  # g, (…, E)
        # A sum and not a matrix product, which autocast would compute in half precision.
        return (shares.unsqueeze(-1) * orthogonalise(experts)).sum(-2)


class OmoeModel(DeltaModel):
    """Adds experts to the linear layers that an ``OmoeConfig`` names."""

    tuner_layer_cls = OmoeLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = dict.fromkeys(LLAMAS, FFN)
    not_mergeable = "the mixture of their experts differs by token; keep them as an adapter"


def orthogonalise(experts: Tensor) -> Tensor:
    """Gram-Schmidt: u_1 = e_1 and u_i = e_i − Σ_{j<i} ⟨e_i, u_j⟩ / ⟨u_j, u_j⟩ · u_j.

    ``experts`` has e_i of every token (…, E, d), the result u_i, in float32 or wider.
    """
    orthogonal: list[Tensor] = []  # u_1 … u_{i−1}
    for vector in wide(experts).unbind(-2):
        # The modified form of Gram-Schmidt: each product uses the vector as reduced so far, which
        # keeps rounding errors small.
        for other in orthogonal:
            product = (vector * other).sum(-1, keepdim=True)
            vector = vector - product / (other.square().sum(-1, keepdim=True) + EPSILON) * other
        orthogonal.append(vector)
    return torch.stack(orthogonal, -2)


@torch.no_grad()
def row_norms(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The norm of each row of W + s B_i A_i, without a copy of W or a matrix of its size.

    Its square is ‖W‖² + 2s (W Aᵀ)·B + s² (B A Aᵀ)·B, row by row. DoRA treats the norm as constant,
    so no gradient is computed. W is (out, in), A (E, r, in) and B (E, out, r); the norms are
    (E, out), in float32 or wider.
    """
    with no_autocast(weight.device):
        down, up = wide(down), wide(up)
        weight_squares, products = [], []
        # Some rows of W at a time: only these are ever copied to float32.
        for rows in weight.split(ROWS):
            widened = rows.to(down.dtype)
            weight_squares.append(widened.square().sum(1))
            products.append(widened @ down.flatten(0, 1).T)
        # W Aᵀ of all experts in one product, (out, E·r), then by expert, (E, out, r)
        weight_by_down = torch.cat(products).unflatten(1, down.shape[:2]).transpose(0, 1)
        down_by_down = down @ down.mT  # A Aᵀ
        # ‖W‖² + (2s W Aᵀ + s² B A Aᵀ)·B
        mixed = 2 * scale * weight_by_down + scale**2 * (up @ down_by_down)
        squares = torch.cat(weight_squares) + mixed.mul(up).sum(-1)
        # Rounding may take the square of a norm near 0 below 0.
        norms: Tensor = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    return norms


register("OMOE", OmoeConfig, OmoeModel)
