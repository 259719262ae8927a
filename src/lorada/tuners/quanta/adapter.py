"""QuanTA as a PEFT tuner: a matrix beside the weight, made of gates on pairs of tensor axes.

    y = W_0 x + (T - S) x

T is the product of the gates (``gates``), S the same product of a frozen copy of their start. So
the change is exactly zero at step 0 although T is not, and W_0 stays as it was.
"""

import hashlib
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorada.attention.attention_map import for_samples
from lorada.tuners.base.attached_layer import Scaled
from lorada.tuners.base.config import LoradaPeftConfig, LoradaType, register, require_rate
from lorada.tuners.base.entries import refuse_offloaded, used_on
from lorada.tuners.base.tuner import OwnTuner
from lorada.tuners.quanta.gates import apply_to_width, as_matrix, default_dims, draw_gates, pairs
from lorada.tuners.stack.nesting import matrices


@dataclass
class QuantaConfig(LoradaPeftConfig):
    """How the width is factored, and which matrices have gates.

    Attributes:
        dims: factors of the width, first axis first, as ``[16, 8, 8, 4]`` or ``"16-8-8-4"``. Their
            product must be the input or the output width of every target. None takes 16-8-8-4 for
            4096 and 16-8-8-5 for 5120, as the paper does, and for another width four factors as
            equal as possible (576: 6-6-4-4); the width is the model's hidden width, or the input's
            where a target has no side of that width.
        dropout: on what the change reads, (T - S) dropout(x).
        seed: None draws the gates from torch's generator and saves S beside T. A number draws
            them from it, another draw for each module, and saves T alone, half the file: S is
            drawn again on loading.
        target_modules: names or a regex of the matrices; None for query and value. One that is not
            square keeps the width of ``dims`` on both sides: of the longer side only the first
            numbers are read or written.
        exclude_modules: names or a regex of modules to leave out.

    Raises:
        ValueError: for a value out of range.
    """

    dims: list[int] | str | None = field(default=None)
    dropout: float = field(default=0.0)
    seed: int | None = field(default=None)
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = LoradaType.QUANTA
        if self.dims is not None:
            self.dims = _factors(self.dims)
        require_rate(self, "dropout")
        if self.seed is not None and (
            isinstance(self.seed, bool) or not isinstance(self.seed, int)
        ):
            raise ValueError(f"seed={self.seed!r} must be a whole number, or None to save S")


def _factors(dims: Any) -> list[int]:
    try:
        found = [int(factor) for factor in dims.split("-")] if isinstance(dims, str) else list(dims)
    except (TypeError, ValueError):
        found = []
    if len(found) < 2 or not all(isinstance(factor, int) and factor > 1 for factor in found):
        raise ValueError(
            f"dims={dims!r} must be two or more whole numbers above 1, such as [16, 8, 8, 4]"
        )
    return found


class Gates(nn.Module):
    """The gates of one adapter on one matrix, with the frozen copy of their start.

    Gate (a, b) is the parameter ``a_b``, its start the buffer ``start_a_b``. A call gives
    (T - S) x, for which accelerate brings offloaded gates back.
    """

    def __init__(self, dims: list[int], gates: list[Tensor], start: list[Tensor], save: bool):
        super().__init__()
        self.dims = dims
        self.names = [f"{a}_{b}" for a, b in pairs(len(dims))]
        for name, gate, its_start in zip(self.names, gates, start, strict=True):
            self.register_parameter(name, nn.Parameter(gate))
            self.register_buffer(f"start_{name}", its_start, persistent=save)

    def trained(self) -> list[Tensor]:
        """The gates of T, first gate first."""
        return [getattr(self, name) for name in self.names]

    def start(self) -> list[Tensor]:
        """The gates of S."""
        return [getattr(self, f"start_{name}") for name in self.names]

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(T - S) x, of ``width`` numbers, in the dtype of the gates.

        T x and S x are nearly the same for long, so half precision, also autocast's, would leave
        little of their difference. Computed alike, it is exactly zero where T = S.
        """
        gates = self.trained()
        x = x.to(gates[0].dtype)
        kind = x.device.type
        with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
            new = apply_to_width(x, gates, self.dims, width)
            return new - apply_to_width(x, self.start(), self.dims, width)

    def matrix(self, rows: int, columns: int) -> Tensor:
        """T - S as the matrix of a module with so many outputs and inputs."""
        gates, start = self.trained(), self.start()
        new = as_matrix(gates, self.dims, rows, columns)
        return new - as_matrix(start, self.dims, rows, columns)


class QuantaLayer(Scaled, nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A matrix with the gates of any number of adapters around it."""

    if TYPE_CHECKING:  # what PEFT's base class has
        active_adapters: list[str]
        merged: bool

        get_base_layer: Callable[[], Any]
        get_base_weight: Callable[[], Tensor]
        set_base_weight: Callable[[Tensor], None]

    adapter_layer_names = ("lora_gates",)
    other_param_names = ("dropouts",)

    def __init__(self, base_layer: nn.Module, **options: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_gates = nn.ModuleDict()
        self.dropouts: dict[str, float] = {}
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self.scaling = {}
        self._mixed: list[str] | None = None
        base = self.get_base_layer()
        self.quantization_backend = resolve_quantization_backend(base, **options)
        self.transposed = isinstance(base, Conv1D)  # a weight of (in, out)
        sides = base.weight.shape if self.transposed else (base.in_features, base.out_features)
        self.in_features: int = sides[0]
        self.out_features: int = sides[1]

    def update_layer(self, adapter_name: str, config: QuantaConfig, key: str, hidden: Any) -> None:
        """Create the gates of an adapter.

        Args:
            adapter_name: of the adapter.
            config: of the adapter.
            key: name of the module, which a seed is joined with.
            hidden: the model's width, if it has one.

        Raises:
            ValueError: if ``dims`` does not fit the module.
        """
        dims = self._dims(config, key, hidden)
        device = next(used_on(self.get_base_layer()), torch.device("cpu"))
        generator = None if config.seed is None else _generator(config.seed, key)
        start = draw_gates(dims, generator)
        gates = [gate.clone() for gate in start]
        if not config.init_weights:  # √3 undoes what a gate takes from the length of a vector
            gates = [math.sqrt(3) * gate for gate in draw_gates(dims, generator)]
        start, gates = ([gate.to(device) for gate in drawn] for drawn in (start, gates))
        self.lora_gates[adapter_name] = Gates(dims, gates, start, save=config.seed is None)
        self.dropouts[adapter_name] = config.dropout

    def _dims(self, config: QuantaConfig, key: str, hidden: Any) -> list[int]:
        sides = (self.in_features, self.out_features)
        if config.dims is None:
            width = hidden if hidden in sides else self.in_features
            try:
                return list(default_dims(width))
            except ValueError as error:
                raise ValueError(f"{key} has no default dims: {error}; leave it out") from None
        assert not isinstance(config.dims, str)
        product = math.prod(config.dims)
        if product not in sides:
            shown = "-".join(str(factor) for factor in config.dims)
            raise ValueError(
                f"dims={shown} multiply to {product}, but {key} has {self.in_features} inputs and "
                f"{self.out_features} outputs: choose factors of one of them, or leave dims out"
            )
        return config.dims

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's would cast to the base's dtype too, and half precision would spoil T - S.
        target = device or next(used_on(self.get_base_layer()), None)
        for name, gates in self.lora_gates.items():
            if name == adapter_name and not any(p.is_meta for p in gates.parameters()):
                gates.to(target)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base module's output plus (T - S) x of every adapter at work."""
        if self._disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name, samples in self._shares():
            seen = F.dropout(x, self.dropouts[name], self.training)
            term = self.scaled(name, self.lora_gates[name](seen, self.out_features))
            mine = None if samples is None else torch.tensor(samples, device=term.device)
            result = result + for_samples(term, mine, term.shape[0])
        return result.to(dtype)

    def _shares(self) -> list[tuple[str, list[bool] | None]]:
        """The adapters at work in this call, each with the samples it serves (None: all)."""
        if self._disable_adapters:
            return []
        if self.merged:
            if self._mixed is not None:
                raise ValueError("adapter_names needs unmerged adapters: call unmerge_adapter()")
            return []
        if self._mixed is None:
            return [(name, None) for name in self.active_adapters if name in self.lora_gates]
        names = [name for name in dict.fromkeys(self._mixed) if name in self.lora_gates]
        return [(name, [name == mixed for mixed in self._mixed]) for name in names]

    # Merging.

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """T - S of one adapter, in the layout of the base's weight."""
        with torch.no_grad():
            gates = self.lora_gates[adapter_name]
            assert isinstance(gates, Gates)
            delta = self.scaled(adapter_name, gates.matrix(self.out_features, self.in_features))
            return delta.T if self.transposed else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """W ← W + T - S for each adapter, in place.

        Raises:
            ValueError: with ``safe_merge``, if a merged weight were not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.lora_gates:
                continue
            weight = self.get_base_weight()
            merged = (weight + self.get_delta_weight(name)).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )
            self.set_base_weight(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """W ← W - T + S for each merged adapter."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            weight = self.get_base_weight()
            self.set_base_weight((weight - self.get_delta_weight(name)).to(weight.dtype))


def _generator(seed: int, key: str) -> torch.Generator:
    """A generator for one module, the same wherever the seed and the module's name are."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class QuantaModel(OwnTuner):
    """Puts gates around every matrix that a ``QuantaConfig`` names."""

    tuner_layer_cls = QuantaLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {
        **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
        "mbart": ["q_proj", "v_proj"],
    }

    def _prepare_adapter_config(self, peft_config: QuantaConfig, model_config: Any) -> QuantaConfig:
        if peft_config.target_modules is None:
            kind = model_config.get("model_type")
            if kind not in self.target_module_mapping:
                raise ValueError(
                    f"QuanTA has no default target_modules for model type {kind!r}: choose some of "
                    f"{', '.join(matrices(self.model)) or 'none'}"
                )
            peft_config.target_modules = list(self.target_module_mapping[kind])
        return peft_config

    def _prepare_model(self, peft_config: QuantaConfig, model: nn.Module) -> None:
        refuse_offloaded(model, "QuanTA")

    def _create_and_replace(
        self,
        peft_config: QuantaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear | Conv1D):
            raise ValueError(
                f"QuanTA takes nn.Linear and Conv1D, but {current_key} is {type(base).__name__}: "
                "leave it out of target_modules"
            )
        known = isinstance(target, QuantaLayer)
        layer = target if known else QuantaLayer(target, **get_quantization_kwargs(self))
        assert isinstance(layer, QuantaLayer)
        hidden = getattr(getattr(self.model, "config", None), "hidden_size", None)
        layer.update_layer(adapter_name, peft_config, current_key, hidden)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)
        layer.train(target.training)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self.model.modules():
            if isinstance(layer, QuantaLayer) and adapter_name in layer.lora_gates:
                dtype = layer.get_base_layer().weight.dtype
                if not autocast_adapter_dtype and dtype.is_floating_point:
                    layer.lora_gates[adapter_name].to(dtype)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        own = {key: value for key, value in remapped.items() if ".lora_gates." in key}
        for key in own if config.seed is None else ():
            path, _, name = key.rpartition(".")
            if not name.startswith("start_") and f"{path}.start_{name}" not in own:
                raise ValueError(
                    f"the adapter has {key} but not its start, without which T - S is unknown: "
                    "save it again, or set the seed that it was drawn from"
                )
        return remapped


register(LoradaType.QUANTA, QuantaConfig, QuantaModel)
