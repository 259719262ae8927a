"""The tuner of a stack: several parts as one adapter.

Each part is placed by its ordinary tuner. All that PEFT does afterwards (activating, disabling,
casting, saving) works on the tuner layers in the model, no matter which tuner placed them. So
LoRaDA-LA is a list of three parts and not a class.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import _set_adapter as activate_heads
from peft.utils.other import set_additional_trainable_modules
from torch import Tensor, nn

from lorada.tuners.base.linears import layer_kind
from lorada.tuners.base.merged_weights import refuse_nonlinear
from lorada.tuners.base.part_config import STACK, PeftTypeName, refuse_layers, register
from lorada.tuners.base.tuner import (
    AttachedModel,
    LoradaTuner,
    all_or_nothing,
    check_fits,
    execution_device,
    refuse_absent,
    refuse_doubled,
    refuse_known,
    refuse_unknown,
)
from lorada.tuners.lmam import bake
from lorada.tuners.stack.adalora_parts import OwnRanks, factors, regulariser
from lorada.tuners.stack.by_transformers import name_weights, refuse_without_peft_model
from lorada.tuners.stack.merging import merge_and_keep_attached, refuse_unmergeable
from lorada.tuners.stack.nested_layers import (
    check_order,
    keys_of_others,
    layers_of,
    layers_shown,
    let_stand_beside_others,
    names_alone,
    part_kind,
    part_named_in_errors,
    refuse_blind,
    rename,
    train_biases,
    tuner_of,
    wraps,
)
from lorada.tuners.stack.stack_config import LoradaConfig, as_stack

# What TRL calls the copy of adapter ``default`` that DPO, KTO, GRPO and RLOO refer to. It adds it
# by the config of ``default`` and copies only weights with ``.default.`` inside of their names.
REFERENCE = "ref"
# What is said instead of saving an adapter without the weights that it belongs to.
MERGED = (
    "merge_weights() has merged what it can of this adapter into the base, which its file would "
    "not hold: save it before, or write base and adapter by `lorada export RUN DIR`. In Python, "
    "save what model.merge_and_unload() gives if every part can be merged; else give "
    "model.peft_config[...].base_model_name_or_path the folder in which you save model.unload()"
)
# The names, in different configs, of the option that is False for a start from random weights.
INIT_OPTIONS = ("init_weights", "init_lora_weights", "init_ia3_weights")
# What PeftModel calls the tuner, in names of weights.
TUNER = "base_model"


class LoradaModel(LoradaTuner):
    """Places the parts of a stack, each by its own tuner, and joins what they save and load."""

    tuner_layer_cls = BaseTunerLayer
    merged_bases: tuple[str | None, ...] = ()  # bases, by name, that ``merge_weights`` has changed

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **kw: Any) -> None:
        """Place the first adapter of a config; refuses a name that the model has already."""
        refuse_known(model, adapter_name)
        # The tuners of each adapter's parts. Not submodules, since each holds the whole model.
        # BaseTuner.__init__ places the adapter, so this must be there before it is called.
        self._tuners: dict[str, list[BaseTuner]] = {}
        loaded_configs = vars(model).get("peft_config")  # of adapters that transformers has loaded
        if isinstance(loaded_configs, dict):
            self.__dict__["peft_config"] = dict(loaded_configs)
        if not isinstance(peft_config, LoradaConfig):  # a PeftModel gives a dictionary
            super().__init__(model, peft_config, adapter_name, **kw)
            return
        # From here on transformers adds the adapter itself, by ``add_adapter`` and without a
        # PeftModel.
        refuse_without_peft_model(peft_config.parts)
        with all_or_nothing(model):
            super().__init__(model, peft_config, adapter_name, **kw)
            name_weights(model, peft_config, adapter_name)

    def tuners_of(self, adapter_name: str) -> list[BaseTuner]:
        """The tuners of an adapter's parts."""
        return self._tuners.get(adapter_name, [])

    def tuners(self) -> list[BaseTuner]:
        """The tuners of all parts of all adapters."""
        return list(itertools.chain.from_iterable(self._tuners.values()))

    # Placing.

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Place every part of an adapter; earlier adapters stay trainable or frozen as before.

        The parameters are those of PEFT's method, which calls it; ``state_dict`` is ignored.

        Raises:
            ValueError: if a part does not fit the model, the other parts or the adapters that are
                there. The model is as before then.
        """
        config = self.peft_config[adapter_name]
        wrapping = [part for part in config.parts if wraps(part)]
        attached = [part for part in config.parts if not wraps(part)]
        for config_or_part in (config, *config.parts):
            refuse_absent(model, config_or_part, config.task_type)
        for part in wrapping:
            refuse_offloaded(model, type(part).__name__.removesuffix("Config"))
        # What trains of earlier adapters; the first adapter of a model freezes its base.
        trained_before: list[tuple[nn.Parameter, bool]] = []
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            trained_before = [(p, p.requires_grad) for p in model.parameters()]
        modes = {module: module.training for module in model.modules()}
        self._tuners[adapter_name] = []
        # PEFT notes the configs of all adapters on the model. Each part's tuner would add its own
        # to them, so they are hidden until all parts are placed.
        peft_config = model.__dict__.pop("peft_config", None)
        try:
            with all_or_nothing(model):
                # Attached parts last: they put hooks on modules, which LN tuning would replace.
                for part in (*wrapping, *attached):
                    self._inject_part(model, adapter_name, part, low_cpu_mem_usage)
                check_order(model, adapter_name, config.parts)
                refuse_blind(model)
                refuse_doubled(model, adapter_name)
                self._activate(model, adapter_name)
            for tuner in self.tuners_of(adapter_name):
                # So that they are moved and saved with the stack, as PEFT does with those of a
                # tuner.
                for name, container in containers_of(tuner).items():
                    self.add_module(name, container)
        except Exception:
            del self._tuners[adapter_name]
            raise
        finally:
            model.__dict__.pop("peft_config", None)
            if peft_config is not None:
                model.peft_config = peft_config  # type: ignore[assignment]
        for parameter, requires_grad in trained_before:
            parameter.requires_grad = requires_grad
        # A new layer of PEFT trains, and with it would all that it wraps, if a part goes around it.
        for module, training in modes.items():
            module.training = training

    def _activate(self, model: nn.Module, adapter_name: str) -> None:
        """Activate what was active before, or the first adapter, with its copies of modules."""
        config = self.peft_config[adapter_name]
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        if not config.inference_mode:
            train_biases(model, self.tuners_of(adapter_name))
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=BaseTuner.get_model_config(model),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )

    def _inject_part(
        self, model: nn.Module, adapter_name: str, part: PeftConfig, low_cpu_mem_usage: bool
    ) -> None:
        """Place one part by a tuner of its own, with what the stack's config says of every part.

        One that does not fit the model or the parts before it is refused by its name.
        """
        config: LoradaConfig = self.peft_config[adapter_name]
        own_modules = getattr(part, "modules_to_save", None)
        part.inference_mode = config.inference_mode
        if not config.init_weights:
            for name in INIT_OPTIONS:
                if hasattr(part, name):
                    setattr(part, name, False)
        if hasattr(part, "modules_to_save") and own_modules is None:
            part.modules_to_save = config.modules_to_save  # so that no part adapts such a module
        model.__dict__.pop("peft_config", None)  # else the tuner would add its config to that
        placed = self.tuners_of(adapter_name)
        with part_named_in_errors(model, part, config.parts):
            _choose_layers(part, config)
            refuse_second(model, tuner_of(part), placed)
            tuner = place(model, part, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
        let_stand_beside_others(model)
        if hasattr(tuner, "rankallocator"):
            # AdaLoRA's allocator looks for parameters by name in the whole model; this one sees
            # only those of its part.
            tuner.rankallocator = OwnRanks(model, part, adapter_name)
        if hasattr(part, "modules_to_save"):
            part.modules_to_save = own_modules
        for other in placed:
            _refuse_same_targets(tuner, other, adapter_name)
        placed.append(tuner)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        """PEFT calls this for each target of a tuner; a stack has none of its own."""
        raise NotImplementedError  # the tuners of the parts do so

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast the weights of every part, as PEFT does after placing or loading an adapter."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for tuner in self.tuners_of(adapter_name):
            tuner._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter with all its parts; if no other is active, activate another."""
        active = self.active_adapters
        super().delete_adapter(adapter_name)
        for tuner in self._tuners.pop(adapter_name, []):
            for name, container in containers_of(tuner).items():
                delattr(self, name)
                for module in container.modules():  # layers may refer to them too
                    module._parameters.clear()
                    module._buffers.clear()
        remaining = [name for name in active if name != adapter_name]
        if not remaining:
            remaining = sorted(self.peft_config)[:1]
        if not remaining:  # it was the only one
            return
        # PEFT lets each layer choose among its own adapters, and heads follow one of the layers; in
        # stacks these differ.
        frozen = all(self.peft_config[name].inference_mode for name in remaining)
        if adapter_name in active:
            self.set_adapter(remaining, inference_mode=frozen)
        else:  # layers have what they had, and may be merged
            self.active_adapter = remaining
            activate_heads(self.model, remaining, inference_mode=frozen)

    # Running.

    def regularised(self, loss: Tensor) -> Tensor:
        """A loss of a training, with what AdaLoRA adds for each adapter that trains."""
        for name in self.active_adapters:
            if self.peft_config[name].inference_mode:
                continue
            for tuner in self.tuners_of(name):
                if isinstance(tuner, AdaLoraModel):
                    loss = loss + regulariser(tuner).to(loss.device)
        return loss

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward; its loss in a training is regularised."""
        outputs = self.model(*args, **kwargs)
        loss = getattr(outputs, "loss", None)
        if self.training and isinstance(loss, Tensor):
            outputs.loss = self.regularised(loss)
        return outputs

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Run what PEFT puts around each forward, for every kind of tuner among the parts."""
        with super()._enable_peft_forward_hooks(*args, **kwargs), ExitStack() as stack:
            for tuner_cls in dict.fromkeys(map(type, self.tuners())):
                hooks = getattr(tuner_cls, "_enable_peft_forward_hooks", None)
                if hooks is not None and not issubclass(tuner_cls, LoradaTuner):
                    # Called on the stack: an inner tuner is not a submodule, so eval() misses it.
                    stack.enter_context(hooks(self, *args, **kwargs))
            yield

    def __getattr__(self, name: str) -> Any:
        """Look up a missing attribute on the active parts' tuners, as ``update_and_allocate``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not self.__dict__.get("_tuners"):  # asked before it is set up
                raise
            for adapter_name in self.active_adapters:
                for tuner in self.tuners_of(adapter_name):
                    if name in vars(type(tuner)):
                        return getattr(tuner, name)
            raise

    # Methods of AdaLoRA. PEFT calls them on the model when such an adapter is loaded or saved, even
    # if it is not active.

    def resize_modules_by_rank_pattern(self, rank_pattern: Any, adapter_name: str) -> None:
        """Give AdaLoRA's layers the ranks of a saved adapter, where they do not have them yet."""
        suffix = f".{adapter_name}"  # which names in a pattern may have or not
        for tuner in self.tuners_of(adapter_name):
            if not isinstance(tuner, AdaLoraModel):
                continue
            ranks = {}
            for name, diagonal in factors(tuner.model, adapter_name, "lora_E"):
                ranks[name.removesuffix(suffix)] = len(diagonal)
            to_resize = {
                name: unpruned
                for name, unpruned in rank_pattern.items()
                if ranks.get(name.removesuffix(suffix)) != sum(unpruned)
            }
            tuner.resize_modules_by_rank_pattern(to_resize, adapter_name)

    def resize_state_dict_by_rank_pattern(self, *args: Any) -> Any:
        """Drop the ranks that AdaLoRA has pruned from a state dict."""
        return AdaLoraModel.resize_state_dict_by_rank_pattern(self, *args)

    # Saving and loading: each part's tuner handles the keys of that part, PEFT all other keys.

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: LoradaConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """The tensors of an adapter as they are saved: those of each part, in one dictionary.

        Their names are those of a model that has this adapter alone. ``get_peft_model_state_dict``
        calls this hook of PEFT, before it removes the adapter's name from the keys.
        ``state_dict`` is of the whole model.
        """
        # PEFT's default takes every key with this adapter's name. It is only looked at for which
        # layer each key belongs to.
        everything = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        joined: dict[str, Tensor] = {}
        for part in config.parts:
            tuner_cls = tuner_of(part)
            # A tuner takes all keys with its prefix, and several kinds share ``lora_``.
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
        """The tensors of a saved adapter under the names that this model has for them.

        ``set_peft_model_state_dict`` calls this hook of PEFT before it loads them. A file has the
        names of a model with this adapter alone; here its layers may be wrapped more deeply, and
        PEFT puts the adapter's name into the keys.

        Raises:
            ValueError: if a tensor has no place in the model, or one of another shape.
        """
        # First undo what ``_get_adapter_state_dict`` did last.
        names_here = {alone: name for name, alone in names_alone(model, adapter_name).items()}
        state_dict = rename(state_dict, names_here)
        # A tuner with shared weights remaps only the keys that are its own.
        shared: dict[str, Tensor] = {}
        placed = model.base_model.tuners_of(adapter_name) if isinstance(model, PeftModel) else []
        for tuner in placed:
            if shares_state(type(tuner)):
                keys = own_keys(model, tuner, state_dict)
                part = tuner.peft_config[adapter_name]
                shared |= type(tuner)._remap_adapter_state_dict_for_load(
                    model, part, adapter_name, {key: state_dict.pop(key) for key in keys}
                )
        # Attached parts have no remapping of their own: ``super()`` below does theirs.
        for part in config.parts:
            tuner_cls = tuner_of(part)
            if not issubclass(tuner_cls, AttachedModel) and not shares_state(tuner_cls):
                state_dict = tuner_cls._remap_adapter_state_dict_for_load(
                    model, part, adapter_name, state_dict
                )
        state_dict = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        state_dict |= shared
        # Last, as only now the names are those of the model.
        check_fits(model, config, adapter_name, state_dict)
        return state_dict

    # Merging and baking.

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to join adapters into one, as PEFT does with plain LoRA."""
        raise ValueError(
            "add_weighted_adapter joins the matrices of plain LoRA adapters, which a stack cannot: "
            "to use several stacks at once, model.base_model.set_adapter(['one', 'other']); plain "
            "LoRA adapters can be joined in a model of their own"
        )

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """No: ``peft.convert_to_lora`` reads one set of target modules, a stack has several."""
        return False

    def refuse_merge(self, names: list[str]) -> None:
        """Refuse to merge adapters with a part that cannot be merged."""
        refuse_unknown(self, names)
        attached = set()
        for name in names:
            refuse_unmergeable(self.model, name, self.tuners_of(name))
            parts = self.peft_config[name].parts
            attached |= {type(part).__name__ for part in parts if not wraps(part)}
        refuse_nonlinear(self.model, names)
        if attached:
            raise ValueError(
                f"parts of {', '.join(sorted(attached))} cannot be merged into the weights: "
                "merge_weights() merges the parts that can be and returns the merged model with "
                "the rest as an adapter"
            )

    def merge_weights(self) -> nn.Module:
        """Merge the parts of the active adapter that can be merged: ``lorada.merge_weights``."""
        return merge_and_keep_attached(self)

    def bake(self) -> None:
        """Compute every map of the stack once, for inference."""
        bake(self.model)


register(STACK, LoradaConfig, LoradaModel)


def _refuse_same_targets(tuner: BaseTuner, other: BaseTuner, adapter_name: str) -> None:
    """Refuse two parts of one kind on one module, where they would share the weights."""
    if part_kind(tuner, adapter_name) != part_kind(other, adapter_name):
        return
    shared = set(tuner.targeted_module_names) & set(other.targeted_module_names)
    if shared:
        peft_type = tuner.peft_config[adapter_name].peft_type
        raise ValueError(
            f"two parts of type {peft_type.value} both target {min(shared)}: "
            "give them different target_modules"
        )


def _choose_layers(part: PeftConfig, config: LoradaConfig) -> None:
    """Give a part the layers of the stack, unless it has its own; refuses one without layers."""
    if config.layers_to_transform is None:
        return
    if not hasattr(part, "layers_to_transform"):
        raise ValueError(
            "the stack's layers_to_transform holds for every part, and this one cannot have it: "
            "name the layers in its target_modules"
        )
    if part.layers_to_transform is None:
        part.layers_to_transform = config.layers_to_transform
        refuse_layers(part)


# Parts whose tuner keeps weights outside the layers, such as VeRA's projections: PEFT keeps them on
# the tuner, in one container for all layers. In a stack they are on the stack itself, under the
# names that PEFT saves.


def shares_state(tuner_cls: type[BaseTuner]) -> bool:
    """Whether a tuner keeps weights outside the layers, or makes some before the layers."""
    makes_before = tuner_cls._pre_injection_hook is not BaseTuner._pre_injection_hook
    return bool(tuner_cls.uses_shared_state) or makes_before


def place(model: nn.Module, part: PeftConfig, adapter_name: str, **options: Any) -> BaseTuner:
    """Place a part by a new tuner, which has the shared weights of this adapter only."""
    tuner_cls = tuner_of(part)
    if not shares_state(tuner_cls):
        with layers_shown(model, tuner_cls.tuner_layer_cls):
            return tuner_cls(model, {adapter_name: part}, adapter_name, **options)

    # VeRA and its like make their shared weights before the layers are placed, from the linear
    # layers that they find. For that they see the innermost ones.
    class Placing(tuner_cls):  # type: ignore[misc, valid-type]
        def _pre_injection_hook(self, model: nn.Module, *arguments: Any) -> None:
            with layers_shown(model, innermost=True):
                super()._pre_injection_hook(model, *arguments)

    with layers_shown(model, tuner_cls.tuner_layer_cls, innermost=True):
        tuner: BaseTuner = Placing(model, {adapter_name: part}, adapter_name, **options)
    # The subclass was needed for placing alone; PEFT and ``isinstance`` see the usual one.
    tuner.__class__ = tuner_cls
    return tuner


def refuse_second(model: nn.Module, tuner_cls: type[BaseTuner], placed: list[BaseTuner]) -> None:
    """Refuse a second part of a kind that keeps shared weights, which have one place in a model."""
    if not shares_state(tuner_cls):
        return
    if tuner_cls in map(type, placed):
        raise ValueError("an adapter has one such part at most: give it the modules of both")
    if any(layer_kind(layer) is tuner_cls.tuner_layer_cls for layer in model.modules()):
        raise ValueError(
            "the model has had an adapter with such a part: load this one onto a model of its own"
        )


def refuse_offloaded(model: nn.Module, kind: str) -> None:
    """Refuse to wrap weights that accelerate offloads: the adapter's would never get values.

    A model with a ``hf_device_map`` is fine: PEFT offloads it again together with the adapter.
    """
    if getattr(model, "hf_device_map", None) is not None:
        return
    for name, module in model.named_modules():
        away = any(parameter.is_meta for parameter in module.parameters(recurse=False))
        if away and execution_device(module) is not None:
            raise ValueError(
                f"{name} is offloaded, where PEFT leaves {kind} weights without values: "
                "add or load the adapter first, then offload"
            )


def containers_of(tuner: BaseTuner) -> dict[str, Any]:
    """The containers of a tuner's shared weights, by name; empty for most tuners."""
    return {name: child for name, child in tuner.named_children() if name != "model"}


def own_keys(model: nn.Module, tuner: BaseTuner, keys: Iterable[str]) -> set[str]:
    """The keys of a saved adapter that belong to a tuner: of its layers, and of shared weights."""
    layer_of_key = layers_of(model, keys)
    containers = tuple(f"{TUNER}.{name}." for name in containers_of(tuner))
    keys_of_tuner = set()
    for key in keys:
        layer = layer_of_key.get(key)
        if layer is None:
            is_own = f"{key}.".startswith(containers)
        else:
            is_own = layer_kind(layer) is tuner.tuner_layer_cls
        if is_own:
            keys_of_tuner.add(key)
    return keys_of_tuner


def _adapts_embedding(module: nn.Module) -> bool:
    """Whether a module is LoRA on an embedding."""
    return isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Embedding)


def _extend_peft_model() -> None:
    """Let ``PeftModel`` put plain adapters beside stacks and not save one without its base.

    TRL's reference of a trained stack becomes a copy of it, with the weights that TRL overlooks.
    """
    add_of_one_type: Any = PeftModel.add_adapter
    save_with_any_base: Any = PeftModel.save_pretrained

    @functools.wraps(add_of_one_type)
    def add_adapter(
        model: PeftModel, adapter_name: str, peft_config: PeftConfig, *args: Any, **options: Any
    ) -> None:
        """``PeftModel.add_adapter``, which by itself refuses adapters of another type."""
        present_type, new_type = model.peft_type, peft_config.peft_type
        if present_type != new_type:
            if present_type == STACK:
                peft_config = as_stack(peft_config)
            elif isinstance(present_type, PeftTypeName) or isinstance(new_type, PeftTypeName):
                raise ValueError(
                    f"an adapter of type {new_type.value} cannot stand beside one of type "
                    f"{present_type.value}: load the first one as a stack, by "
                    "PeftModel.from_pretrained(base, folder, config=lorada.as_stack(folder))"
                )
        add_of_one_type(model, adapter_name, peft_config, *args, **options)
        has_config_of_default = peft_config is model.peft_config.get("default")
        if present_type == STACK and adapter_name == REFERENCE and has_config_of_default:
            # TRL has copied those named ``.default.`` only; this copies all, also those whose names
            # end in it.
            weights = get_peft_model_state_dict(model, save_embedding_layers=False)
            set_peft_model_state_dict(model, weights, adapter_name)

    @functools.wraps(save_with_any_base)
    def save_pretrained(model: PeftModel, *args: Any, **options: Any) -> None:
        """``PeftModel.save_pretrained``; refuses after ``merge_weights`` has changed the base."""
        merged = getattr(model.base_model, "merged_bases", ())
        if any(config.base_model_name_or_path in merged for config in model.peft_config.values()):
            raise ValueError(MERGED)
        # PEFT saves an embedding with the adapter on it, and looks for it in the config of LoRA.
        if model.peft_type == STACK and any(map(_adapts_embedding, model.modules())):
            options.setdefault("save_embedding_layers", True)
        save_with_any_base(model, *args, **options)

    PeftModel.add_adapter = add_adapter  # type: ignore[method-assign]
    PeftModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


_extend_peft_model()
