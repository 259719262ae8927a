"""LongLoRA's shifted sparse attention for the length of a training; LoRA is PEFT's.

Chen et al., "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models" (2023).
Evaluation, also in the middle of training, has full attention.
"""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorada.attention.attend import SHIFTED
from lorada.attention.interface import dispatches, install
from lorada.attention.shifted_sparse import ShiftedGroups
from lorada.tuners.lmam import self_attentions


class ShiftedAttention(TrainerCallback):  # type: ignore[misc]
    """Makes every self-attention sparse while the model trains.

    The publication is about decoders; the groups of an encoder have no causal mask.

    Args:
        group_size: G, in tokens; None for a quarter of the padded length of each batch.

    Raises:
        ValueError: for a group size that is no whole number above 0.
    """

    def __init__(self, group_size: int | None = None) -> None:
        whole = isinstance(group_size, int) and not isinstance(group_size, bool)
        if group_size is not None and (not whole or group_size < 1):
            raise ValueError(f"group_size={group_size!r} must be a whole number above 0")
        self.groups = ShiftedGroups(group_size)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Switch it on.

        Raises:
            ValueError: for a model without self-attention that a mask can reach.
        """
        model: nn.Module = kwargs["model"]
        names = self_attentions(model)
        found = [m for m in map(model.get_submodule, names) if dispatches(m)]
        if not found:
            raise ValueError(
                "shifted sparse attention needs attention that transformers dispatches; "
                f"this {type(getattr(model, 'base_model', model)).__name__} has none"
            )
        install()
        for module in found:
            setattr(module, SHIFTED, self.groups)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Switch it off."""
        for module in kwargs["model"].modules():
            if SHIFTED in vars(module):
                delattr(module, SHIFTED)
