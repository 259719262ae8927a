"""Gains of attention heads as a PEFT tuner: an extension of this project, not of the paper.

    constant    o_h ← (1 + g_h) o_h,                            g ∈ R^H, 0 at the start
    query       o_hi ← (1 + g_h + w_h·q_hi / √d) o_hi,          w ∈ R^{H×d} too, 0 at the start

o_h is what head h of a self-attention gives to the output projection W_o: the softmax's part and
the terms of maps and prefixes. So ``GainLayer`` wraps W_o and scales its input. Constant gains can
be merged, into the columns of W_o. Parts on W_o that stand before the gain in a stack read the
scaled heads, those behind it read the heads as they were.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorada.attention.call import head_count
from lorada.attention.queries import QueryListener
from lorada.functional.gains import gain_delta, query_gains, scale_heads
from lorada.functional.precision import wide
from lorada.tuners.base.attached_layer import head_width
from lorada.tuners.base.config import LoradaPeftConfig, register, require_choice
from lorada.tuners.base.delta_layer import DeltaLayer
from lorada.tuners.base.entries import Entries, refuse_offloaded
from lorada.tuners.base.linears import linear_of
from lorada.tuners.base.tuner import SelfAttentionModel
from lorada.tuners.bottleneck.layouts import ATTENTIONS

FORMS = ("constant", "query")


@dataclass
class GainConfig(LoradaPeftConfig):
    """Which gains there are, and where.

    Attributes:
        form: ``constant`` has one number for each head; ``query`` adds a linear function of the
            head's query, so that the gain differs from token to token.
        target_modules: names of self-attention modules; None for all of them.
        exclude_modules: names or a regex of modules to leave out.
        stacks: ``encoder`` and/or ``decoder`` of an encoder-decoder model; None for both.

    Raises:
        ValueError: for an unknown form.
    """

    form: str = field(default="constant")
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    stacks: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "form", FORMS)

    @property
    def mergeable(self) -> bool:
        """Whether the gains can be merged; those of the query differ from token to token."""
        return self.form == "constant"


class GainLayer(DeltaLayer):
    """The output projection of an attention module, and the gains of any number of adapters.

    Each has ``lora_gain`` (H,), and for the form ``query`` also ``lora_gain_query`` (H, d).
    """

    adapter_layer_names = ("lora_gain", "lora_gain_query")
    delta_reads_weight = True
    lora_gain: Entries
    lora_gain_query: Entries

    def __init__(self, base_layer: nn.Module, attention: nn.Module) -> None:
        super().__init__(base_layer)
        # In a tuple, so that PyTorch does not register the attention under its own child.
        self._attention = (attention,)
        self._listener: QueryListener | None = None
        self._query: Tensor | None = None  # of the running attention call

    def update_layer(self, adapter_name: str, config: Any, model: nn.Module, key: str) -> None:
        """Create the gains of an adapter.

        Raises:
            ValueError: if the heads do not share the input of the projection equally, or if the
                form reads queries that cannot be reached.
        """
        attention = self._attention[0]
        heads = head_count(attention)
        if self.in_features % heads:
            raise ValueError(
                f"{type(attention).__name__} gives {self.in_features} numbers of {heads} heads to "
                "its output projection, so they have no equal shares: leave it out with "
                "exclude_modules"
            )
        if config.form == "query" and self._listener is None:
            self._listener = QueryListener(attention, self.keep_query)
        self.configs[adapter_name] = config
        self.lora_gain[adapter_name] = self.new_weight(heads)
        if config.form == "query":
            self.lora_gain_query[adapter_name] = self.new_weight(heads, head_width(attention))
        if not config.init_weights:
            for weight in self.weights_of(adapter_name):
                nn.init.normal_(weight)

    def detach_from_host(self) -> None:
        """Stop listening to the queries."""
        if self._listener is not None:
            self._listener.remove()
            self._listener = None

    def keep_query(self, query: Tensor) -> None:
        """Keep the queries (B, H, T, d) of an attention call until its output is projected."""
        needed = any(name in self.lora_gain_query for name in self.active_here())
        self._query = query if needed else None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output of the projection of the scaled heads."""
        query, self._query = self._query, None  # so that no tensor lives longer than its forward
        if not self.merged_alone():
            for_each = [self._gains(name, x, query) for name in self.active_here()]
            if for_each:
                x = scale_heads(x, torch.stack(torch.broadcast_tensors(*for_each)).sum(0))
        output: Tensor = self.base_layer(x, *args, **kwargs)
        return output

    def _gains(self, name: str, x: Tensor, query: Tensor | None) -> Tensor:
        """The gains of an adapter in this call, (…, H) with dimensions of 1 or as ``x`` has."""
        gain: Tensor = self.lora_gain(name)
        if name in self.lora_gain_query:
            assert query is not None
            gain = query_gains(query, self.lora_gain_query(name), gain).view(*x.shape[:-1], -1)
        else:
            gain = wide(gain).view(*[1] * (x.dim() - 1), -1)
        return self.scaled(name, gain)

    def delta(self, name: str) -> Tensor:
        """W_o diag(g), where W_o is without gains that are merged already."""
        weight = wide(self.matrix()) - sum(self._merged_deltas.values())
        return gain_delta(weight, self.lora_gain[name])


class GainModel(SelfAttentionModel):
    """Places gains behind every self-attention module that a ``GainConfig`` names."""

    host_kind = "a self-attention module whose heads can have gains"
    tuner_layer_cls = GainLayer

    def _prepare_model(self, peft_config: GainConfig, model: nn.Module) -> None:
        refuse_offloaded(model, "Gain")

    def place(
        self, config: GainConfig, adapter_name: str, target: Any, parent: nn.Module, key: str
    ) -> None:
        """Wrap the output projection of an attention, and create the adapter's gains."""
        name = output_projection(self.model, key)
        layer = projection = self.model.get_submodule(name)
        if not isinstance(projection, GainLayer):
            layer = GainLayer(projection, target)
            above, _, child = name.rpartition(".")
            self._replace_module(self.model.get_submodule(above), child, layer, projection)
        layer.update_layer(adapter_name, config, self.model, name)
        layer.train(target.training)

    def refuse_merge(self, names: list[str]) -> None:
        """Refuse to merge gains that read queries."""
        super().refuse_merge(names)
        for name in names:
            config = self.peft_config[name]
            if not config.mergeable:
                raise ValueError(
                    "Gain parts cannot be merged into the weights, as with "
                    f"form={config.form!r} they differ from token to token: keep it as an adapter"
                )


def output_projection(model: nn.Module, attention: str) -> str:
    """The name of the output projection of the attention module of this name.

    Raises:
        ValueError: if it is not known, with the class of the module.
    """
    for heads, output in ATTENTIONS:
        if f".{attention}".endswith(f".{heads}"):
            name = attention.removesuffix(heads) + output
            above, _, child = name.rpartition(".")
            projection = getattr(model.get_submodule(above), child, None)
            if projection is not None and linear_of(projection) is not None:
                return name
    raise ValueError(
        f"gains need the linear layer behind the heads, and that of {attention} "
        f"({type(model.get_submodule(attention)).__name__}) is not known: "
        "leave the module out with exclude_modules"
    )


register("GAIN", GainConfig, GainModel)
