"""Tuners that add a low-rank term to linear maps: y = W x + term(x) with term(x) = Δ x.

A subclass says what its matrices are (``update_layer``) and what they do (``term`` and ``delta``).
The base weight is touched by ``merge`` alone.
"""

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorada.attention.attention_map import for_samples
from lorada.tuners.base.attached_layer import Scaled, cast_entries, weights_of, within_layer
from lorada.tuners.base.config import LoradaPeftConfig
from lorada.tuners.base.tuner import OwnTuner


class AddedLayer(Scaled, nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A linear map and the terms that any number of adapters add to it."""

    if TYPE_CHECKING:  # what PEFT's base class has
        adapter_layer_names: tuple[str, ...]
        other_param_names: tuple[str, ...]
        active_adapters: list[str]
        merged: bool

        def _get_available_adapters(self) -> set[str]: ...
        def get_base_layer(self) -> nn.Module: ...  # noqa: D102

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = self.sizes()
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self.scaling = {}
        self._mixed: list[str] | None = None

    def update_layer(self, adapter_name: str, config: Any, rank: int) -> None:
        """Create the matrices of an adapter."""
        raise NotImplementedError

    def term(self, name: str, x: Tensor) -> Tensor:
        """What an adapter adds for inputs (…, in), in the dtype of its weights."""
        raise NotImplementedError

    def delta(self, name: str) -> Tensor:
        """Δ (out, in) of an adapter, in float32 or wider, for merging."""
        raise NotImplementedError

    def sizes(self) -> tuple[int, int]:
        """Widths of input and output."""
        base: Any = self.get_base_layer()
        if isinstance(base, Conv1D):  # its weight is (in, out)
            return base.weight.shape[0], base.weight.shape[1]
        return base.in_features, base.out_features

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output and what the active adapters add to it."""
        if self._disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters or self.merged:
            return result
        present = self._get_available_adapters()
        for name in dict.fromkeys(self._mixed or self.active_adapters):
            if name in present:
                term = self.scaled(name, self.term(name, x)).to(result.dtype)
                if self._mixed is not None:
                    mine = torch.tensor([name == other for other in self._mixed], device=x.device)
                    term = for_samples(term, mine, term.shape[0])
                result = result + term
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add Δ of adapters, the active ones by default, to the base weight.

        Raises:
            ValueError: for a quantised base; with ``safe_merge``, if the result is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self._get_available_adapters():
                delta = self.scaled(name, self.delta(name))
                self._add_to_base(delta, name if safe_merge else None)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take what was merged out of the base weight again."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            self._add_to_base(-self.scaled(name, self.delta(name)), None)

    @torch.no_grad()
    def _add_to_base(self, delta: Tensor, checked: str | None) -> None:
        base = self.get_base_layer()
        weight = plain_weight(base, "merging")
        if isinstance(base, Conv1D):
            delta = delta.T
        total = (delta + weight).to(weight.dtype)  # added in the wider dtype of the two
        if checked is not None and not torch.isfinite(total).all():
            raise ValueError(  # in PEFT's words, which programs may look for
                f"NaNs detected in the merged weights. The adapter {checked} seems to be broken"
            )
        weight.data = total.contiguous()  # a transposed one could not be saved

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        target = device or next(self.get_base_layer().parameters()).device
        for tensor in weights_of(self, adapter_name):
            if not tensor.is_meta:
                tensor.data = tensor.data.to(target)

    def extra_repr(self) -> str:
        """The adapters this layer holds."""
        return f"adapters={sorted(self._get_available_adapters())}"


def plain_weight(base: nn.Module, wish: str) -> nn.Parameter:
    """The weight of a linear map, as numbers that can be read and written.

    Raises:
        ValueError: if it is quantised.
    """
    weight: Any = getattr(base, "weight", None)
    if type(weight) is not nn.Parameter or not weight.dtype.is_floating_point:
        raise ValueError(
            f"{type(base).__name__} is quantised, which {wish} does not support: "
            "load the model in bfloat16 or float32"
        )
    return weight


def cast_to_base(model: nn.Module, adapter_name: str) -> None:
    """Give an adapter's added terms the dtype of the weights they are added to."""
    for layer in model.modules():
        if isinstance(layer, AddedLayer):
            dtype = next(layer.get_base_layer().parameters()).dtype
            if dtype.is_floating_point:
                cast_entries(layer, adapter_name, dtype)


class AddedModel(OwnTuner):
    """A tuner that wraps linear maps in one kind of ``AddedLayer``."""

    tuner_layer_cls: type[AddedLayer]

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        """Wrap the targets, all of them or none."""
        try:
            super().inject_adapter(model, adapter_name, *args, **kw)
        except NoMatchingPeftModuleError as error:
            config = self.peft_config[adapter_name]
            targets, layers = config.target_modules, config.layers_to_transform
            shown = sorted(targets) if isinstance(targets, set) else targets
            within = "" if layers is None else f" in layers_to_transform={layers!r}"
            raise ValueError(
                f"target_modules={shown!r}{within} matched no module; "
                f"this model has {', '.join(linear_maps(self.model)) or 'no linear maps'}"
            ) from error

    def _prepare_adapter_config(
        self, peft_config: LoradaPeftConfig, model_config: Any
    ) -> LoradaPeftConfig:
        config: Any = peft_config
        if config.target_modules is None:
            config.target_modules = linear_maps(self.model)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: LoradaPeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target
        if not isinstance(target, self.tuner_layer_cls):
            base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
            if not isinstance(base, nn.Linear | Conv1D):
                raise ValueError(
                    f"target_modules matches {current_key}, which is a {type(base).__name__} and "
                    f"no linear map; this model has {', '.join(linear_maps(self.model))}"
                )
            layer = self.tuner_layer_cls(target)
            self._replace_module(parent, target_name, layer, target)
        assert isinstance(layer, AddedLayer)
        layer.update_layer(adapter_name, peft_config, rank_of(peft_config, current_key))
        layer.train(target.training)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            cast_to_base(self.model, adapter_name)


def rank_of(config: Any, name: str) -> int:
    """The rank of the module of a name: its own by ``rank_pattern``, or the common one."""
    rank: int = config.rank_pattern.get(get_pattern_key(config.rank_pattern, name), config.rank)
    return rank


def linear_maps(model: nn.Module) -> list[str]:
    """Names, within a layer, of the linear maps of a model's layers, adapted already or not."""
    names: dict[str, None] = {}
    wrapped: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in wrapped):
            continue
        base = module
        if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer"):
            wrapped.append(name)
            base = module.get_base_layer()
        if isinstance(base, nn.Linear | Conv1D) and (short := within_layer(name)) != name:
            names[short] = None
    return list(names)


def check_ranks(config: Any, smallest: int) -> None:
    """Refuse ranks that are no whole numbers from ``smallest`` on.

    Raises:
        ValueError: naming the module and the rank.
    """
    for name, rank in (config.rank_pattern or {}).items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < smallest:
            raise ValueError(
                f"rank_pattern gives {name} the rank {rank!r}: it must be a whole number "
                f"from {smallest} on"
            )
