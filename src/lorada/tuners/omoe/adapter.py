"""OMoE as a PEFT tuner: orthogonal experts, each a LoRA or DoRA branch of one matrix.

    y = W x + Σ_i g_i u_i,   g = softmax(W_r x),   u = Gram-Schmidt of (e_1, …, e_E)

for one token x, with e_i = (α/r) B_i A_i x, or DoRA_i(x) − W x where each expert has its own
magnitude. From "OMoE: Diversifying Mixture of Low-Rank Adaptation by Orthogonal Finetuning"
(2025); E = 2 DoRA experts of rank 16 on the FFN give the parameter counts it is printed with.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorada.tuners.base.attached_layer import Scaled, cast_entries
from lorada.tuners.base.config import (
    LoradaPeftConfig,
    LoradaType,
    register,
    require_choice,
    require_count,
    require_positive,
    require_rate,
)
from lorada.tuners.base.entries import Entries, refuse_offloaded
from lorada.tuners.base.tuner import OwnTuner
from lorada.tuners.omoe.experts import gates_of, orthogonalise, row_norms, wide

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
        self.peft_type = LoradaType.OMOE
        require_count(self, "experts")
        require_count(self, "rank")
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


class OmoeLayer(Scaled, nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A matrix with the experts of any number of adapters around it."""

    adapter_layer_names = ("lora_down", "lora_up", "lora_magnitude", "lora_router")
    other_param_names = ("configs",)

    if TYPE_CHECKING:  # what PEFT's base class has
        active_adapters: list[str]

        def get_base_layer(self) -> nn.Module:
            """The module inside of all wrapping parts."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.out_features, self.in_features = self.base_weight().shape
        self.lora_down = Entries()
        self.lora_up = Entries()
        self.lora_magnitude = Entries()
        self.lora_router = Entries()
        self.configs: dict[str, OmoeConfig] = {}
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self.scaling = {}

    def base_weight(self) -> Tensor:
        """W as (out, in); a ``Conv1D`` holds its transpose."""
        base = self.get_base_layer()
        weight: Tensor = base.weight  # type: ignore[assignment]
        return weight.T if isinstance(base, Conv1D) else weight

    def update_layer(self, adapter_name: str, config: OmoeConfig) -> None:
        """Create the experts and the router of an adapter."""
        weight = self.base_weight()
        (out, width), where = weight.shape, weight.device
        down = torch.empty(config.experts, config.rank, width, device=where, dtype=torch.float32)
        up = torch.zeros(config.experts, out, config.rank, device=where, dtype=torch.float32)
        router = torch.empty(config.experts, width, device=where, dtype=torch.float32)
        for matrix in (*down, router):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        if not config.init_weights:
            up.normal_(std=0.1)
        elif config.normalize:
            up.normal_(std=1e-3)
        self.configs[adapter_name] = config
        self.lora_down[adapter_name] = nn.Parameter(down)
        self.lora_up[adapter_name] = nn.Parameter(up)
        self.lora_router[adapter_name] = nn.Parameter(router)
        if config.use_dora:
            norms = row_norms(weight, down, up, config.alpha / config.rank)
            self.lora_magnitude[adapter_name] = nn.Parameter(norms)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the wrapped module gives, plus the mixture of each active adapter."""
        plain: Tensor = self.base_layer(x, *args, **kwargs)
        result = plain
        for name in [] if self.disable_adapters else self.active_adapters:
            if name in self.configs:
                term = self.scaled(name, self.mixture(name, x, plain))
                result = result + term.to(result.dtype)
        return result

    def mixture(self, name: str, x: Tensor, plain: Tensor) -> Tensor:
        """Σ_i g_i u_i of one adapter, (…, in) → (…, out).

        Args:
            name: the adapter.
            x: the input.
            plain: what the wrapped module gave for it: W x and the bias.
        """
        config, down, up = self.configs[name], self.lora_down(name), self.lora_up(name)
        scale, x = config.alpha / config.rank, x.to(down.dtype)
        dropped = F.dropout(x, config.dropout, self.training)
        hidden = torch.einsum("...i,eri->...er", dropped, down)
        branches = wide(scale * torch.einsum("...er,eor->...eo", hidden, up))
        if config.use_dora:
            norms = row_norms(self.base_weight().detach(), down, up, scale)
            ratio = wide(self.lora_magnitude(name)) / norms
            bias: Tensor | None = self.get_base_layer().bias  # type: ignore[assignment]
            product = plain if bias is None else plain - bias
            branches = ratio * branches + (ratio - 1) * product.unsqueeze(-2)
        gates = gates_of(F.linear(x, self.lora_router(name)), config.routing)
        # No product of matrices: those leave fp32 under autocast.
        return (gates.unsqueeze(-1) * orthogonalise(branches, config.normalize)).sum(-2)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: the experts are weighed anew for each token.

        Raises:
            ValueError: always.
        """
        raise ValueError(NOT_MERGEABLE)

    def unmerge(self) -> None:
        """Nothing: nothing is ever merged."""

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """No: the mixture is no matrix."""
        return False


NOT_MERGEABLE = (
    "Omoe parts cannot be merged into the weights: their experts are weighed anew for each token; "
    "keep them as an adapter"
)


class OmoeModel(OwnTuner):
    """Puts experts around every matrix that an ``OmoeConfig`` names."""

    tuner_layer_cls = OmoeLayer
    mixes = False
    target_module_mapping: ClassVar[dict[str, list[str]]] = dict.fromkeys(LLAMAS, FFN)
    mergeable = False

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        """Wrap the targets; a state dict is not needed to find them."""
        refuse_offloaded(model, "Omoe")
        kw.pop("state_dict", None)
        super().inject_adapter(model, adapter_name, *args, **kw)

    def _prepare_adapter_config(self, peft_config: OmoeConfig, model_config: Any) -> OmoeConfig:
        if peft_config.target_modules is None:
            kind = model_config.get("model_type")
            if kind not in self.target_module_mapping:
                raise ValueError(
                    f"OmoeConfig has no default target_modules for {kind} models: name the "
                    "matrices that get experts"
                )
            peft_config.target_modules = list(self.target_module_mapping[kind])
        return peft_config

    def _create_and_replace(
        self,
        peft_config: OmoeConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, OmoeLayer):
            target.update_layer(adapter_name, peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear | Conv1D):
            raise ValueError(
                f"target_modules matches {current_key}, a {type(base).__name__}: "
                "OmoeConfig puts experts on Linear and Conv1D modules only"
            )
        if type(base.weight) is not nn.Parameter or not base.weight.is_floating_point():
            raise ValueError(
                f"{current_key} is quantised ({type(base.weight).__name__}, {base.weight.dtype}), "
                "which OmoeConfig does not support: load the model in float32, bfloat16 or float16"
            )
        layer = OmoeLayer(target)
        layer.update_layer(adapter_name, peft_config)
        layer.train(target.training)
        self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            return
        for layer in self.model.modules():
            if isinstance(layer, OmoeLayer):
                cast_entries(layer, adapter_name, layer.base_weight().dtype)

    def _check_merge_allowed(self) -> None:
        raise ValueError(NOT_MERGEABLE)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names: Omoe serves one adapter at a time, so no batch is mixed while one "
                "of its kind is loaded"
            )
        yield


register(LoradaType.OMOE, OmoeConfig, OmoeModel)
