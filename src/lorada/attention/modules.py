"""The attention modules of a model, told apart by name and by class."""

from torch import nn

from lorada.attention.hooks import hooks_for
from lorada.attention.interface import dispatches

# Names of cross-attention modules, which get no map: Eqs. 6-17 are about self-attention.
CROSS_ATTENTION = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")


def attention_classes(model: nn.Module) -> str:
    """The class names of a model's attention modules, for an error."""
    classes = {type(module).__name__ for module in model.modules()}
    return ", ".join(sorted(name for name in classes if "ttention" in name))


def can_hold_map(module: nn.Module) -> bool:
    """Whether a map reaches the attention of this module."""
    return dispatches(module) or hooks_for(module) is not None


def self_attentions(model: nn.Module) -> list[str]:
    """Names of all self-attention modules of a model that can hold a map."""
    return [
        name
        for name, module in model.named_modules()
        if can_hold_map(module)
        and not any(f".{cross}." in f".{name}." for cross in CROSS_ATTENTION)
    ]
