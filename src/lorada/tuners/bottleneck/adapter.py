"""Bottleneck adapters as a PEFT tuner: two small matrices around a nonlinearity, somewhere.

    A(x) = s · U φ(D x + b_D) + s · b_U

Placement ``ffn`` is the scaled parallel adapter ("Adapter-FFN") of He et al., "Towards a Unified
View of Parameter-Efficient Transfer Learning" (2021): FFN(x) + A(x), added after the FFN's own
dropout and before the residual. ``placements.py`` has it and the others, each with the settings it
was published with. Sources of the settings: Tables 15, 16 and 19 of the paper.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorada.attention.attention_map import for_samples
from lorada.support.errors import MOST
from lorada.tuners.base.attach import AttachedModel
from lorada.tuners.base.attached_layer import AttachedLayer
from lorada.tuners.base.config import (
    LoradaPeftConfig,
    LoradaType,
    register,
    require_choice,
    require_count,
    require_positive,
    require_rate,
)
from lorada.tuners.base.entries import Entries
from lorada.tuners.bottleneck.placements import LINEARS, ROWS, Spot, hosts, spot_at
from lorada.tuners.bottleneck.sites import at

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


def _of_placement() -> Any:
    """A field that the placement decides where it is not given."""
    return field(default=None)


@dataclass
class BottleneckConfig(LoradaPeftConfig):
    """How large the adapter is and where it sits.

    Attributes:
        rank: width of the bottleneck.
        scale: s; 4 for ``ffn`` (the paper uses 2 on GLUE and 4 on XSum, MT and LLMs), else 1.
        placement: ``ffn`` (FFN(x) + A(x)); ``pa_attn`` (beside each attention, added in front of
            its output projection); ``houlsby`` (behind attention and FFN: y + A(y)); ``pfeiffer``
            (behind the FFN's norm: LN(A(z) + y + x), z = LN(y + x), with y the FFN's own output,
            whatever other parts add to it; in a pre-LN layer A(y + x) + y + x, or A(y) + y + x
            where attention is beside the FFN); on linears ``series`` (y + A(y), y = Wx),
            ``series_input`` (W(x + A(x))) and ``parallel`` (Wx + A(x)).
        activation: φ: ``relu``, ``tanh`` or ``gelu``; tanh on linears, else relu.
        use_bias: whether D and U have biases; none on linears.
        layer_norm: whether x is normalised first; only ``pa_attn`` does. With ``houlsby`` it is
            about the adapters behind attention.
        init: ``lora`` (D Kaiming-uniform, U and biases 0: the identity at step 0; of ``ffn``) or
            ``bert`` (both from N(0, 0.02²), biases 0: not the identity; of all others).
        dropout: after φ; None for the model's own rate; 0 on linears.
        adapter_input: of placement ``ffn``: ``residual`` reads the un-normalised residual stream
            of a pre-LN model, as the mBART code of He et al. does; ``normed`` reads what the FFN
            reads.
        target_modules: names of the modules that the placement is about: FFN, attention or, on
            linears, any of those; None for all of them, or LLaMA's ``down_proj`` (series),
            ``gate_proj`` and ``up_proj`` (series_input), ``up_proj`` and ``down_proj`` (parallel).
        exclude_modules: names or a regex of modules to leave out.

    Raises:
        ValueError: for a value out of range.
    """

    rank: int = field(default=16)
    scale: float = _of_placement()
    placement: str = field(default="ffn")
    activation: str = _of_placement()
    use_bias: bool = _of_placement()
    layer_norm: bool = _of_placement()
    init: str = _of_placement()
    dropout: float | None = _of_placement()
    adapter_input: str = field(default="residual")
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = LoradaType.BOTTLENECK
        require_choice(self, "placement", tuple(ROWS))
        for name, value in asdict(ROWS[self.placement]).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        require_count(self, "rank")
        require_positive(self, "scale")
        require_choice(self, "activation", tuple(ACTIVATIONS))
        require_choice(self, "init", ("lora", "bert"))
        require_choice(self, "adapter_input", ("residual", "normed"))
        if self.adapter_input != "residual" and self.placement != "ffn":
            raise ValueError(
                f"adapter_input={self.adapter_input!r} is about placement 'ffn', "
                f"not {self.placement!r}: leave it out"
            )
        if self.dropout is not None:
            require_rate(self, "dropout")

    @property
    def starts_as_base(self) -> bool:
        """Whether U is zero at step 0."""
        return self.init_weights and self.init == "lora"


class BottleneckLayer(AttachedLayer):
    """The adapters at one place, fed and read by hooks at the places of its ``Spot``."""

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

    def __init__(self, spot: Spot) -> None:
        super().__init__(spot.layer.get_submodule(spot.host), spot.layer)
        for name in self.adapter_layer_names:
            setattr(self, name, Entries())
        self.configs: dict[str, BottleneckConfig] = {}
        self.dropouts: dict[str, float] = {}
        self._spot = spot
        self._inputs: dict[str, Tensor] = {}
        for name, places in spot.reads.items():
            for place in places:
                first = spot.of in ("sum", "norm")
                self._handles += at(spot.layer, place, partial(self._keep, name), first=first)
        self._handles += at(spot.layer, spot.added, self._add)

    @property
    def host(self) -> nn.Module:
        """The module this part adapts, or what wraps it by now."""
        return self._spot.layer.get_submodule(self._spot.host)

    def _keep(self, name: str, x: Tensor) -> None:
        self._inputs[name] = x

    def _add(self, here: Tensor) -> Tensor | None:
        if not self._spot.reads.keys() <= self._inputs.keys():
            return None  # the module serves another part of the layer first
        inputs, self._inputs = self._inputs, {}
        result = here
        for name, samples in self.shares():
            term = self.scaled(name, self.adapt(name, self._read(name, inputs, here)))
            term = term.view_as(here)  # OPT lays all tokens of a batch in one row for its FFN
            mine = None if samples is None else torch.tensor(samples, device=term.device)
            result = result + for_samples(term, mine, here.shape[0]).to(here.dtype)
        return result

    def _read(self, name: str, inputs: dict[str, Tensor], here: Tensor) -> Tensor:
        """The x of A(x)."""
        of, placement = self._spot.of, self.configs[name].placement
        if of == "kept":
            return inputs[self.configs[name].adapter_input if placement == "ffn" else "x"]
        if of == "branch":
            return here - inputs["x"].view_as(here)
        if of in ("sum", "norm"):
            summed = inputs["y"] + inputs["x"] if "x" in inputs else inputs["y"]
            if of == "sum":
                return summed
            norm = self._spot.layer.get_submodule(self._spot.added.rpartition(".")[0])
            # Its forward and not the norm itself, whose hooks led here.
            normed: Tensor = norm.forward(summed)
            return normed
        return here

    def adapt(self, name: str, x: Tensor) -> Tensor:
        """A(x) of one adapter, (…, d) → (…, d), in the dtype of its weights."""
        config = self.configs[name]
        down, up = self.lora_down(name), self.lora_up(name)
        hidden = x.to(down.dtype)
        if name in self.lora_norm_weight:
            weight, bias = self.lora_norm_weight(name), self.lora_norm_bias(name)
            hidden = F.layer_norm(hidden, weight.shape, weight, bias)
        down_bias = self.lora_down_bias(name) if config.use_bias else None
        up_bias = self.lora_up_bias(name) if config.use_bias else None
        hidden = ACTIVATIONS[config.activation](F.linear(hidden, down, down_bias))
        hidden = F.dropout(hidden, self.dropouts[name], self.training)
        return config.scale * F.linear(hidden, up, up_bias)

    def update_layer(self, adapter_name: str, config: BottleneckConfig, model: Any) -> None:
        """Create the matrices of an adapter, as wide as what passes here."""
        hidden = model.config.hidden_size
        fan_in, fan_out = self._spot.width or (hidden, hidden)
        device = self.host_device(model)
        self.configs[adapter_name] = config
        dropout = model_dropout(model) if config.dropout is None else config.dropout
        self.dropouts[adapter_name] = dropout

        def new(*shape: int, fill: float = 0.0) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, fill, device=device, dtype=torch.float32))

        self.lora_down[adapter_name] = new(config.rank, fan_in)
        self.lora_up[adapter_name] = new(fan_out, config.rank)
        if config.use_bias:
            self.lora_down_bias[adapter_name] = new(config.rank)
            self.lora_up_bias[adapter_name] = new(fan_out)
        if config.layer_norm and self._spot.may_norm:
            self.lora_norm_weight[adapter_name] = new(fan_in, fill=1.0)
            self.lora_norm_bias[adapter_name] = new(fan_in)
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
    """Places the adapters that a ``BottleneckConfig`` names."""

    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(
        self, peft_config: BottleneckConfig, model_config: Any
    ) -> BottleneckConfig:
        found, placement = self.candidates(peft_config), peft_config.placement
        if not found:
            raise ValueError(_undefined(placement).format(type(self.model).__name__))
        if peft_config.target_modules is None:
            wanted = LINEARS.get(placement)
            peft_config.target_modules = found if wanted is None else list(wanted)
            ends = {name.rpartition(".")[2] for name in found}
            if wanted is not None and not ends.issuperset(wanted):
                raise ValueError(
                    f"placement={placement!r} is for {' and '.join(wanted)}: give target_modules; "
                    f"this model has {_listed(found)}"
                )
        return peft_config

    def _check_target_module_exists(self, peft_config: BottleneckConfig, key: str) -> Any:  # type: ignore[override]
        matched = AttachedModel._check_target_module_exists(peft_config, key)
        if matched and spot_at(self.model, key, peft_config.placement) is None:
            found = self.candidates(peft_config)
            # A layer's final_layer_norm has namesakes that are not in a layer.
            if any(f".{key}".endswith(f".{name}") for name in found):
                return False
            kind = _KINDS[peft_config.placement]
            raise ValueError(
                f"target_modules matches {key}, which is not {kind} that can hold an adapter; "
                f"this model has {_listed(found)}"
            )
        return matched

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,  # type: ignore[override]
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        spot = spot_at(self.model, current_key, peft_config.placement)
        assert spot is not None
        holder = spot.layer.get_submodule(spot.holder)
        layer = getattr(holder, spot.child, None)
        if layer is None:
            layer = BottleneckLayer(spot)
            holder.add_module(spot.child, layer)
        layer.update_layer(adapter_name, peft_config, self.model)
        layer.train(holder.training)

    def candidates(self, config: BottleneckConfig) -> list[str]:
        """Names, within a layer, of the modules that the placement can be at."""
        return sorted(set(hosts(self.model, config.placement)))


# What the modules are that a placement is at.
_KINDS = {
    "ffn": "an FFN",
    "pa_attn": "an attention",
    "houlsby": "an attention's output projection or an FFN",
    "pfeiffer": "an FFN",
    **dict.fromkeys(LINEARS, "a linear in a layer"),
}


def _undefined(placement: str) -> str:
    """Why a placement is at no module of a model, whose class is yet to be filled in."""
    if placement in ("ffn", "pfeiffer"):
        return (
            f"placement={placement!r} does not know the FFN of {{}}: "
            "describe its layer in SITES of lorada/tuners/bottleneck/sites.py"
        )
    if placement in LINEARS:
        return (
            f"placement={placement!r} needs linears in the layers of the model, and {{}} has none"
        )
    return (
        f"placement={placement!r} does not know the attention of {{}}: use placement 'ffn', "
        "or describe the attention in lorada/tuners/bottleneck/placements.py"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if names[MOST:] else ""
    return (", ".join(names[:MOST]) or "none") + more


def model_dropout(model: Any) -> float:
    """The hidden dropout rate of a transformers model; 0 where its config has none."""
    names = ("hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "dropout", "dropout_rate")
    for name in (*names, "mlp_dropout"):
        value = getattr(model.config, name, None)
        if isinstance(value, int | float):
            return float(value)
    return 0.0


register(LoradaType.BOTTLENECK, BottleneckConfig, BottleneckModel)
