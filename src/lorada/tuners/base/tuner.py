"""The bases of our tuners, ``LoradaTuner``, and of their layers, ``LoradaTunerLayer``.

``AttachedModel`` and ``AttachedLayer`` are those of attached parts.

PEFT's tuner finds the target modules of a config and calls ``_create_and_replace`` on each. Our
tuners also place an adapter on all of its targets or on none, and refuse weights that do not fit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftModel
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, onload_layer
from peft.utils import ModulesToSaveWrapper, _get_submodules
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn

from lorada.support.error_messages import MOST_NAMES, unknown_name
from lorada.tuners.base.linears import linear_names, one_line_errors, within_layer, wrappers
from lorada.tuners.base.merged_weights import (
    give_own_weights,
    merge_all,
    refuse_nonlinear,
    ties_settled,
    unmerge_chain,
)
from lorada.tuners.base.part_config import PREFIX, STACK


class ByName:
    """Weights of one kind by adapter name.

    In a forward, call it with the name (``self.lora_A(name)``): accelerate loads an offloaded
    weight when the module that owns it is called.
    """

    __call__: Callable[..., Any] = nn.Module.__call__  # torch forbids to call a ParameterDict

    def forward(self, name: str) -> Any:
        """The weight of one adapter."""
        return self[name]  # type: ignore[index]


class Entries(ByName, nn.ParameterDict):
    """Parameters, such as all ``lora_A`` of a layer."""


class FrozenEntries(ByName, BufferDict):  # type: ignore[misc]
    """Tensors that follow the model and never train; with ``persistent=True`` they are saved.

    They are buffers, so that code which unfreezes or counts parameters ignores them.
    """


def execution_device(module: nn.Module) -> torch.device | None:
    """The device to which accelerate brings a module's offloaded weights; None if not offloaded."""
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):  # several hooks are joined into one
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return None


class LoradaTunerLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A layer that holds the weights of any number of adapters, by adapter name.

    ``adapter_layer_names`` lists the attributes with trained weights and ``other_param_names`` all
    other attributes of adapters; each attribute is a dictionary by adapter name.
    """

    adapter_layer_names: tuple[str, ...]
    other_param_names: tuple[str, ...] = ("configs",)

    # Members of PEFT's base class.
    active_adapters: list[str]
    merged: bool
    get_base_layer: Any
    set_adapter: Any

    def __init__(self) -> None:
        super().__init__()
        for name in self.adapter_layer_names:
            setattr(self, name, Entries())
        self.configs: dict[str, Any] = {}
        self.scaling: dict[str, float] = {}  # factors on the terms while layers are scaled
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []

    def active_here(self) -> list[str]:
        """The active adapters that have weights in this layer; none while they are disabled."""
        active = [] if self._disable_adapters else self.active_adapters
        return [name for name in active if name in self.configs]

    def ist_scaled(self, name: str, term: Tensor) -> Tensor:
        """The term of an adapter, times a factor while IST measures what its layer does.

        It is not PEFT's α/r, which a term has in it already.
        """
        return term * self.scaling[name] if name in self.scaling else term

    def device_for_weights(self) -> torch.device:
        """The device for new weights: the one on which the adapted module is used."""
        # Its own parameters come before those of adapters in it, which are its last children.
        for module in self.get_base_layer().modules():
            for parameter in module.parameters(recurse=False):
                return execution_device(module) or parameter.device
        return torch.device("cpu")

    def new_weight(self, *shape: int) -> nn.Parameter:
        """Zeros of a shape, in float32, on the device of the adapted module."""
        device = self.device_for_weights()
        return nn.Parameter(torch.zeros(shape, device=device, dtype=torch.float32))

    def weights_of(self, adapter_name: str) -> Iterator[Tensor]:
        """The weights of an adapter in this layer, also frozen ones."""
        for container in (*self.adapter_layer_names, *self.other_param_names):
            by_name: Any = getattr(self, container)
            if isinstance(by_name, nn.Module) and adapter_name in by_name:  # type: ignore[operator]
                weights = by_name[adapter_name]  # type: ignore[index]
                if isinstance(weights, Tensor):
                    yield weights
                else:
                    yield from (*weights.parameters(), *weights.buffers())

    def cast_to_base(self, adapter_name: str) -> None:
        """Give the weights of an adapter the adapted module's dtype, unless that is quantised."""
        dtypes = [parameter.dtype for parameter in self.get_base_layer().parameters()]
        floating = [dtype for dtype in dtypes if dtype.is_floating_point]
        if not floating:
            return
        for tensor in self.weights_of(adapter_name):
            tensor.data = tensor.data.to(floating[0])

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's method would also cast to the base's dtype, and ignore ``autocast_adapter_dtype``.
        target = device or self.device_for_weights()
        for tensor in self.weights_of(adapter_name):
            if not tensor.is_meta:
                tensor.data = tensor.data.to(target)


class AttachedLayer(LoradaTunerLayer):
    """A child of the module that it adapts, its host; hooks on the model call it in the forward."""

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that PyTorch does not register the host under its own child.
        self._host = (host,)
        self._handles: list[Any] = []  # of hooks on the model, each with ``remove()``

    @property
    def host(self) -> nn.Module:
        """The module that this part adapts."""
        return self._host[0]

    def get_base_layer(self) -> nn.Module:
        """The host."""
        return self.host

    def update_layer(self, adapter_name: str, config: Any, model: nn.Module) -> None:
        """Create the parameters of an adapter; here it raises NotImplementedError."""
        raise NotImplementedError

    def detach_from_host(self) -> None:
        """Remove every hook that this part has put on the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def forward(self, x: Any) -> Any:
        """Return the input: a host that is an ``nn.Sequential`` also calls this child."""
        return x


def detach_all(model: nn.Module) -> None:
    """Remove every attached part from a model, with its hooks."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AttachedLayer):
                child.detach_from_host()
                delattr(module, name)


# Heads that PEFT adds to ``modules_to_save`` by task, whether a model has them or not.
HEADS_OF_PEFT = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Restore a model if placing an adapter on it fails half-way."""
    attributes = {module: dict(vars(module)) for module in model.modules()}
    # Children, hooks, names of adapters: restored in place, since a hook's handle knows its dict.
    containers: list[dict[Any, Any] | list[Any] | set[Any]] = []
    for attributes_of_module in attributes.values():
        for value in attributes_of_module.values():
            if isinstance(value, dict | list | set):
                containers.append(value)
    contents = [container.copy() for container in containers]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        # Before its module is forgotten, a new part removes its hooks, wherever they are.
        for module in list(model.modules()):
            if isinstance(module, AttachedLayer) and module not in attributes:
                module.detach_from_host()
        for module, attributes_of_module in attributes.items():
            vars(module).clear()
            vars(module).update(attributes_of_module)
        for container, content in zip(containers, contents, strict=True):
            _refill(container, content)
        for parameter, requires_grad in trainable:
            parameter.requires_grad = requires_grad
        raise


def _refill(container: Any, content: Any) -> None:
    """Put the content back into a dictionary, list or set, which stays the same object."""
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


def refuse_unknown(tuner: BaseTuner, names: list[str]) -> None:
    """Refuse names of adapters that a model does not have."""
    for name in names:
        if name not in tuner.peft_config:
            raise unknown_name("adapter", name, tuner.peft_config)


def refuse_known(model: nn.Module, adapter_name: str) -> None:
    """Refuse to place an adapter on a model that has another one of the same name."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and adapter_name in layer._get_available_adapters():
            raise ValueError(
                f"the model has an adapter {adapter_name!r} already, as one loaded from a folder "
                "that holds base and adapter: use it as it is, choose another adapter_name, or "
                "load the base alone, from_pretrained(…, adapter_kwargs={'subfolder': 'none'}), "
                "which needs transformers 5.23"
            )


def refuse_doubled(model: nn.Module, adapter_name: str) -> None:
    """Refuse a part in a module that the same adapter trains and saves as a whole copy."""
    for head in heads_of(model, [adapter_name]):
        if not head.adapters:
            continue
        for name, layer in head.wrapper.modules_to_save[adapter_name].named_modules():
            if isinstance(layer, BaseTunerLayer):
                raise ValueError(
                    f"modules_to_save trains {head.name} whole, where a part of the stack has "
                    f"{name}: leave the module out of one of them"
                )


@dataclass(frozen=True)
class WholeModule:
    """A module that adapters train whole, such as a head."""

    name: str
    wrapper: Any  # PEFT's ``ModulesToSaveWrapper``
    adapters: list[str]  # those, of some, that have a copy of it


def heads_of(model: nn.Module, adapters: list[str]) -> Iterator[WholeModule]:
    """The modules that are trained whole, each with those of some adapters that have a copy."""
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            with_copy = [adapter for adapter in adapters if adapter in module.modules_to_save]
            yield WholeModule(name, module, with_copy)


def activate_heads_of(model: nn.Module, names: list[str]) -> None:
    """Activate the copies of whole modules, such as heads, of adapters that are to be merged.

    PEFT would keep that of the active adapter, whichever is merged.

    Raises:
        ValueError: if several of the adapters have a copy of one module.
    """
    heads = list(heads_of(model, names))
    for head in heads:
        if len(head.adapters) > 1:
            raise ValueError(
                f"{' and '.join(head.adapters)} have each trained a copy of {head.name}, of "
                "which one can be kept: merge one of these adapters"
            )
    for head in heads:
        if head.wrapper.active_adapters != head.adapters:
            head.wrapper.set_adapter(head.adapters, inference_mode=True)


def refuse_other_heads(model: nn.Module, names: list[str]) -> None:
    """Refuse to merge adapters in place that have other heads than those that are active."""
    for head in heads_of(model, names):
        if head.wrapper.active_adapters != head.adapters:
            active = " and ".join(head.wrapper.active_adapters) or "the base"
            raise ValueError(
                f"{head.name} is that of {active}, and "
                f"{' and '.join(names)} is to be merged: call model.set_adapter({names[0]!r}) first"
            )


def refuse_absent(model: nn.Module, config: PeftConfig, task: Any) -> None:
    """Refuse ``modules_to_save`` that the model does not have; PEFT ignores them silently.

    The heads of ``task``, PEFT's name of it, or of any task if it is None, are not refused.
    """
    named_modules = model.named_modules(remove_duplicate=False)
    full_names = [name for name, _ in named_modules]
    heads = _heads_of_task(getattr(task, "value", task))
    for name in getattr(config, "modules_to_save", None) or []:
        # PEFT takes each module whose full name ends in it.
        if name in heads or any(full_name.endswith(name) for full_name in full_names):
            continue
        last_names = {full_name.rpartition(".")[2] for full_name in full_names}
        # Neither the model itself, whose name is empty, nor the members of lists.
        module_names = {name for name in last_names if name and not name.isdigit()}
        raise unknown_name("module in modules_to_save", str(name), module_names)


def _heads_of_task(task: str | None) -> set[str]:
    """The heads that PEFT adds to ``modules_to_save`` for a task; for any task if it is None."""
    if task is not None:
        return set(HEADS_OF_PEFT.get(task, ()))
    return set().union(*HEADS_OF_PEFT.values())


def check_fits(
    model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> None:
    """Refuse the weights of an adapter that was saved for another architecture or size."""
    problem = _misfit(model, state_dict)
    if problem is None:
        return
    if isinstance(model, PeftModel) and config.inference_mode:
        # from_pretrained or load_adapter has just placed it. An adapter in training stays.
        tuner = model.base_model
        if len(tuner.peft_config) > 1:
            tuner.delete_adapter(adapter_name)
        else:
            tuner.unload()
    raise ValueError(f"the adapter was saved for another {problem}")


def _misfit(model: nn.Module, state_dict: dict[str, Tensor]) -> str | None:
    """What the weights were saved for, and where that shows; None if they fit."""
    model_state = model.state_dict()
    # Where embeddings are in modules_to_save, PEFT saves them again by their names in the base.
    saved_twice = tuple(f"{head.name}." for head in heads_of(model, []))
    for key, tensor in state_dict.items():
        if key not in model_state and key.startswith(saved_twice):
            continue
        if key not in model_state:
            return f"architecture: this model has no place for {key}"
        if model_state[key].shape != tensor.shape and model_state[key].dtype.is_floating_point:
            return (
                f"model size or head count: {key} is {tuple(tensor.shape)}, "
                f"this model needs {tuple(model_state[key].shape)}"
            )
    return None


# The settings that choose modules, as an error shows them.
CHOOSING = ("target_modules", "layers_to_transform", "stacks")


class LoradaTuner(BaseTuner):  # type: ignore[misc]
    """Places one kind of part, or all parts of a stack."""

    prefix = PREFIX
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    # Why parts of this kind cannot be merged into the weights; empty if they can.
    not_mergeable: ClassVar[str] = ""

    def candidates(self, config: Any) -> list[str]:
        """Names, within a layer, of the modules of this model that can hold the part."""
        return linear_names(self.model)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        """Place an adapter on all of its targets, or refuse it and leave the model as before."""
        config = self.peft_config[adapter_name]
        refuse_absent(model, config, task=None)
        kw.pop("state_dict", None)  # PEFT would choose the targets by it; only the config may
        try:
            with all_or_nothing(model):
                super().inject_adapter(model, adapter_name, *args, **kw)
        except NoMatchingPeftModuleError as error:
            known = listed(self.candidates(config))
            raise ValueError(
                f"{choosing_settings(config)} matched no module; this model has {known}"
            ) from error

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        if isinstance(new_module, BaseTunerLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:  # unloading puts back a whole module, and PEFT would look for one weight in it
            setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self.model.modules():
            if not autocast_adapter_dtype and isinstance(layer, LoradaTunerLayer):
                layer.cast_to_base(adapter_name)

    def refuse_merge(self, names: list[str]) -> None:
        """Refuse to merge adapters, active or not; PEFT's own check knows only the active ones."""
        refuse_unknown(self, names)
        if self.not_mergeable:
            kind = type(self).__name__.removesuffix("Model")
            raise ValueError(
                f"{kind} parts cannot be merged into the weights: {self.not_mergeable}"
            )
        refuse_nonlinear(self.model, names)

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge in place; ``unmerge_adapter`` undoes it.

        Adapters that cannot be merged, or have other heads than the active ones, are refused.
        """
        names = adapter_names or self.active_adapters
        self.refuse_merge(names)
        refuse_other_heads(self.model, names)
        self._check_merge_allowed()
        give_own_weights(self.model, names)
        with one_line_errors():
            merge_all(self.model, names, safe_merge=safe_merge)

    def unmerge_adapter(self) -> None:
        """Undo ``merge_adapter``; parts that cannot be merged are passed over."""
        for chain in wrappers(self.model).values():
            with onload_layer(chain[0]):
                unmerge_chain(chain)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        """Take all adapters off the base, after merging some into it, and return it."""
        names = kwargs.get("adapter_names") or self.active_adapters
        if merge:
            self.refuse_merge(names)
            activate_heads_of(self.model, names)
        with ties_settled(self.model), one_line_errors():
            if merge:
                give_own_weights(self.model, names)
                merge_all(self.model, names, safe_merge=kwargs.get("safe_merge", False), undo=False)
                for module_name, chain in wrappers(self.model).items():
                    parent, _, child = _get_submodules(self.model, module_name)
                    self._replace_module(parent, child, chain[-1].get_base_layer(), chain[0])
            detach_all(self.model)
            model: nn.Module = super()._unload_and_optionally_merge(merge, **kwargs)
        return model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse ``adapter_names`` in a forward, PEFT's batches of several adapters."""
        if kwargs.get("adapter_names") is not None:  # which PEFT would ignore
            raise ValueError(
                "adapter_names: one adapter serves a whole batch: call model.set_adapter(name), "
                "and pass the samples of each adapter in a batch of their own"
            )
        yield

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        # A stack checks after it has remapped all of its parts.
        if getattr(model, "peft_type", None) != STACK:
            check_fits(model, config, adapter_name, remapped)
        return remapped


class AttachedModel(LoradaTuner):
    """A tuner that attaches one kind of layer to modules of one kind, such as attention."""

    host_kind: str  # a description of such a module, for errors
    child: str  # the name of the layer in its host
    tuner_layer_cls: type[AttachedLayer]
    # Names of the modules that can hold the part that is placed.
    hosts: frozenset[str] = frozenset()
    not_mergeable = (
        "merge_weights() merges the other parts of a stack and keeps these as an adapter"
    )

    def find_hosts(self, config: Any) -> Iterable[str]:
        """Names of the modules that can hold the part; here it raises NotImplementedError."""
        raise NotImplementedError

    def no_host(self, config: Any) -> str:
        """What an error says of a model without hosts; here it raises NotImplementedError."""
        raise NotImplementedError

    def candidates(self, config: Any) -> list[str]:
        """Names, within a layer, of the modules that can hold the part."""
        return sorted({within_layer(name) for name in self.hosts})

    def default_targets(self, config: Any) -> list[str]:
        """The ``target_modules`` of a config that names none."""
        return self.candidates(config)

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        """Find a part's modules, and fill in ``target_modules``; refuses a model without."""
        self.hosts = frozenset(self.find_hosts(peft_config))
        if not self.hosts:
            raise ValueError(self.no_host(peft_config))
        if peft_config.target_modules is None:
            peft_config.target_modules = self.default_targets(peft_config)
        return peft_config

    def _check_target_module_exists(self, peft_config: Any, key: str) -> Any:  # type: ignore[override]
        """Whether an adapter is placed on a module; refuses a target that hosts no such part."""
        matched = BaseTuner._check_target_module_exists(peft_config, key)
        if not matched:  # which also says whether the module was excluded
            return matched
        path, stacks = key.split("."), getattr(peft_config, "stacks", None)
        if stacks and not any(stack in path for stack in stacks):
            return False
        if key in self.hosts:
            return True
        candidates = self.candidates(peft_config)
        # A namesake is left out, unless the user names its layer: some models mix kinds of
        # attention, and a norm behind all layers may have the name of one in the layers.
        namesake = any(f".{key}".endswith(f".{name}") for name in candidates)
        if namesake and getattr(peft_config, "layers_to_transform", None) is None:
            return False
        raise ValueError(
            f"target_modules matches {key}, which is not {self.host_kind}; "
            f"this model has {listed(candidates)}"
        )

    def _create_and_replace(
        self,
        config: Any,
        name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        """Attach a layer to its host ``target``; refuses a second one of this adapter."""
        layer = getattr(target, self.child, None)
        if layer is None:
            layer = self.tuner_layer_cls(target, parent)
            target.add_module(self.child, layer)
        if name in layer.configs:  # the weights of the two might not even fit together
            raise ValueError(
                f"two parts of type {config.peft_type.value} both target {current_key}: "
                "give them different target_modules"
            )
        layer.update_layer(name, config, self.model)
        layer.train(target.training)


def choosing_settings(config: Any) -> str:
    """The settings of a config that choose modules, for an error: ``target_modules=['q_proj']``."""
    sentences = []
    for name in CHOOSING:
        value = getattr(config, name, None)
        if value is not None:
            if isinstance(value, set):
                value = sorted(value)  # as a set has another order in each process
            sentences.append(f"{name}={value!r}")
    text = ", ".join(sentences)
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) and targets.isidentifier():
        text += f" (a text is a regex of the whole name: write [{targets}])"
    return text


def listed(names: list[str]) -> str:
    """Names for an error: the first of them, and how many more there are."""
    text = ", ".join(names[:MOST_NAMES]) or "none"
    if len(names) > MOST_NAMES:
        text += f" and {len(names) - MOST_NAMES} more"
    return text
