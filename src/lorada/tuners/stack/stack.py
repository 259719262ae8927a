"""``LoradaConfig(parts=[…])``: any number of PEFT configs, ours or PEFT's, as one adapter.

A stack is a composite tuner. Each part is placed by its own ordinary tuner; everything that PEFT
does afterwards (activating, disabling, casting, saving) works on the tuner layers it finds in the
model, whichever tuner put them there. So LoRaDA-LA is a list of three parts and not a class.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import set_additional_trainable_modules
from torch import Tensor, nn

from lorada.support.version import __version__
from lorada.tuners.base.attach import AttachedModel
from lorada.tuners.base.attached_layer import detach_all
from lorada.tuners.base.config import PREFIX, LoradaPeftConfig, LoradaType, refuse_unknown, register
from lorada.tuners.base.entries import refuse_offloaded
from lorada.tuners.base.injection import (
    all_or_nothing,
    check_fits,
    refuse_absent,
    refuse_doubled,
    refuse_known,
)
from lorada.tuners.base.merging import (
    give_own_weights,
    merge_all,
    merge_inner,
    one_line,
    ties_settled,
)
from lorada.tuners.base.mixed_batch import mixed_batch
from lorada.tuners.lmam import bake
from lorada.tuners.stack.kept import merge_and_keep, refuse_to_merge, wraps
from lorada.tuners.stack.nesting import (
    check_order,
    keys_of_others,
    misfit_named,
    names_alone,
    part_kind,
    rename,
    tuner_of,
    within_reach,
)

FORWARDED = ("layers_to_transform", "layers_pattern")


@dataclass
class LoradaConfig(LoradaPeftConfig):
    """A stack of parts that is one adapter: one config file, one safetensors file.

    Attributes:
        parts: PEFT configs, or their dictionaries as in adapter_config.json. Options that are set
            on the stack itself (``layers_to_transform``, ``modules_to_save``, ``init_weights``,
            ``inference_mode``) hold for every part that does not say otherwise.

    Raises:
        ValueError: for an empty stack, or a part that PEFT does not inject into layers.
    """

    parts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = LoradaType.LORADA
        if not self.parts:
            raise ValueError("LoradaConfig needs at least one part, such as LmamConfig()")
        self.parts = [_as_config(part, self) for part in self.parts]
        for part in self.parts:
            _refuse_unstackable(part)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON-ready data, parts included, as this version writes it."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "parts"}
        parts = [
            {key: sorted(value) if isinstance(value, set) else value for key, value in part.items()}
            for part in (part.to_dict() for part in self.parts)
        ]
        return {**own, "parts": parts, "lorada_version": __version__}


def _as_config(part: Any, stack: LoradaConfig) -> PeftConfig:
    if isinstance(part, PeftConfig):
        return copy.deepcopy(part)  # placing a part fills it in; the caller's stays as it is
    if isinstance(part, dict) and "peft_type" in part:
        refuse_unknown(part, stack)
        return PeftConfig.from_peft_type(**{**part, "inference_mode": stack.inference_mode})
    raise ValueError(f"a part must be a PEFT config or its dictionary with peft_type, not {part!r}")


def _refuse_unstackable(part: PeftConfig) -> None:
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(part.peft_type)
    name = type(part).__name__
    if part.is_prompt_learning or part.is_adaption_prompt or isinstance(part, LoradaConfig):
        raise ValueError(f"{name} cannot be a part: PEFT does not place it in the model's layers")
    if tuner is None or not issubclass(tuner, BaseTuner) or tuner.uses_shared_state:
        raise ValueError(f"{name} cannot be a part: it keeps weights outside the model's layers")
    if getattr(part, "trainable_token_indices", None) is not None:
        raise ValueError(f"trainable_token_indices of {name}: add a TrainableTokensConfig instead")


class LoradaModel(BaseTuner):  # type: ignore[misc]
    """Places the parts of a stack, each by its own tuner, and joins what they save and load."""

    prefix = PREFIX
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **kw: Any) -> None:
        refuse_known(model, adapter_name)
        # Plain attributes, not submodules: every tuner's ``model`` is this tuner's ``model``.
        self.__dict__["_tuners"] = {}
        if isinstance(known := vars(model).get("peft_config"), dict):
            self.__dict__["peft_config"] = dict(known)  # of adapters that transformers has loaded
        super().__init__(model, peft_config, adapter_name, **kw)

    def tuners(self) -> list[BaseTuner]:
        """The tuners of all parts of all adapters."""
        return [tuner for tuners in self.__dict__["_tuners"].values() for tuner in tuners]

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Place every part of an adapter; a later adapter leaves the trainability of earlier ones.

        Raises:
            ValueError: if two parts of one kind want the same module, if a part would wrap
                weights that accelerate has offloaded, or if the model lacks a module to save.
        """
        config = self.peft_config[adapter_name]
        refuse_absent(model, [config, *config.parts], config.task_type)
        for part in filter(wraps, config.parts):
            refuse_offloaded(model, type(part).__name__.removesuffix("Config"))
        stacked = any(isinstance(module, BaseTunerLayer) for module in model.modules())
        before = [(p, p.requires_grad) for p in model.parameters()] if stacked else []
        self.__dict__["_tuners"][adapter_name] = []
        saved = model.__dict__.pop("peft_config", None)
        try:
            with all_or_nothing(model, adapter_name):
                # Attached parts last: they watch modules, which a part like LN tuning replaces.
                for part in sorted(config.parts, key=lambda part: not wraps(part)):
                    self._inject_part(model, adapter_name, part, low_cpu_mem_usage)
                check_order(model, adapter_name, config.parts)
                refuse_doubled(model, adapter_name)
        except Exception:
            del self.__dict__["_tuners"][adapter_name]
            raise
        finally:
            model.__dict__.pop("peft_config", None)
            if saved is not None:
                model.peft_config = saved  # type: ignore[assignment]
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=BaseTuner.get_model_config(model),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )
        for parameter, requires_grad in before:
            parameter.requires_grad = requires_grad

    def _inject_part(
        self, model: nn.Module, adapter_name: str, part: PeftConfig, low_cpu_mem_usage: bool
    ) -> None:
        config: LoradaConfig = self.peft_config[adapter_name]
        own_modules = getattr(part, "modules_to_save", None)
        part.inference_mode = config.inference_mode
        for name in FORWARDED:
            if hasattr(part, name) and getattr(part, name) is None:
                setattr(part, name, getattr(config, name))
        if not config.init_weights:
            for name in ("init_weights", "init_lora_weights", "init_ia3_weights"):
                if hasattr(part, name):
                    setattr(part, name, False)
        if hasattr(part, "modules_to_save") and own_modules is None:
            part.modules_to_save = config.modules_to_save  # so that no part adapts such a module
        tuner_cls = tuner_of(part)
        model.__dict__.pop("peft_config", None)  # a tuner that sees one joins it instead
        placed = self.__dict__["_tuners"][adapter_name]
        with within_reach(model, tuner_cls), misfit_named(model, part, config.parts):
            tuner = tuner_cls(
                model, {adapter_name: part}, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage
            )
        if hasattr(part, "modules_to_save"):
            part.modules_to_save = own_modules
        for other in placed:
            shared = set(tuner.targeted_module_names) & set(other.targeted_module_names)
            if shared and part_kind(tuner, adapter_name) == part_kind(other, adapter_name):
                raise ValueError(
                    f"two parts of type {part.peft_type} both target {sorted(shared)[0]}: "
                    "give them different target_modules"
                )
        placed.append(tuner)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("parts are placed by their own tuners")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward, through a part that extends it (AdaLoRA adds to the loss)."""
        for name in self.active_adapters:
            # One that was loaded for inference has nothing to add, and AdaLoRA's would fail.
            for tuner in [] if self.peft_config[name].inference_mode else self._parts_of(name):
                if type(tuner).forward is not BaseTuner.forward:
                    return tuner(*args, **kwargs)
        return self.model(*args, **kwargs)

    def _parts_of(self, adapter_name: str) -> list[BaseTuner]:
        tuners: list[BaseTuner] = self.__dict__["_tuners"].get(adapter_name, [])
        return tuners

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for tuner in self._parts_of(adapter_name):
            tuner._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter with all its parts."""
        super().delete_adapter(adapter_name)
        self.__dict__["_tuners"].pop(adapter_name, None)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.pop("adapter_names", None)
        tuner_classes = list(dict.fromkeys(type(tuner) for tuner in self.tuners()))
        with ExitStack() as stack:
            stack.enter_context(mixed_batch(self, names, *args, **kwargs))
            for tuner_cls in tuner_classes:
                if getattr(tuner_cls, "mixes", False):  # its layers have been told
                    continue
                if names is not None and "_enable_peft_forward_hooks" not in vars(tuner_cls):
                    raise ValueError(
                        f"adapter_names: {tuner_cls.__name__.removesuffix('Model')} serves one "
                        "adapter at a time, so no batch is mixed while one of its kind is loaded"
                    )
                if hasattr(tuner_cls, "_enable_peft_forward_hooks"):
                    # Called on the stack: an inner tuner is no submodule and never sees eval().
                    own = {**kwargs, "adapter_names": self._names_known_to(tuner_cls, names)}
                    stack.enter_context(tuner_cls._enable_peft_forward_hooks(self, *args, **own))
            yield

    def _names_known_to(
        self, tuner_cls: type[BaseTuner], names: list[str] | None
    ) -> list[str] | None:
        """``adapter_names`` with the base where an adapter has no part of this kind."""
        if names is None:
            return None
        layers = [m for m in self.modules() if isinstance(m, tuner_cls.tuner_layer_cls)]
        known = {name for layer in layers for name in layer._get_available_adapters()}
        return [name if name in known else "__base__" for name in names]

    def __getattr__(self, name: str) -> Any:
        """What the stack lacks, a part of the active adapter may have (``update_and_allocate``)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            for adapter_name in self.active_adapters if self.__dict__.get("_tuners") else []:
                for tuner in self._parts_of(adapter_name):
                    if name in vars(type(tuner)):
                        return getattr(tuner, name)
            raise

    def resize_modules_by_rank_pattern(self, rank_pattern: Any, adapter_name: str) -> None:
        """AdaLoRA's, which PEFT calls on the model while an adapter, active or not, is loaded."""
        for tuner in self._parts_of(adapter_name):
            if hasattr(type(tuner), "resize_modules_by_rank_pattern"):
                tuner.resize_modules_by_rank_pattern(rank_pattern, adapter_name)

    def resize_state_dict_by_rank_pattern(self, *args: Any) -> Any:
        """AdaLoRA's, which PEFT calls on the model while an adapter, active or not, is saved."""
        return AdaLoraModel.resize_state_dict_by_rank_pattern(self, *args)

    # Saving and loading: a part's own hooks on the part's own keys, PEFT's structure for the rest.

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: LoradaConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        everything = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        joined: dict[str, Tensor] = {}
        for part in config.parts:
            tuner_cls = tuner_of(part)
            foreign = keys_of_others(model, tuner_cls, everything)
            saved = tuner_cls._get_adapter_state_dict(
                model, part, adapter_name, state_dict, unwanted_adapter_names
            )
            joined.update({key: value for key, value in saved.items() if key not in foreign})
        return rename(joined, names_alone(model, adapter_name))

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: LoradaConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        here = {alone: name for name, alone in names_alone(model, adapter_name).items()}
        state_dict = rename(state_dict, here)
        for part in config.parts:
            tuner_cls = tuner_of(part)
            if not issubclass(tuner_cls, AttachedModel):
                state_dict = tuner_cls._remap_adapter_state_dict_for_load(
                    model, part, adapter_name, state_dict
                )
        state_dict = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        check_fits(model, config, adapter_name, state_dict)
        return state_dict

    # Merging and baking.

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """No: ``peft.convert_to_lora`` reads one set of target modules, a stack has several."""
        return False

    def _check_merge_allowed(self) -> None:
        for name in self.active_adapters:
            refuse_to_merge(self, name)
        parts = [part for name in self.active_adapters for part in self.peft_config[name].parts]
        kept = sorted({type(part).__name__ for part in parts if not wraps(part)})
        if kept:
            raise ValueError(
                f"parts of {', '.join(kept)} cannot be merged into the weights: merge_weights() "
                "merges the parts that can be and returns the merged model with the rest as an "
                "adapter"
            )
        super()._check_merge_allowed()

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge every part in place; ``unmerge_adapter`` undoes it."""
        self._check_merge_allowed()
        give_own_weights(self.model, adapter_names or self.active_adapters)
        with one_line():
            merge_all(self.model, adapter_names=adapter_names, safe_merge=safe_merge)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # Only unloading replaces here, by a module that has its weights, be it a head of several.
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        with ties_settled(self.model), one_line():
            if merge:
                safe, names = kwargs.get("safe_merge", False), kwargs.get("adapter_names")
                give_own_weights(self.model, names or self.active_adapters)
                merge_inner(self.model, safe_merge=safe, adapter_names=names)
            detach_all(self.model)
            model: nn.Module = super()._unload_and_optionally_merge(merge, **kwargs)
        return model

    def merge_weights(self) -> nn.Module:
        """Merge the parts of the active adapter that can be merged and keep the rest.

        Returns:
            A ``PeftModel`` over the merged base whose adapter holds the remaining parts; the
            merged base itself if nothing remains. The model this is called on is used up.

        Raises:
            ValueError: for a stack with a part around the weights that cannot be merged: it would
                be around other weights than it was trained on.
        """
        return merge_and_keep(self, self.active_adapters[0])

    def bake(self) -> None:
        """Precompute every map of the stack for inference."""
        bake(self.model)


register(LoradaType.LORADA, LoradaConfig, LoradaModel)
