"""Prefix tuning as a PEFT tuner: learned keys and values in front of those of each attention.

    head = softmax(Q [P_k; K]ᵀ / √d) [P_v; V],    P_k, P_v ∈ R^{l×d} of each attention module

Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation" (2021). In training, small
networks may compute the prefixes, as in He et al., "Towards a Unified View" (2021). One network
serves all self-attentions of the encoder, one those of the decoder, and one all cross-attentions:

    [P_k; P_v] of all these modules = W_2 tanh(W_1 E + b_1) + b_2,    E ∈ R^{l×d}

``PrefixLayer`` is the child ``prefix`` of an attention module. It holds P_k and P_v, or the rows of
W_2 and b_2 that compute them; ``PrefixNetwork`` holds E, W_1 and b_1.
``attention.prefix_keys`` puts P_k and P_v before the keys and values.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorada.attention import interface
from lorada.attention.call import Prefix, head_count
from lorada.attention.interface import CROSS_ATTENTION, attention_classes
from lorada.attention.prefix_attention import ReplacedForward, is_disentangled
from lorada.attention.with_parts import PREFIX_CHILD
from lorada.functional.precision import no_autocast
from lorada.tuners.base.part_config import Count, LoradaPeftConfig, Number, register
from lorada.tuners.base.tuner import AttachedLayer, AttachedModel, Entries

# Attributes of attention modules with the width of a head; where queries and values differ in it,
# the first is that of the queries.
HEAD_WIDTHS = (
    "qk_head_dim", "head_dim", "attention_head_size", "head_size", "key_value_proj_dim",
)  # fmt: skip


@dataclass
class PrefixConfig(LoradaPeftConfig):
    """The settings of a prefix: how long it is, where, and how it is trained.

    The prefix has no positions and is not rotated. So in a model with rotary positions a batch that
    is padded on the left needs ``position_ids`` of its tokens; ``generate`` makes them.

    Attributes:
        length: l, the number of learned keys and values.
        projection: width of the network that computes the prefix in training (800 in He et al.);
            None trains P_k and P_v themselves. After training, ``model.fold()`` replaces the
            network by its output, and only that is saved.
        initial_std: standard deviation of the normal distribution from which P_k and P_v are drawn
            if no network computes them. LLM-Adapters has 1, the start of an embedding.
        target_modules: names of attention modules; None for all, cross-attention included.
        exclude_modules: names or a regex of modules to leave out.
        stacks: ``encoder`` and/or ``decoder`` of an encoder-decoder model; None for both.
    """

    length: Count = field(default=30)
    projection: Count | None = field(default=None)
    initial_std: Number = field(default=0.02)
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    stacks: list[str] | None = field(default=None)


class PrefixPart(AttachedLayer):
    """Parameters of prefixes; the base of ``PrefixLayer`` and ``PrefixNetwork``."""

    configs: dict[str, PrefixConfig]


class PrefixNetwork(PrefixPart):
    """E, W_1 and b_1 for one set of attention modules; a child of the whole model."""

    adapter_layer_names = ("lora_embedding", "lora_hidden", "lora_hidden_bias")
    lora_embedding: Entries
    lora_hidden: Entries
    lora_hidden_bias: Entries

    def create(self, adapter_name: str, config: PrefixConfig, width: int) -> None:
        """Create the network of an adapter, with PyTorch's usual initialisation; d is ``width``."""
        assert config.projection is not None
        self.configs[adapter_name] = config
        embedding = self.new_weight(config.length, width)
        nn.init.normal_(embedding)  # which may return nothing
        self.lora_embedding[adapter_name] = embedding
        hidden, bias = self.new_weight(config.projection, width), self.new_weight(config.projection)
        draw_uniform(width, hidden, bias)
        self.lora_hidden[adapter_name] = hidden
        self.lora_hidden_bias[adapter_name] = bias

    def forward(self, adapter_name: str) -> Tensor:
        """tanh(W_1 E + b_1), (l, projection)."""
        weight, bias = self.lora_hidden(adapter_name), self.lora_hidden_bias(adapter_name)
        return torch.tanh(F.linear(self.lora_embedding(adapter_name), weight, bias))

    def fold(self, adapter_name: str) -> None:
        """Remove the network of an adapter, after its layers have stored the output."""
        if adapter_name not in self.lora_hidden:
            return
        del self.configs[adapter_name]
        for parameters in (self.lora_embedding, self.lora_hidden, self.lora_hidden_bias):
            del parameters[adapter_name]


class PrefixLayer(PrefixPart):
    """The prefixes of one attention module, by adapter name; G key/value heads of width D.

    Each is ``lora_key`` and ``lora_value`` (l, G·D). If a network computes it, it is ``lora_out``
    (2·G·D, projection) and ``lora_out_bias`` (2·G·D) instead.
    """

    adapter_layer_names = ("lora_key", "lora_value", "lora_out", "lora_out_bias")
    lora_key: Entries
    lora_value: Entries
    lora_out: Entries
    lora_out_bias: Entries

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__(host, parent)
        # What computes the prefixes of adapters with a projection; in a tuple, so that PyTorch does
        # not register it under every layer.
        self.network: tuple[PrefixNetwork, ...] = ()
        if is_disentangled(host):
            self._handles.append(ReplacedForward(host, self))
            return
        interface.install()
        self._handles.append(host.register_forward_pre_hook(interface.check_installed))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a new process, which unpickles a model, the attention functions are not wrapped yet.
        super().__setstate__(state)
        interface.install()

    def update_layer(self, adapter_name: str, config: PrefixConfig, model: nn.Module) -> None:
        """Create the parameters of an adapter for the key/value heads of the host."""
        self.configs[adapter_name] = config
        groups = int(getattr(self.host, "num_key_value_groups", 1))
        width = head_width(self.host) * head_count(self.host) // groups  # G·D
        if config.projection is None:
            std = config.initial_std if config.init_weights else 1.0
            for parameters in (self.lora_key, self.lora_value):
                start = self.new_weight(config.length, width)
                parameters[adapter_name] = nn.init.normal_(start, std=std)
            return
        out, bias = self.new_weight(2 * width, config.projection), self.new_weight(2 * width)
        draw_uniform(config.projection, out, bias)
        self.lora_out[adapter_name], self.lora_out_bias[adapter_name] = out, bias

    def prefixes(self) -> list[Prefix]:
        """The prefixes of the adapters that are active in this call."""
        prefixes = []
        for name in self.active_here():
            key, value = self.prefix(name)
            # Scaled keys would change what is attended to; scaled values shrink what it adds.
            prefixes.append(Prefix(key, self.ist_scaled(name, value)))
        return prefixes

    def prefix(self, name: str) -> tuple[Tensor, Tensor]:
        """P_k and P_v of an adapter, both (l, G·D)."""
        if name in self.lora_key:
            return self.lora_key(name), self.lora_value(name)
        weight, bias = self.lora_out(name), self.lora_out_bias(name)
        with no_autocast(weight.device):
            hidden = self.network[0](name).to(weight.device)
            key, value = F.linear(hidden, weight, bias).chunk(2, -1)
        return key, value

    def fold(self, name: str) -> None:
        """Replace the weights that compute P_k and P_v of an adapter by P_k and P_v."""
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
    host_kind = "an attention module that can have a prefix"
    tuner_layer_cls = PrefixPart

    def no_host(self, config: Any) -> str:
        """Which attention a prefix needs, and which the model has."""
        return (
            "a prefix needs attention that dispatches through transformers' interface, or that of "
            f"DeBERTa-v2; {type(self.model).__name__} computes it itself, in "
            f"{attention_classes(self.model) or 'none we know'}"
        )

    def find_hosts(self, config: Any) -> list[str]:
        """The attention modules, cross-attention included, that can have a prefix."""
        hosts = []
        for name, module in self.model.named_modules():
            if interface.dispatches(module) or is_disentangled(module):
                hosts.append(name)
        return hosts

    def _create_and_replace(
        self,
        config: Any,
        name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        """Place a prefix in an attention module, with the network that computes it, if any."""
        if not hasattr(target, self.child):
            target.add_module(self.child, PrefixLayer(target, parent))
        super()._create_and_replace(config, name, target, target_name, parent, current_key)
        if config.projection is not None:
            layer = getattr(target, self.child)
            layer.network = (self._network_for(config, name, target, current_key),)

    def _network_for(
        self, config: PrefixConfig, adapter_name: str, target: Any, key: str
    ) -> PrefixNetwork:
        """The network for the attention module ``key``; the first module of a set creates it.

        Raises:
            ValueError: if modules that share it have settings of other sizes.
        """
        name = f"prefix_{network_set(key)}"
        network = getattr(self.model, name, None)
        if network is None:
            network = PrefixNetwork(self.model, self.model)
            self.model.add_module(name, network)
        if adapter_name not in network.lora_hidden:
            has_config = target if hasattr(target, "config") else self.model  # DeBERTa's has none
            network.create(adapter_name, config, has_config.config.hidden_size)
        other = network.configs[adapter_name]
        if (other.length, other.projection) != (config.length, config.projection):
            raise ValueError(
                f"length={config.length}, projection={config.projection} of {key} differ from "
                f"length={other.length}, projection={other.projection} of modules that share its "
                "network: give both parts the same, or projection=None"
            )
        return network

    def fold(self, adapter_name: str | None = None) -> None:
        """Replace the network of an adapter, of the active one by default, by its output.

        The prefix stays the same and is the adapter's parameter from then on. Fold after training:
        a checkpoint to be resumed needs the network.
        """
        names = self.active_adapters if adapter_name is None else [adapter_name]
        modules = list(self.model.modules())
        for name in names:
            # The layers first, since they compute their prefix from the networks.
            for module in modules:
                if isinstance(module, PrefixLayer):
                    module.fold(name)
            for module in modules:
                if isinstance(module, PrefixNetwork):
                    module.fold(name)
        for child, module in list(self.model.named_children()):
            if isinstance(module, PrefixNetwork) and not module.lora_hidden:
                delattr(self.model, child)


def head_width(module: Any) -> int:
    """D, the width of a query of one head in an attention module."""
    for name in HEAD_WIDTHS:
        width = getattr(module, name, None)
        if isinstance(width, int) and width:
            return width
    return int(module.config.hidden_size // head_count(module))


def network_set(key: str) -> str:
    """The set of modules that share a network: ``cross``, ``encoder``, ``decoder`` or ``self``."""
    path = key.split(".")
    if any(cross in path for cross in CROSS_ATTENTION):
        return "cross"
    for stack in ("encoder", "decoder"):
        if stack in path:
            return stack
    return "self"


def draw_uniform(fan_in: int, *weights: Tensor) -> None:
    """Draw weights as those of a linear layer with this many inputs."""
    bound = 1 / math.sqrt(fan_in)
    for weight in weights:
        nn.init.uniform_(weight, -bound, bound)


register("PREFIX", PrefixConfig, PrefixModel)
