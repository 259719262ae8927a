"""``replace_dropouts``: PEFT's layers get lorada's form of dropout, which is faster on a CPU."""

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lorada.functional.dropout import Dropout


def replace_dropouts(model: nn.Module, adapter_name: str) -> None:
    """Replace torch's dropout in all layers of an adapter that PEFT has placed."""
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for child in layer.children():
            if isinstance(child, nn.ModuleDict) and adapter_name in child:
                had = child[adapter_name]
                if type(had) is nn.Dropout:
                    child[adapter_name] = Dropout(had.p).train(had.training)
