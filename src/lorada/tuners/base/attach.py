"""The tuner of attached parts: one kind of layer, where it goes and under what name."""

from typing import Any

from peft.utils.error import NoMatchingPeftModuleError
from torch import nn

from lorada.tuners.base.attached_layer import AttachedLayer, cast_to_host, detach_all
from lorada.tuners.base.config import LoradaPeftConfig
from lorada.tuners.base.tuner import OwnTuner


class AttachedModel(OwnTuner):
    """A tuner that attaches one kind of layer; subclasses say which, where and under what name."""

    mergeable = False
    child: str
    tuner_layer_cls: type[AttachedLayer]

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        """Attach the part to its targets; a state dict is not needed to find them."""
        kw.pop("state_dict", None)
        try:
            super().inject_adapter(model, adapter_name, *args, **kw)
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
