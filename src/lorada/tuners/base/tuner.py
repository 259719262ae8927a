"""What every tuner of this package does alike, beside what PEFT's base class does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from lorada.tuners.base.config import PREFIX, LoradaType
from lorada.tuners.base.injection import all_or_nothing, check_fits, refuse_absent
from lorada.tuners.base.merging import give_own_weights, ties_settled
from lorada.tuners.base.mixed_batch import mixed_batch


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

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """Put a module in the place of another; what comes back has its weights, a head several."""
        if isinstance(new_module, BaseTunerLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge in place; ``unmerge_adapter`` undoes it."""
        self._check_merge_allowed()
        give_own_weights(self.model, adapter_names or self.active_adapters)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
            give_own_weights(self.model, kwargs.get("adapter_names") or self.active_adapters)
        with ties_settled(self.model):
            model: nn.Module = super()._unload_and_optionally_merge(merge, **kwargs)
        return model

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
