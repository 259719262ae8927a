"""``make_faster``: PEFT's layers in a stack compute the same with less time and memory.

Their dropout is lorada's, which is faster on a CPU. LoRA on a frozen linear layer is one function.
"""

from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lorada.functional.dropout import Dropout
from lorada.tuners.lora import LoraLinear


def make_faster(model: nn.Module, adapter_name: str) -> None:
    """Replace torch's dropout and PEFT's ``Linear`` in the layers of an adapter."""
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for child in layer.children():
            if isinstance(child, nn.ModuleDict) and adapter_name in child:
                had = child[adapter_name]
                if type(had) is nn.Dropout:
                    child[adapter_name] = Dropout(had.p).train(had.training)
        if type(layer) is Linear:
            layer.__class__ = LoraLinear
