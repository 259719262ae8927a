"""QuanTA as a PEFT tuner: adds a full-rank matrix, the product of small gates, to a linear layer.

    y = W x + (T - S) x

Chen et al., "QuanTA: Efficient High-Rank Fine-Tuning of LLMs with Quantum-Informed Tensor
Adaptation" (2024). T is the product of the gates (see ``gates``). S is the product of frozen copies
of the gates from before training, so that T - S is exactly zero at step 0.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch.nn.functional as F
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from lorada.functional.precision import no_autocast
from lorada.tuners.base.delta_layer import DeltaLayer, DeltaModel
from lorada.tuners.base.part_config import LoradaPeftConfig, Rate, register
from lorada.tuners.quanta.gates import apply_to_width, default_dims, draw_gates, pairs


@dataclass
class QuantaConfig(LoradaPeftConfig):
    """Shape of the gates, and which linear layers get them.

    Attributes:
        dims: factors of the width D on which the gates work, first axis first, as
            ``[16, 8, 8, 4]`` or ``"16-8-8-4"``. D must be the input or the output width of every
            target. If the other width is larger, only its first D numbers are read or written.
            With None, D is the model's hidden width, or the input width of a target that has no
            side of that width. The factors are then the paper's for 4096 (16-8-8-4) and 5120
            (16-8-8-5), and else four factors as equal as possible (6-6-4-4 for 576).
        dropout: rate of the dropout on x in (T - S) x.
        target_modules: names or a regex of the linear layers; None for query and value.
        exclude_modules: names or a regex of modules to leave out.
    """

    dims: list[int] | str | None = field(default=None)
    dropout: Rate = field(default=0.0)
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        if self.dims is not None:
            self.dims = _factors(self.dims)
        super().__post_init__()


def _factors(dims: Any) -> list[int]:
    """The factors of ``dims``, a list or a text such as ``16-8-8-4``.

    Raises:
        ValueError: for fewer than two factors, or what is no whole number above 1.
    """
    try:
        if isinstance(dims, str):
            factors = [int(factor) for factor in dims.split("-")]
        else:
            factors = list(dims)
    except (TypeError, ValueError):
        factors = []
    if len(factors) < 2 or not all(isinstance(factor, int) and factor > 1 for factor in factors):
        raise ValueError(
            f"dims={dims!r} must be two or more whole numbers above 1, such as [16, 8, 8, 4]"
        )
    return factors


class Gates(nn.Module):
    """The gates of one adapter on one linear layer, and frozen copies of them from the start.

    Gate (a, b) is the parameter ``a_b``, its copy the buffer ``start_a_b``. They have their own
    module, since accelerate loads offloaded weights when the module that owns them is called.
    """

    def __init__(self, dims: list[int], gates: list[Tensor], start: list[Tensor]):
        super().__init__()
        self.dims = dims
        self.names = [f"{a}_{b}" for a, b in pairs(len(dims))]
        for name, gate, its_start in zip(self.names, gates, start, strict=True):
            self.register_parameter(name, nn.Parameter(gate))
            self.register_buffer(f"start_{name}", its_start)

    def trained(self) -> list[Tensor]:
        """The gates of T, in the order in which they act."""
        return [getattr(self, name) for name in self.names]

    def start(self) -> list[Tensor]:
        """The gates of S, likewise, in the dtype of T's."""
        for name, gate in zip(self.names, self.trained(), strict=True):
            start = getattr(self, f"start_{name}")
            if start.dtype != gate.dtype:  # a trainer has cast T alone; S stays rounded as T was
                setattr(self, f"start_{name}", start.to(gate.dtype))
        return [getattr(self, f"start_{name}") for name in self.names]

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(T - S) x (…, width), in the dtype of the gates."""
        gates = self.trained()
        x = x.to(gates[0].dtype)
        # T x and S x are close, and half precision would round away much of their difference.
        with no_autocast(x.device):
            changed = apply_to_width(x, gates, self.dims, width)
            return changed - apply_to_width(x, self.start(), self.dims, width)


class QuantaLayer(DeltaLayer):
    """A linear layer with the gates of any number of adapters."""

    adapter_layer_names = ("lora_gates",)
    configs: dict[str, QuantaConfig]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.lora_gates = nn.ModuleDict()

    def update_layer(
        self, adapter_name: str, config: QuantaConfig, model: nn.Module, key: str
    ) -> None:
        """Create the gates of an adapter."""
        hidden_size = getattr(getattr(model, "config", None), "hidden_size", None)
        dims = self._dims(config, key, hidden_size)
        device = self.device_for_weights()
        start = [gate.to(device) for gate in draw_gates(dims)]
        if config.init_weights:
            gates = [gate.clone() for gate in start]
        else:  # a gate shrinks a vector by √3 on average; undo that
            gates = [(math.sqrt(3) * gate).to(device) for gate in draw_gates(dims)]
        self.lora_gates[adapter_name] = Gates(dims, gates, start)
        self.configs[adapter_name] = config

    def _dims(self, config: QuantaConfig, key: str, hidden_size: Any) -> list[int]:
        """The factors of D for the linear layer named ``key``.

        Raises:
            ValueError: if the factors multiply to neither side of the layer, or its width has none.
        """
        sides = (self.in_features, self.out_features)
        if config.dims is None:
            # The same width for all targets, where they have it, gives gates of one shape.
            width = hidden_size if hidden_size in sides else self.in_features
            try:
                return list(default_dims(width))
            except ValueError as error:
                raise ValueError(f"{key} has no default dims: {error}; leave it out") from None
        assert not isinstance(config.dims, str)
        product = math.prod(config.dims)
        if product not in sides:
            factors = "-".join(str(factor) for factor in config.dims)
            raise ValueError(
                f"dims={factors} multiply to {product}, but {key} has {self.in_features} inputs "
                f"and {self.out_features} outputs: choose factors of one of them, or leave dims out"
            )
        return config.dims

    def term(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """(T - S) dropout(x)."""
        dropped = F.dropout(x, self.configs[name].dropout, self.training)
        term: Tensor = self.lora_gates[name](dropped, self.out_features)
        return term


class QuantaModel(DeltaModel):
    """Adds gates to the linear layers that a ``QuantaConfig`` names."""

    tuner_layer_cls = QuantaLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {
        **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
        "mbart": ["q_proj", "v_proj"],
    }


register("QUANTA", QuantaConfig, QuantaModel)
