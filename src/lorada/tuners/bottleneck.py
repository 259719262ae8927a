"""Bottleneck adapters as a PEFT tuner: two small matrices around a nonlinearity, beside the FFN.

    A(x) = s · U φ(D x + b_D) + s · b_U

Placement ``ffn`` is the scaled parallel adapter ("Adapter-FFN") of He et al., "Towards a Unified
View of Parameter-Efficient Transfer Learning" (2021): FFN(x) + A(x), added after the FFN's own
dropout and before the residual. Sources of the settings: Tables 15, 16 and 19 of the paper.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorada.terms import for_samples
from lorada.tuners.attach import AttachedModel
from lorada.tuners.devices import Entries
from lorada.tuners.layer import AttachedLayer, within_layer
from lorada.tuners.sites import at, site_of
from lorada.tuners.types import (
    LoradaPeftConfig,
    LoradaType,
    register,
    require_choice,
    require_positive,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


@dataclass
class BottleneckConfig(LoradaPeftConfig):
    """How large the adapter is and where it sits.

    Attributes:
        rank: width of the bottleneck.
        scale: s. The paper uses 2 on GLUE and 4 on XSum, MT and LLMs.
        placement: ``ffn`` (FFN(x) + A(x)).
        activation: φ: ``relu``, ``tanh`` or ``gelu``.
        use_bias: whether D and U have biases.
        layer_norm: whether x is normalised first.
        init: ``lora`` (D Kaiming-uniform, U and biases 0: the identity at step 0) or ``bert``
            (both from N(0, 0.02²), biases 0).
        dropout: after φ; None for the model's own rate.
        adapter_input: ``residual`` reads the un-normalised residual stream of a pre-LN model, as
            the mBART code of He et al. does; ``normed`` reads what the FFN reads.
        target_modules: names of the FFN modules that hold the part; None for all of them.
        exclude_modules: names or a regex of modules to leave out.

    Raises:
        ValueError: for a value out of range.
    """

    rank: int = field(default=16)
    scale: float = field(default=4.0)
    placement: str = field(default="ffn")
    activation: str = field(default="relu")
    use_bias: bool = field(default=True)
    layer_norm: bool = field(default=False)
    init: str = field(default="lora")
    dropout: float | None = field(default=None)
    adapter_input: str = field(default="residual")
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = LoradaType.BOTTLENECK
        require_positive(self, "rank", "scale")
        require_choice(self, "placement", ("ffn",))
        require_choice(self, "activation", tuple(ACTIVATIONS))
        require_choice(self, "init", ("lora", "bert"))
        require_choice(self, "adapter_input", ("residual", "normed"))
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r} must lie in [0, 1)")
        if isinstance(self.target_modules, set | tuple):
            self.target_modules = sorted(self.target_modules)


class BottleneckLayer(AttachedLayer):
    """The adapters of one FFN, fed and read by hooks at the places of its ``Site``."""

    adapter_layer_names = (
        "lora_down",
        "lora_down_bias",
        "lora_up",
        "lora_up_bias",
        "lora_norm_weight",
        "lora_norm_bias",
    )
    other_param_names = ("configs", "dropouts")
    lora_down: Entries
    lora_down_bias: Entries
    lora_up: Entries
    lora_up_bias: Entries
    lora_norm_weight: Entries
    lora_norm_bias: Entries

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__(host, parent)
        for name in self.adapter_layer_names:
            setattr(self, name, Entries())
        self.configs: dict[str, BottleneckConfig] = {}
        self.dropouts: dict[str, float] = {}
        self._inputs: dict[str, Tensor] = {}
        site = site_of(parent)
        assert site is not None
        for name, places in (("residual", site.residual), ("normed", site.normed)):
            for place in places:
                self._handles += at(parent, place, partial(self._keep, name))
        self._handles += at(parent, site.added, self._add)

    def _keep(self, name: str, x: Tensor) -> None:
        self._inputs[name] = x

    def _add(self, output: Tensor) -> Tensor | None:
        if "normed" not in self._inputs:
            return None  # not the FFN's output
        inputs, self._inputs = self._inputs, {}
        result = output
        for name, samples in self.shares():
            term = self.scaled(name, self.adapt(name, inputs[self.configs[name].adapter_input]))
            term = term.view_as(output)  # OPT lays all tokens of a batch in one row for its FFN
            mine = None if samples is None else torch.tensor(samples, device=term.device)
            term = for_samples(term, mine, term.shape[0])
            result = result + term.to(output.dtype)
        return result

    def adapt(self, name: str, x: Tensor) -> Tensor:
        """A(x) of one adapter, (…, d) → (…, d), in the dtype of its weights."""
        config = self.configs[name]
        down, up = self.lora_down(name), self.lora_up(name)
        hidden = x.to(down.dtype)
        if config.layer_norm:
            weight, bias = self.lora_norm_weight(name), self.lora_norm_bias(name)
            hidden = F.layer_norm(hidden, weight.shape, weight, bias)
        down_bias = self.lora_down_bias(name) if config.use_bias else None
        up_bias = self.lora_up_bias(name) if config.use_bias else None
        hidden = ACTIVATIONS[config.activation](F.linear(hidden, down, down_bias))
        hidden = F.dropout(hidden, self.dropouts[name], self.training)
        return config.scale * F.linear(hidden, up, up_bias)

    def update_layer(self, adapter_name: str, config: BottleneckConfig, model: Any) -> None:
        """Create the matrices of an adapter for the hidden width of the model."""
        width, device = model.config.hidden_size, self.host_device(model)
        self.configs[adapter_name] = config
        dropout = model_dropout(model) if config.dropout is None else config.dropout
        self.dropouts[adapter_name] = dropout

        def new(*shape: int, fill: float = 0.0) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, fill, device=device, dtype=torch.float32))

        self.lora_down[adapter_name] = new(config.rank, width)
        self.lora_up[adapter_name] = new(width, config.rank)
        if config.use_bias:
            self.lora_down_bias[adapter_name] = new(config.rank)
            self.lora_up_bias[adapter_name] = new(width)
        if config.layer_norm:
            self.lora_norm_weight[adapter_name] = new(width, fill=1.0)
            self.lora_norm_bias[adapter_name] = new(width)
        down, up = self.lora_down[adapter_name], self.lora_up[adapter_name]
        with torch.no_grad():
            if config.init == "bert":
                down.normal_(std=0.02)
                up.normal_(std=0.02)
            else:
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            if not config.init_weights:
                up.normal_(std=0.1)


class BottleneckModel(AttachedModel):
    """Places an adapter on every FFN that a ``BottleneckConfig`` names."""

    child = "bneck"
    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(
        self, peft_config: BottleneckConfig, model_config: Any
    ) -> BottleneckConfig:
        found = self.candidates()
        if not found:
            raise ValueError(
                f"BottleneckConfig does not know the FFN of {type(self.model).__name__}: "
                "describe its layer in SITES of lorada/tuners/sites.py"
            )
        if peft_config.target_modules is None:
            peft_config.target_modules = found
        return peft_config

    def _check_target_module_exists(self, peft_config: BottleneckConfig, key: str) -> Any:  # type: ignore[override]
        matched = AttachedModel._check_target_module_exists(peft_config, key)
        if matched and key not in ffn_hosts(self.model):
            # A layer's final_layer_norm has namesakes that are not in a layer.
            if key.rpartition(".")[2] in self.candidates():
                return False
            raise ValueError(
                f"target_modules matches {key}, which is not an FFN that can hold an adapter; "
                f"this model has {', '.join(self.candidates()) or 'none'}"
            )
        return matched

    def candidates(self) -> list[str]:
        """Names, within a layer, of the modules that hold the part."""
        return sorted({within_layer(name) for name in ffn_hosts(self.model)})


def ffn_hosts(model: nn.Module) -> list[str]:
    """Names of the modules of a model that hold a bottleneck adapter as their child."""
    hosts = []
    for name, module in model.named_modules():
        # Only modules of a list are layers; the model above them has the same names further down.
        if name.rsplit(".", 1)[-1].isdigit() and (site := site_of(module)) is not None:
            hosts.append(f"{name}.{site.host}")
    return hosts


def model_dropout(model: Any) -> float:
    """The hidden dropout rate of a transformers model; 0 where its config has none."""
    names = ("hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "dropout", "dropout_rate")
    for name in (*names, "mlp_dropout"):
        value = getattr(model.config, name, None)
        if isinstance(value, int | float):
            return float(value)
    return 0.0


register(LoradaType.BOTTLENECK, BottleneckConfig, BottleneckModel)
