"""``LoraLinear``: PEFT's LoRA of a linear layer, in less time and memory where the layer is plain.

A stack puts it in the place of PEFT's own class (``stack/faster_layers.py``).
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lorada.functional.dropout import Dropout, is_drawn_here
from lorada.functional.lora_linear import lora_linear

FEW = 32  # tokens; in inference, these take no longer in PEFT's layers
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class LoraLinear(Linear):  # type: ignore[misc]
    """PEFT's LoRA of a linear layer, as one function where one adapter acts on a plain layer."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What PEFT's layer gives; only the rounding differs."""
        name = None if args or kwargs else self._acting_alone(x)
        if name is None:
            peft_s: Tensor = super().forward(x, *args, **kwargs)
            return peft_s
        base, dropout = self.base_layer, self.lora_dropout[name]
        return lora_linear(
            x,
            base.weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
            dropout.p if isinstance(dropout, Dropout) else 0.0,
            dropout.training,
        )

    def _acting_alone(self, x: Tensor) -> str | None:
        """The adapter whose update is all that is added to a plain layer; None if it is not so."""
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return None
        if not self.training and x.numel() < FEW * self.in_features:
            return None
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant:
            return None
        base, a, b = self.base_layer, self.lora_A[name], self.lora_B[name]
        plain = (
            all(map(_is_plain, (base, a, b)))
            and not base.weight.requires_grad
            and not (base.bias is not None and base.bias.requires_grad)
            and b.bias is None
            and x.dtype == base.weight.dtype
            and a.weight.dtype == torch.promote_types(x.dtype, a.weight.dtype)
            and (x.dtype == a.weight.dtype or self.cast_input_dtype_enabled)
            and _may_be_drawn_here(self.lora_dropout[name])
            and not torch.is_autocast_enabled(x.device.type)
            and not torch._C._are_functorch_transforms_active()
        )
        return name if plain else None


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is torch's linear layer with an ordinary weight, and nothing watches it."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) in (nn.Parameter, FakeTensor)
        and "forward" not in vars(layer)  # accelerate replaces it, to move weights
        and not any(getattr(layer, hooks) for hooks in HOOKS)
    )


def _may_be_drawn_here(dropout: nn.Module) -> bool:
    """Whether dropout does nothing, or is one that ``lora_linear`` draws."""
    if any(getattr(dropout, hooks) for hooks in HOOKS):
        return False
    if isinstance(dropout, nn.Identity):
        return True
    return type(dropout) is Dropout and (not dropout.training or is_drawn_here(dropout.p))
