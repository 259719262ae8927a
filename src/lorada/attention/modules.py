"""Tells attention modules apart by name and by class."""

from torch import nn

# Names of cross-attention modules, which get no map: Eqs. 6-17 are about self-attention.
CROSS_ATTENTION = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")


def attention_classes(model: nn.Module) -> str:
    """The class names of a model's attention modules, for an error."""
    classes = {type(module).__name__ for module in model.modules()}
    return ", ".join(sorted(name for name in classes if "ttention" in name))
