"""LMAM as a PEFT tuner: a learned low-rank map, added to the attention map after the softmax.

    Attn^ = Attn + repeat((W_a + PE)(W_b + PE) s, h / h_s)                (Eqs. 6-17)

``LmamConfig`` holds the settings. ``LmamLayer`` holds the factors W_a and W_b; ``LmamModel`` places
it in each self-attention module, as the child ``lmam``. ``lorada.attention`` computes the sum.
"""

import math
import warnings
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lorada.attention import interface
from lorada.attention.call import head_count
from lorada.attention.forward_inputs import (
    NOTHING_KNOWN,
    ForwardInputs,
    ForwardListener,
    forward_listener,
)
from lorada.attention.hooks import DebertaHooks, is_deberta
from lorada.attention.interface import attention_classes, self_attentions
from lorada.attention.learned_map import LearnedMap
from lorada.attention.with_parts import CHILD
from lorada.functional.maps import Ablation, Align, position_embedding
from lorada.functional.precision import wide
from lorada.tuners.base.part_config import Count, LoradaPeftConfig, Number, register
from lorada.tuners.base.tuner import AttachedLayer, AttachedModel, Entries, FrozenEntries

Times = Annotated[str, Field(pattern=r"^[0-9.]*[1-9][0-9.]*x$")]


@dataclass
class LmamConfig(LoradaPeftConfig):
    """The settings of the maps: where they are, how large they are, and how they start.

    Attributes:
        rank: r, the rank of the map.
        length: n, the number of tokens that the map covers.
        heads: h_s, the number of maps of a layer, which its attention heads use in turn; None for
            one map per head.
        inverse_scale: 1/s of Eq. 10: the map is divided by it. The paper uses 255, 4096*600 and
            others; with the default the map learns at common learning rates (docs/paper.md).
        align: ``start`` lays the map on the first ``length`` tokens of a sample (Eqs. 14-15),
            ``end`` on the last (Eq. 16).
        ablation: ``no_negative``, ``softmax``, ``full_rank`` or ``no_position`` (Table 9).
        init: ``zero`` starts W_b at -PE, so that the map is zero at step 0 and W_a is normal;
            ``zero_left`` the other way round, so that a query that no training row had gets exactly
            nothing; ``normal`` draws both from N(0, 0.02²), which leaves PE alone in the map. The
            one matrix of ``full_rank`` starts at -PE(i) PE(j), so that its map is zero too.
        map_learning_rate: learning rate of the map's factors in `lorada train`: a number, or a
            multiple of that of all other parameters, as ``0.4x`` (docs/study.md); None: the same.
        target_modules: names of self-attention modules; None for all of them.
        exclude_modules: names or a regex of modules to leave out.
        stacks: ``encoder`` and/or ``decoder`` of an encoder-decoder model; None for both.
    """

    rank: Count = field(default=2)
    length: Count = field(default=128)
    heads: Count | None = field(default=None)
    inverse_scale: Number = field(default=1.0)
    align: Align = field(default="start")
    ablation: Ablation | None = field(default=None)
    init: Literal["zero", "zero_left", "normal"] = field(default="zero")
    map_learning_rate: Number | Times | None = field(default="0.4x")
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    stacks: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inverse_scale = float(self.inverse_scale)  # 255 in a recipe, 255.0 in the maths
        if self.ablation == "full_rank" and self.init != "zero":
            raise ValueError(
                f"init={self.init!r} has no meaning for ablation='full_rank', whose one matrix "
                "starts at minus its position embedding: leave it out"
            )

    def rate_beside(self, learning_rate: float) -> float:
        """The learning rate of the map's factors, where all other parameters have this one."""
        rate = self.map_learning_rate
        if isinstance(rate, str):
            return float(rate.removesuffix("x")) * learning_rate
        return learning_rate if rate is None else rate


def map_configs(model: nn.Module, adapter: str | None = None) -> list[LmamConfig]:
    """The configs of all maps of a PEFT model, or of one of its adapters, those in stacks too."""
    configs_by_adapter = getattr(model, "peft_config", {})
    configs = configs_by_adapter.values() if adapter is None else [configs_by_adapter[adapter]]
    maps = []
    for config in configs:
        parts = getattr(config, "parts", [config])  # those of a stack
        maps += [part for part in parts if isinstance(part, LmamConfig)]
    return maps


class LmamLayer(AttachedLayer):
    """The maps of one self-attention module, by adapter name.

    Each has the factors ``lora_w_a`` (h_s, n, r) and ``lora_w_b`` (h_s, r, n), or for the ablation
    ``full_rank`` one matrix ``lora_w`` (h, n, n).

    The layer holds these weights and gives them out as ``maps()``; it has no forward of its own.
    The sum Attn + M is computed where the host calls attention. transformers' attention functions
    are wrapped (``lorada.attention.interface.install``): the wrapper finds this child of the module
    that calls, and adds M V to what the kernel returns (``lorada.attention.with_parts`` and
    ``map_term``); only the map of ¬N goes into the kernel's mask. DeBERTa computes its attention
    itself, so hooks on its modules do the same (``lorada.attention.hooks.DebertaHooks``).
    """

    adapter_layer_names = ("lora_w_a", "lora_w_b", "lora_w")
    lora_w_a: Entries
    lora_w_b: Entries
    lora_w: Entries
    configs: dict[str, LmamConfig]

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__(host, parent)
        self._baked: dict[str, LearnedMap] = {}
        self._pe = FrozenEntries()
        self._listener: ForwardListener | None = None
        interface.install()
        if is_deberta(host):
            self._handles.append(DebertaHooks(host, self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a new process, which unpickles a model, the attention functions are not wrapped yet.
        super().__setstate__(state)
        interface.install()

    def update_layer(self, adapter_name: str, config: LmamConfig, model: nn.Module) -> None:
        """Create the factors of an adapter."""
        heads = self._number_of_maps(config)
        if config.ablation == "no_negative" and not interface.dispatches(self.host):
            raise ValueError(
                f"ablation='no_negative' changes the scores, and {type(self.host).__name__} "
                "computes them itself: choose a model that calls transformers' attention interface"
            )
        if self._listener is None:
            self._listener = forward_listener(model)
            self._listener.add_layer()
            if not is_deberta(self.host):
                self._listener.check_before(self.host, interface.check_installed)
            self._handles.append(self._listener)
        self.configs[adapter_name] = config
        self._baked.pop(adapter_name, None)
        n, r = config.length, config.rank
        if config.ablation == "full_rank":
            self.lora_w[adapter_name] = self.new_weight(heads, n, n)
        else:
            self.lora_w_a[adapter_name] = self.new_weight(heads, n, r)
            self.lora_w_b[adapter_name] = self.new_weight(heads, r, n)
        self._place_pe()
        self._initialise(adapter_name, config)

    def _number_of_maps(self, config: LmamConfig) -> int:
        """h_s, which must divide the number of attention heads."""
        attention_heads = head_count(self.host)
        if config.heads is None or config.ablation == "full_rank":
            return attention_heads
        if attention_heads % config.heads:
            sizes = range(1, attention_heads + 1)
            divisors = ", ".join(str(size) for size in sizes if attention_heads % size == 0)
            raise ValueError(
                f"heads={config.heads} does not divide the {attention_heads} attention heads: "
                f"use one of {divisors}"
            )
        return config.heads

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, with what was computed from its factors."""
        self._baked.pop(adapter_name, None)
        if adapter_name in self._pe:
            del self._pe[adapter_name]
        super().delete_adapter(adapter_name)

    def _place_pe(self) -> None:
        """Compute PE of each map in fp32 or wider, on the device of its factors."""
        for name, config in self.configs.items():
            if config.ablation != "no_position":
                factor = (self.lora_w if name in self.lora_w else self.lora_w_a)[name]
                self._pe[name] = position_embedding(config.length, wide(factor.detach()))

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)
        self._place_pe()  # on meta until now if PEFT placed the adapter with low_cpu_mem_usage

    def _initialise(self, adapter_name: str, config: LmamConfig) -> None:
        with torch.no_grad():
            if adapter_name in self.lora_w:
                _start_full_rank(self.lora_w[adapter_name], config)
            else:
                _start_factors(self.lora_w_a[adapter_name], self.lora_w_b[adapter_name], config)

    @property
    def forward_inputs(self) -> ForwardInputs:
        """The inputs of the running forward of the model."""
        return NOTHING_KNOWN if self._listener is None else self._listener.inputs

    @property
    def reach(self) -> float:
        """The length of the longest map, in tokens; infinity if a map reaches the last tokens."""
        configs = self.configs.values()
        if any(config.align == "end" for config in configs):
            return math.inf
        return max((config.length for config in configs), default=0)

    def maps(self) -> list[LearnedMap]:
        """The maps of the adapters that are active in this call."""
        return [self._map(name) for name in self.active_here()]

    def _map(self, name: str) -> LearnedMap:
        """The map of one adapter, as ``bake`` computed it if that still holds."""
        if name in self._baked and not self.training and not self.scaling:
            return self._baked[name]
        config = self.configs[name]
        factor = self.scaling.get(name, 1.0)
        inverse_scale = config.inverse_scale / factor if factor else math.inf  # a map of zeros
        factors: tuple[Tensor, ...]
        if name in self.lora_w:
            factors = (self.lora_w(name),)
        else:
            factors = (self.lora_w_a(name), self.lora_w_b(name))
        # For factors that accelerate has just brought to another device, PE is computed there.
        pe = None
        if name in self._pe and self._pe[name].device == factors[0].device:
            pe = self._pe[name]
        return LearnedMap(factors, inverse_scale, config.align, config.ablation, pe=pe)

    def bake(self) -> None:
        """Compute each map once, for inference; ``train()`` undoes it."""
        self._baked = {}
        if self.training:  # the factors still change
            return
        with torch.no_grad():
            for name in self.configs:
                learned_map = self._map(name)
                self._baked[name] = replace(learned_map, baked=learned_map.dense())

    def _apply(self, *args: Any, **kwargs: Any) -> "LmamLayer":
        super()._apply(*args, **kwargs)
        self._place_pe()  # another dtype would round it
        if self._baked:  # on another device now, or of another dtype
            self.bake()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._baked = {}  # other factors make another map
        super()._load_from_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> "LmamLayer":
        """Switch the mode; training mode deletes the maps that ``bake`` computed."""
        if mode:
            self._baked = {}
            for factor in (*self.lora_w_a.values(), *self.lora_w_b.values()):
                if factor.requires_grad and factor.dtype.itemsize < 4:  # as TRL casts them
                    warn_of_rounding(factor.dtype)
        super().train(mode)
        return self


def _start_full_rank(w: Tensor, config: LmamConfig) -> None:
    """Draw or set the one matrix W (h, n, n) of a full-rank map."""
    if not config.init_weights:
        w.normal_()
        return
    # Beside a low-rank map, which starts at zero too, only the rank then differs.
    pe = position_embedding(config.length, w)
    w.copy_(-pe[:, None] * pe)


def _start_factors(w_a: Tensor, w_b: Tensor, config: LmamConfig) -> None:
    """Draw or set the factors W_a (h_s, n, r) and W_b (h_s, r, n) of a map."""
    if not config.init_weights or config.init == "normal":
        for factor in (w_a, w_b):
            factor.normal_(std=0.02 if config.init_weights else 1.0)
        return
    # One factor is normal and the other -PE, so that their product is zero: W_b is, or for
    # ``zero_left`` W_a, which is turned to be as W_b.
    normal, negative = (w_b, w_a.mT) if config.init == "zero_left" else (w_a, w_b)
    normal.normal_(std=1 / math.sqrt(config.rank))
    negative.zero_()
    if config.ablation != "no_position":
        negative.sub_(position_embedding(config.length, negative))


@cache  # every layer asks in every step of training
def warn_of_rounding(dtype: torch.dtype) -> None:
    """Warn of factors that train in half precision."""
    warnings.warn(
        f"the factors of a map are {dtype}, which rounds most of their steps to nothing, as they "
        "start near -1: before training, cast each parameter with 'lora_w_' in its name to float32 "
        "(docs/guides/trl.md)",
        stacklevel=2,
    )


class LmamModel(AttachedModel):
    """Places a map on every self-attention module that an ``LmamConfig`` names."""

    child = CHILD
    host_kind = "a self-attention module that can hold a map"
    tuner_layer_cls = LmamLayer

    def find_hosts(self, config: Any) -> list[str]:
        """The self-attention modules whose attention a map would reach."""
        return self_attentions(self.model)

    def no_host(self, config: Any) -> str:
        """Which modules would do, and which attention the model has."""
        return (
            f"no self-attention module of {type(self.model).__name__} dispatches through "
            "transformers' attention interface or is DeBERTa's; "
            f"found {attention_classes(self.model) or 'none'}"
        )

    def bake(self) -> None:
        """Compute every map once, for inference (the paper's offline Attn_s)."""
        bake(self.model)


def bake(model: nn.Module) -> None:
    """Compute every map of a model once, for inference."""
    for layer in model.modules():
        if isinstance(layer, LmamLayer):
            layer.bake()


register("LMAM", LmamConfig, LmamModel)
