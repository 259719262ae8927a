"""Tells attention modules apart: by name, by class, by what they see."""

from torch import nn

# Names of cross-attention modules, which get no map: Eqs. 6-17 are about self-attention.
CROSS_ATTENTION = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")


def attention_classes(model: nn.Module) -> str:
    """The class names of a model's attention modules, for an error."""
    classes = {type(module).__name__ for module in model.modules()}
    return ", ".join(sorted(name for name in classes if "ttention" in name))


def is_windowed(module: nn.Module) -> bool:
    """Whether a module sees only a window of its sequence."""
    owners = module, getattr(module, "config", None)
    return any(getattr(owner, "sliding_window", None) for owner in owners)
