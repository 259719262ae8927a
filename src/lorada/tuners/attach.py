"""The tuner of attached parts: one kind of layer, where it goes and under what name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn

from lorada.tuners.layer import AttachedLayer, cast_to_host, detach_all
from lorada.tuners.mixed import mixed_batch
from lorada.tuners.placing import all_or_nothing, check_fits
from lorada.tuners.types import PREFIX, LoradaPeftConfig


class AttachedModel(BaseTuner):  # type: ignore[misc]
    """A tuner that attaches one kind of layer; subclasses say which, where and under what name."""

    prefix = PREFIX
    mixes = True  # each layer serves the samples of its adapters, as ``mixed_batch`` tells it
    child: str
    tuner_layer_cls: type[AttachedLayer]
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Attach the part to its targets; a state dict is not needed to find them."""
        try:
            with all_or_nothing(model, adapter_name):
                super().inject_adapter(
                    model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage
                )
        except NoMatchingPeftModuleError as error:
            config = self.peft_config[adapter_name]
            chosen = {
                name: getattr(config, name, None)
                for name in ("target_modules", "layers_to_transform", "stacks")
            }
            asked = ", ".join(f"{name}={value}" for name, value in chosen.items() if value)
            raise ValueError(
                f"{asked} matched no module that can hold this part; "
                f"this model has {', '.join(self.candidates(config)) or 'none'}"
            ) from error

    def candidates(self, config: Any) -> list[str]:
        """Names, within a layer, of the modules of this model that can hold the part."""
        raise NotImplementedError

    def _create_and_replace(
        self,
        peft_config: LoradaPeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = getattr(target, self.child, None)
        if layer is None:
            layer = self.tuner_layer_cls(target, parent)
            target.add_module(self.child, layer)
        layer.update_layer(adapter_name, peft_config, self.model)
        layer.train(target.training)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            cast_to_host(self.model, adapter_name)

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            f"{type(self).__name__.removesuffix('Model')} parts cannot be merged into the weights; "
            "merge_weights() merges the parts that can be and keeps the rest as an adapter"
        )

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        detach_all(self.model)
        model: nn.Module = super()._unload_and_optionally_merge(merge=False, **kwargs)
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
        check_fits(model, config, adapter_name, remapped)
        return remapped
