"""The base of tuners that add a term to the output of linear layers: y = W x + term(x).

A subclass of ``DeltaLayer`` creates the weights of an adapter (``update_layer``) and computes its
term (``term``) from the input x or the output W x. If the term is a matrix product, term(x) = Δ x,
the subclass also computes Δ (``delta``), and the part can be merged. A subclass of ``DeltaModel``
names its layer. ``sora`` is a short example.
"""

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorada.tuners.base.config import LoradaPeftConfig
from lorada.tuners.base.entries import refuse_offloaded
from lorada.tuners.base.layer import LoradaTunerLayer
from lorada.tuners.base.linears import layer_linear_names, linear_of, widths
from lorada.tuners.base.tuner import LoradaTuner


class DeltaLayer(LoradaTunerLayer):
    """A linear layer and the terms of any number of adapters.

    Attributes:
        delta_reads_weight: whether ``delta`` is computed from the base weight. ``merge`` then keeps
            each Δ for ``unmerge``, since the merged weight would give another.
    """

    delta_reads_weight: ClassVar[bool] = False

    if TYPE_CHECKING:  # methods of PEFT's base class

        def get_base_layer(self) -> Any: ...  # noqa: D102
        def set_base_weight(self, weight: Tensor) -> None: ...  # noqa: D102

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = widths(self.adapted)
        self.quantization_backend: Any = None
        self._merged_deltas: dict[str, Tensor] = {}

    @property
    def adapted(self) -> nn.Module:
        """The linear layer itself, inside of all wrappers."""
        linear: nn.Module = self.get_base_layer()
        return linear

    def update_layer(self, adapter_name: str, config: Any, model: nn.Module, key: str) -> None:
        """Create the weights of an adapter for the linear layer named ``key`` in ``model``."""
        raise NotImplementedError

    def term(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """The term of an adapter (…, out), in the dtype of its weights.

        Args:
            name: the adapter.
            x: the input (…, in).
            output: the output of the linear layer (…, out), W x plus the bias.
        """
        raise NotImplementedError

    def delta(self, name: str) -> Tensor:
        """Δ (out, in) of an adapter, for merging, in float32 or wider."""
        raise NotImplementedError

    def new_weight(self, *shape: int) -> nn.Parameter:
        """Zeros of a shape, in float32, on the device of the linear layer."""
        device = self.device_for_weights()
        return nn.Parameter(torch.zeros(shape, device=device, dtype=torch.float32))

    def without_bias(self, output: Tensor) -> Tensor:
        """W x, given the output W x + b of the linear layer."""
        bias: Tensor | None = self.get_base_layer().bias
        return output if bias is None else output - bias

    def matrix(self) -> Tensor:
        """W (out, in); a ``Conv1D`` stores its transpose."""
        weight: Tensor = self.get_base_layer().weight.detach()
        return weight.T if isinstance(self.adapted, Conv1D) else weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output of the linear layer plus the term of each active adapter."""
        merged = self.merged_alone()
        output: Tensor = self.base_layer(x, *args, **kwargs)
        if merged:
            return output
        result = output
        for name in self.active_here():
            result = result + self.scaled(name, self.term(name, x, output))
        return result.to(output.dtype)

    def merged_alone(self) -> bool:
        """Whether merged weights serve this call; unmerges first if the adapters are disabled."""
        if self._disable_adapters and self.merged:
            self.unmerge()
        return self.merged

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add Δ of adapters, of the active ones by default, to the base weight."""
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self._get_available_adapters()]
        # Each Δ before the weight changes, since ``delta`` may read the weight.
        deltas = {name: self.scaled(name, self.delta(name)) for name in names}
        for name, delta in deltas.items():
            self._add_to_weight(delta, name if safe_merge else None)
            self.merged_adapters.append(name)
        if self.delta_reads_weight:
            self._merged_deltas |= deltas

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract each merged Δ from the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            delta = self._merged_deltas.pop(name, None)
            delta = self.scaled(name, self.delta(name)) if delta is None else delta
            self._add_to_weight(-delta, None)

    def get_base_weight(self) -> Tensor:
        """The weight as the linear layer stores it."""
        return plain_weight(self.adapted, "merging").data

    def _add_to_weight(self, delta: Tensor, checked: str | None) -> None:
        weight = self.get_base_weight()
        delta = delta.T if isinstance(self.adapted, Conv1D) else delta
        total = (delta + weight).to(weight.dtype)  # added in the wider dtype of the two
        if checked is not None and not torch.isfinite(total).all():
            raise ValueError(  # PEFT's text, which programs may search for
                f"NaNs detected in the merged weights. The adapter {checked} seems to be broken"
            )
        self.set_base_weight(total.contiguous())  # a transposed tensor could not be saved


def plain_weight(linear: nn.Module, wish: str) -> nn.Parameter:
    """The weight of a linear layer; ``wish`` is its use, for the error."""
    weight: Any = getattr(linear, "weight", None)
    if type(weight) is not nn.Parameter or not weight.dtype.is_floating_point:
        raise ValueError(
            f"{type(linear).__name__} is quantised, which {wish} does not support: "
            "load the model in bfloat16 or float32"
        )
    return weight


class DeltaModel(LoradaTuner):
    """A tuner that wraps linear layers in one kind of ``DeltaLayer``.

    Without ``target_modules`` these are the entry of ``target_module_mapping`` for the type of the
    model, or, if that mapping is empty, all linear layers of the model's repeated layers.
    """

    tuner_layer_cls: type[DeltaLayer]

    def _prepare_adapter_config(
        self, peft_config: LoradaPeftConfig, model_config: Any
    ) -> LoradaPeftConfig:
        config: Any = peft_config
        if config.target_modules is None:
            kind, known = model_config.get("model_type"), self.target_module_mapping
            if known and kind not in known:
                raise ValueError(
                    f"{type(config).__name__} has no default target_modules for {kind} models: "
                    f"choose some of {self.listed_candidates(config)}"
                )
            config.target_modules = list(known[kind]) if known else layer_linear_names(self.model)
        return peft_config

    def _prepare_model(self, peft_config: LoradaPeftConfig, model: nn.Module) -> None:
        refuse_offloaded(model, type(self).__name__.removesuffix("Model"))

    def new_layer(self, target: nn.Module) -> DeltaLayer:
        """Wrap a linear layer, or the tuner layer around it."""
        return self.tuner_layer_cls(target)

    def place(
        self, config: Any, adapter_name: str, target: Any, parent: nn.Module, key: str
    ) -> None:
        """Wrap the target, if it is not wrapped yet, and create the adapter's weights."""
        layer = target
        if not isinstance(target, self.tuner_layer_cls):
            if linear_of(target) is None:
                raise ValueError(
                    f"target_modules matches {key}, which is {type(target).__name__} and "
                    f"not a linear layer; this model has {self.listed_candidates(config)}"
                )
            layer = self.new_layer(target)
            self._replace_module(parent, key.rpartition(".")[2], layer, target)
        layer.update_layer(adapter_name, config, self.model, key)
        layer.train(target.training)


def rank_of(config: Any, name: str) -> int:
    """The rank of the module of this name, from ``rank_pattern`` or else ``rank``."""
    rank: int = config.rank_pattern.get(get_pattern_key(config.rank_pattern, name), config.rank)
    return rank


def check_ranks(config: Any, smallest: int) -> None:
    """Refuse ranks in ``rank_pattern`` that are not whole numbers from ``smallest`` on."""
    for name, rank in (config.rank_pattern or {}).items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < smallest:
            raise ValueError(
                f"rank_pattern gives {name} the rank {rank!r}: it must be a whole number "
                f"from {smallest} on"
            )
