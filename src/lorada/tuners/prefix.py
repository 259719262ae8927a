"""Prefix tuning as a PEFT tuner: learned keys and values before those of every attention block.

    head = softmax(Q [P_k; K]ᵀ / √d) [P_v; V],    P_k, P_v ∈ R^{l×d} of each block

Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation" (2021). In training the
prefix may come out of a small network, one for each set of blocks (encoder, decoder,
cross-attention), as in He et al., "Towards a Unified View" (2021):

    [P_k; P_v] of all blocks = W_2 tanh(W_1 E + b_1) + b_2,    E ∈ R^{l×d}

``PrefixLayer`` is the child ``prefix`` of an attention module and owns P_k and P_v, or the block's
rows of W_2; ``PrefixNetwork`` owns the rest. What attention does with them is in ``prefixed``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import _ExcludedModule
from torch import Tensor, nn

from lorada.attention import interface as attention
from lorada.attention.attend import PREFIX_CHILD
from lorada.attention.call import head_count
from lorada.attention.deberta_prefix import ReplacedForward, is_disentangled
from lorada.attention.interface import CROSS_ATTENTION
from lorada.attention.prefix import Prefix
from lorada.tuners.base.attach import AttachedModel
from lorada.tuners.base.attached_layer import AttachedLayer, within_layer
from lorada.tuners.base.config import (
    LoradaPeftConfig,
    LoradaType,
    register,
    require_count,
    require_positive,
)
from lorada.tuners.base.entries import Entries

HEAD_WIDTHS = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")


@dataclass
class PrefixConfig(LoradaPeftConfig):
    """How long the prefix is, where it stands, and how it is trained.

    The prefix is not rotated and counts as no position, so in a model with rotary positions a batch
    that is padded on the left needs ``position_ids`` of its tokens, which ``generate`` makes.

    Attributes:
        length: l, in tokens.
        projection: width of the network that the prefix comes out of in training (800 in He et
            al.); None trains P_k and P_v themselves. ``model.fold()`` replaces a trained network by
            its output, which is all that is needed from then on and all that is saved afterwards.
        initial_std: standard deviation of the normal distribution that P_k and P_v start from,
            where they do not come out of a network; 1 in LLM-Adapters, as embeddings start.
        target_modules: names of attention modules; None for all, cross-attention included.
        exclude_modules: names or a regex of modules to leave out.
        stacks: ``encoder`` and/or ``decoder`` of an encoder-decoder model; None for both.

    Raises:
        ValueError: for a value out of range.
    """

    length: int = field(default=30)
    projection: int | None = field(default=None)
    initial_std: float = field(default=0.02)
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    stacks: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = LoradaType.PREFIX
        require_count(self, "length")
        require_positive(self, "initial_std")
        if self.projection is not None:
            require_count(self, "projection")


class PrefixPart(AttachedLayer):
    """A module of ours that holds parameters of prefixes."""

    other_param_names = ("configs",)

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__(host, parent)
        for name in self.adapter_layer_names:
            setattr(self, name, Entries())
        self.configs: dict[str, PrefixConfig] = {}


class PrefixNetwork(PrefixPart):
    """E, W_1 and b_1 of one set of blocks, a child of the whole model."""

    adapter_layer_names = ("lora_embedding", "lora_hidden", "lora_hidden_bias")
    lora_embedding: Entries
    lora_hidden: Entries
    lora_hidden_bias: Entries

    def create(
        self, adapter_name: str, config: PrefixConfig, width: int, device: torch.device
    ) -> None:
        """Create the network of an adapter, E of d = ``width``, as PyTorch starts such layers."""
        assert config.projection is not None
        self.configs[adapter_name] = config
        uniform, new = _uniform(width), partial(_new, device)
        size = config.projection
        self.lora_embedding[adapter_name] = new(config.length, width, start=nn.init.normal_)
        self.lora_hidden[adapter_name] = new(size, width, start=uniform)
        self.lora_hidden_bias[adapter_name] = new(size, start=uniform)

    def forward(self, adapter_name: str) -> Tensor:
        """tanh(W_1 E + b_1), (l, projection)."""
        weight, bias = self.lora_hidden(adapter_name), self.lora_hidden_bias(adapter_name)
        return torch.tanh(F.linear(self.lora_embedding(adapter_name), weight, bias))

    def fold(self, adapter_name: str) -> None:
        """Forget the network of an adapter, whose layers have its output."""
        if adapter_name not in self.lora_hidden:
            return
        del self.configs[adapter_name]
        for parameters in (self.lora_embedding, self.lora_hidden, self.lora_hidden_bias):
            del parameters[adapter_name]


class PrefixLayer(PrefixPart):
    """The prefixes of one attention module, by adapter name.

    ``lora_key`` and ``lora_value`` (l, G·D), or ``lora_out`` (2·G·D, projection) and
    ``lora_out_bias`` (2·G·D) where they come out of a network.
    """

    adapter_layer_names = ("lora_key", "lora_value", "lora_out", "lora_out_bias")
    lora_key: Entries
    lora_value: Entries
    lora_out: Entries
    lora_out_bias: Entries

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__(host, parent)
        self._network: tuple[PrefixNetwork, ...] = ()
        if is_disentangled(host):
            self._handles.append(ReplacedForward(host, self))
            return
        attention.install()
        self._handles.append(host.register_forward_pre_hook(attention.check_installed))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A model that was unpickled in a new process finds the attention functions unwrapped.
        super().__setstate__(state)
        attention.install()

    def update_layer(self, adapter_name: str, config: PrefixConfig, model: nn.Module) -> None:
        """Create the parameters of an adapter for the key/value heads of the host."""
        self.configs[adapter_name] = config
        width, new = key_width(self.host), partial(_new, self.host_device(model))
        if config.projection is None:
            std = config.initial_std if config.init_weights else 1.0
            for parameters in (self.lora_key, self.lora_value):
                parameters[adapter_name] = new(
                    config.length, width, start=lambda p: p.normal_(std=std)
                )
            return
        uniform = _uniform(config.projection)
        self.lora_out[adapter_name] = new(2 * width, config.projection, start=uniform)
        self.lora_out_bias[adapter_name] = new(2 * width, start=uniform)

    def share(self, network: PrefixNetwork) -> None:
        """Take the prefixes of adapters with a projection out of this network."""
        # In a tuple, the network is not registered once more under every layer.
        self._network = (network,)

    def prefixes(self) -> list[Prefix]:
        """The prefixes of the adapters that are active in this call."""
        found = []
        for name, samples in self.shares():
            key, value = self.prefix(name)
            mine = None if samples is None else torch.tensor(samples, device=key.device)
            found.append(Prefix(key, self.scaled(name, value), mine))
        return found

    def prefix(self, name: str) -> tuple[Tensor, Tensor]:
        """P_k and P_v of an adapter, both (l, G·D)."""
        if name in self.lora_key:
            return self.lora_key(name), self.lora_value(name)
        weight, bias = self.lora_out(name), self.lora_out_bias(name)
        device = "cpu" if weight.is_meta else weight.device.type  # meta knows no autocast
        with torch.autocast(device, enabled=False):
            hidden = self._network[0](name).to(weight.device)
            key, value = F.linear(hidden, weight, bias).chunk(2, -1)
        return key, value

    def fold(self, name: str) -> None:
        """Keep P_k and P_v of an adapter instead of what they are computed from."""
        if name not in self.lora_out:
            return
        self.configs[name].projection = None  # this is the adapter's own config
        trains = self.lora_out[name].requires_grad
        key, value = (part.detach().clone() for part in self.prefix(name))
        del self.lora_out[name], self.lora_out_bias[name]
        self.lora_key[name] = nn.Parameter(key, requires_grad=trains)
        self.lora_value[name] = nn.Parameter(value, requires_grad=trains)


class PrefixModel(AttachedModel):
    """Places a prefix before the keys of every attention module that a ``PrefixConfig`` names."""

    child = PREFIX_CHILD
    tuner_layer_cls = PrefixPart

    def _prepare_adapter_config(self, peft_config: PrefixConfig, model_config: Any) -> PrefixConfig:
        if not self.candidates(peft_config):
            classes = {type(module).__name__ for module in self.model.modules()}
            kinds = ", ".join(sorted(name for name in classes if "ttention" in name))
            raise ValueError(
                "a prefix needs attention that dispatches through transformers' interface, or that "
                f"of DeBERTa-v2; {type(self.model).__name__} computes it itself, in "
                f"{kinds or 'none we know'}"
            )
        context = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
        if isinstance(context, int) and peft_config.length >= context:
            raise ValueError(
                f"length={peft_config.length} of a prefix must be below the {context} tokens of "
                "the model's context: lower it"
            )
        if peft_config.target_modules is None:
            peft_config.target_modules = self.candidates(peft_config)
        return peft_config

    def candidates(self, config: Any) -> list[str]:
        """Names, within a layer, of the attention modules of this model."""
        modules = self.model.named_modules()
        return sorted({within_layer(name) for name, m in modules if takes_prefix(m)})

    def _check_target_module_exists(self, peft_config: PrefixConfig, key: str) -> Any:  # type: ignore[override]
        matched = AttachedModel._check_target_module_exists(peft_config, key)
        if not matched or isinstance(matched, _ExcludedModule):
            return matched
        if not takes_prefix(self.model.get_submodule(key)):
            raise ValueError(
                f"target_modules matches {key}, which is not an attention module that can have a "
                f"prefix; this model has {', '.join(self.candidates(peft_config))}"
            )
        return not peft_config.stacks or any(s in key.split(".") for s in peft_config.stacks)

    def _create_and_replace(
        self,
        peft_config: PrefixConfig,  # type: ignore[override]
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = getattr(target, self.child, None)
        if layer is None:
            layer = PrefixLayer(target, parent)
            target.add_module(self.child, layer)
        layer.update_layer(adapter_name, peft_config, self.model)
        if peft_config.projection is not None:
            layer.share(self._network_for(peft_config, adapter_name, target, current_key))
        layer.train(target.training)

    def _network_for(
        self, config: PrefixConfig, adapter_name: str, target: Any, key: str
    ) -> PrefixNetwork:
        """The network of the set of blocks that ``key`` belongs to, made for its first block."""
        name = f"prefix_{set_of(key)}"
        network = getattr(self.model, name, None)
        if network is None:
            network = PrefixNetwork(self.model, self.model)
            self.model.add_module(name, network)
        if adapter_name not in network.lora_hidden:
            device = getattr(target, self.child).host_device(self.model)
            of = target if hasattr(target, "config") else self.model  # DeBERTa's has none
            network.create(adapter_name, config, hidden_width(of), device)
        theirs = network.configs[adapter_name]
        if (theirs.length, theirs.projection) != (config.length, config.projection):
            raise ValueError(
                f"length={config.length}, projection={config.projection} of {key} differ from "
                f"length={theirs.length}, projection={theirs.projection} of blocks that share its "
                "network: give both parts the same, or projection=None"
            )
        return network

    def fold(self, adapter_name: str | None = None) -> None:
        """Replace the network of an adapter, of the active one by default, by its output.

        The prefix stays the same and is the adapter's parameter from then on. Fold after training:
        a checkpoint to be resumed needs the network.
        """
        for name in self.active_adapters if adapter_name is None else [adapter_name]:
            # First the layers, which compute their prefix, then the networks that they read.
            for cls in (PrefixLayer, PrefixNetwork):
                for module in [m for m in self.model.modules() if isinstance(m, cls)]:
                    module.fold(name)
            for child, module in list(self.model.named_children()):
                if isinstance(module, PrefixNetwork) and not module.lora_hidden:
                    delattr(self.model, child)


def takes_prefix(module: nn.Module) -> bool:
    """Whether a module is attention that a prefix can stand before."""
    return attention.dispatches(module) or is_disentangled(module)


def set_of(key: str) -> str:
    """The set of blocks that share a network: ``cross``, ``encoder``, ``decoder`` or ``self``."""
    places = key.split(".")
    if any(cross in places for cross in CROSS_ATTENTION):
        return "cross"
    return next((stack for stack in ("encoder", "decoder") if stack in places), "self")


def key_width(module: Any) -> int:
    """G·D, the width of all keys of a token in an attention module."""
    heads = head_count(module)
    widths = [getattr(module, name, None) for name in HEAD_WIDTHS]
    width = next((w for w in widths if isinstance(w, int)), None) or hidden_width(module) // heads
    return width * heads // int(getattr(module, "num_key_value_groups", 1))


def hidden_width(module: Any) -> int:
    """d, the width of a model, or of that which an attention module is part of."""
    return int(module.config.hidden_size)


def _new(device: torch.device, *shape: int, start: Callable[[Tensor], Any]) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(*shape, device=device))
    with torch.no_grad():
        start(parameter)
    return parameter


def _uniform(fan_in: int) -> Callable[[Tensor], Any]:
    bound = 1 / math.sqrt(fan_in)
    return lambda parameter: parameter.uniform_(-bound, bound)


register(LoradaType.PREFIX, PrefixConfig, PrefixModel)
