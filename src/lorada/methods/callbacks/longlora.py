"""LongLoRA's shifted sparse attention, which a model uses only while it trains.

Chen et al., "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models" (2023). The
LoRA part is PEFT's. Evaluation uses full attention, also in the middle of a training.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from transformers import TrainerCallback

from lorada.attention.forward_inputs import forward_listener
from lorada.attention.interface import dispatches, install, self_attentions
from lorada.attention.shifted_sparse import ShiftedGroups
from lorada.attention.with_parts import SHIFTED
from lorada.tuners.base.part_config import Count, check_values


@dataclass(eq=False)
class ShiftedAttention(TrainerCallback):  # type: ignore[misc]
    """Makes every self-attention shifted and sparse while the model trains.

    The publication is about decoders; in an encoder the groups have no causal mask.
    """

    # G, in tokens; None for a quarter of the padded length of each batch.
    group_size: Count | None = None
    groups: ShiftedGroups = field(init=False)

    def __post_init__(self) -> None:
        check_values(self)
        self.groups = ShiftedGroups(self.group_size)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Switch shifted sparse attention on."""
        model: nn.Module = kwargs["model"]
        modules = [model.get_submodule(name) for name in self_attentions(model)]
        attentions = [module for module in modules if dispatches(module)]
        if not attentions:
            raise ValueError(
                "shifted sparse attention needs attention that transformers dispatches; "
                f"this {type(getattr(model, 'base_model', model)).__name__} has none"
            )
        install()
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        listener = forward_listener(base)
        self.groups = replace(self.groups, listener=listener)
        for module in attentions:
            listener.add_layer()
            setattr(module, SHIFTED, self.groups)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Switch shifted sparse attention off."""
        for module in kwargs["model"].modules():
            if SHIFTED in vars(module):
                delattr(module, SHIFTED)
                if self.groups.listener is not None:
                    self.groups.listener.remove()
