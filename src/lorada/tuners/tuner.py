"""What every tuner of this package does alike, beside what PEFT's base class does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from lorada.tuners.mixed import mixed_batch
from lorada.tuners.placing import all_or_nothing, check_fits, refuse_absent
from lorada.tuners.types import PREFIX, LoradaType


class OwnTuner(BaseTuner):  # type: ignore[misc]
    """A tuner whose adapters are placed whole, share batches, and load only where they fit."""

    prefix = PREFIX
    mixes = True  # each layer serves the samples of its adapters, as ``mixed_batch`` tells it
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        """Place an adapter on all of its targets, or leave the model as it was."""
        refuse_absent(model, [self.peft_config[adapter_name]], task=None)
        with all_or_nothing(model, adapter_name):
            super().inject_adapter(model, adapter_name, *args, **kw)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.pop("adapter_names", None)
        with mixed_batch(self, names, *args, **kwargs):
            yield

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        # A stack checks when all of its parts have been remapped.
        if getattr(model, "peft_type", None) != LoradaType.LORADA:
            check_fits(model, config, adapter_name, remapped)
        return remapped
