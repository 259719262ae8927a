"""Parts that are attached beside a module instead of wrapped around it.

An attached part is a child module of the one it adapts (``self_attn.lmam``, ``mlp.bneck``). The
base keeps its modules and names, so LoRA paths stay what they are in a plain LoRA file, a second
adapter finds the same modules as the first, and ``unload`` only has to remove the child.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorada.hooked import HookPair
from lorada.tuners.types import PREFIX, LoradaPeftConfig

# Arguments of a model that hold one entry for each sample.
INPUTS = ("input_ids", "inputs", "inputs_embeds", "input_features", "pixel_values")


def within_layer(name: str) -> str:
    """A module name behind its layer index: ``model.layers.3.self_attn`` → ``self_attn``."""
    return re.sub(r"^.*\.\d+\.", "", name)


class Entries(nn.ParameterDict):
    """Parameters of one kind by adapter name; a call gives one of them.

    accelerate brings an offloaded weight back for the call of the module that owns it.
    """

    __call__ = nn.Module.__call__  # torch forbids it for a ParameterDict, which gives nothing

    def forward(self, name: str) -> nn.Parameter:
        """The parameter of one adapter."""
        parameter: nn.Parameter = self[name]
        return parameter


class AttachedLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A child module that holds one part's parameters for any number of adapters."""

    if TYPE_CHECKING:  # what PEFT's base class has
        adapter_layer_names: tuple[str, ...]
        active_adapters: list[str]

        def _get_available_adapters(self) -> set[str]: ...

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__()
        # In a tuple, the host is not registered as a submodule of its own child.
        self._host = (host,)
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self._mixed: list[str] | None = None
        self._handles: list[RemovableHandle | HookPair] = []

    @property
    def host(self) -> nn.Module:
        """The module this part adapts."""
        return self._host[0]

    @property
    def weight(self) -> Tensor:
        """Attached parts have no base weight; PEFT's property would look for one without end."""
        raise AttributeError("an attached part has no weight of its own")

    @property
    def bias(self) -> Tensor:
        """Nor a base bias."""
        raise AttributeError("an attached part has no bias of its own")

    def update_layer(self, adapter_name: str, config: Any, model: nn.Module) -> None:
        """Create the parameters of an adapter."""
        raise NotImplementedError

    def detach_from_host(self) -> None:
        """Remove every hook that this part has put on the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def forward(self, x: Any) -> Any:
        """The input: a host that is an ``nn.Sequential`` runs its children, this one included."""
        return x

    def host_device(self, model: nn.Module | None = None) -> torch.device:
        """The device that new parameters belong on: where the host's own weights are used.

        Args:
            model: names the host in the error.

        Raises:
            ValueError: if the host is split over devices.
        """
        devices = sorted({str(device) for device in used_on(self.host)})
        if len(devices) > 1:
            names = [name for name, module in (model or self.host).named_modules()
                     if module is self.host]  # fmt: skip
            raise ValueError(
                f"{names[0] or type(self.host).__name__} is split over {', '.join(devices)}: "
                "choose a device_map that keeps each module that holds a part on one device"
            )
        return torch.device(devices[0] if devices else "cpu")

    def shares(self) -> list[tuple[str, list[bool] | None]]:
        """The adapters at work in this call, each with the samples it serves (None: all)."""
        if self._disable_adapters:
            return []
        present = self._get_available_adapters()
        if self._mixed is None:
            return [(name, None) for name in self.active_adapters if name in present]
        names = [name for name in dict.fromkeys(self._mixed) if name in present]
        return [(name, [name == mixed for mixed in self._mixed]) for name in names]

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        target = device or self.host_device()
        for container in self.adapter_layer_names:
            entries = getattr(self, container)
            if adapter_name in entries and entries[adapter_name].device.type != "meta":
                entries[adapter_name] = nn.Parameter(
                    entries[adapter_name].detach().to(target),
                    requires_grad=entries[adapter_name].requires_grad,
                )

    def extra_repr(self) -> str:
        """The adapters this part holds."""
        return f"adapters={sorted(self._get_available_adapters())}"


class AttachedModel(BaseTuner):  # type: ignore[misc]
    """A tuner that attaches one kind of layer; subclasses say which, where and under what name."""

    prefix = PREFIX
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
                f"this model has {', '.join(self.candidates()) or 'none'}"
            ) from error

    def candidates(self) -> list[str]:
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


def used_on(host: nn.Module) -> Iterator[torch.device]:
    """The devices that the weights of a module, without what adapters added, are used on."""
    added = {
        id(parameter)
        for layer in host.modules()
        if isinstance(layer, BaseTunerLayer)
        for name in (*layer.adapter_layer_names, *layer.other_param_names)
        if isinstance(container := getattr(layer, name, None), nn.Module)
        for parameter in container.parameters()
    }
    for module in host.modules():
        target = execution_device(module)
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in added:
                yield target or parameter.device


def execution_device(module: nn.Module) -> torch.device | None:
    """The device that accelerate's hook brings the offloaded weights of a module to."""
    hook = getattr(module, "_hf_hook", None)
    targets = [getattr(part, "execution_device", None) for part in getattr(hook, "hooks", [hook])]
    return next((torch.device(target) for target in targets if target is not None), None)


def refuse_offloaded(model: nn.Module, kind: str) -> None:
    """Refuse to wrap weights that accelerate offloads: PEFT creates its own on meta beside them.

    Where there is a ``hf_device_map``, PEFT offloads the model anew, adapter included.

    Raises:
        ValueError: naming the first such module.
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


@contextmanager
def all_or_nothing(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """Undo what placing an adapter has done to a model if it fails half-way."""
    children = [(module, dict(module._modules)) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    layers = [module for module, _ in children if isinstance(module, BaseTunerLayer)]
    active = [(layer, layer._active_adapter) for layer in layers]
    without = [m for m in layers if adapter_name not in m._get_available_adapters()]
    try:
        yield
    except BaseException:
        before = {id(module) for module, _ in children}
        for module in list(model.modules()):
            if isinstance(module, AttachedLayer) and id(module) not in before:
                module.detach_from_host()
        for layer, names in active:
            layer._active_adapter = names
        for layer in without:
            layer.delete_adapter(adapter_name)
        for module, own in children:
            module._modules.clear()
            module._modules.update(own)
        for parameter, requires_grad in trainable:
            parameter.requires_grad = requires_grad
        raise


def detach_all(model: nn.Module) -> None:
    """Remove every attached part, hooks included."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AttachedLayer):
                child.detach_from_host()
                delattr(module, name)


def cast_to_host(model: nn.Module, adapter_name: str) -> None:
    """Give an adapter's attached parameters the dtype of the modules they are attached to."""
    for layer in model.modules():
        if isinstance(layer, AttachedLayer):
            dtypes = [p.dtype for p in layer.host.parameters() if p.dtype.is_floating_point]
            for container in layer.adapter_layer_names:
                if adapter_name in getattr(layer, container):
                    parameter = getattr(layer, container)[adapter_name]
                    parameter.data = parameter.data.to(dtypes[0])


@contextmanager
def mixed_batch(
    tuner: BaseTuner, names: list[str] | None, *args: Any, **kwargs: Any
) -> Iterator[None]:
    """Serve each sample of a batch by its own adapter, as PEFT's ``adapter_names`` asks.

    Raises:
        ValueError: in training mode, as in PEFT; for a name that is not loaded; for another number
            of names than of samples.
    """
    if names is None:
        yield
        return
    if tuner.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    if unknown := set(names) - {"__base__", *tuner.peft_config}:
        raise ValueError(
            f"adapter_names has {min(unknown)!r}; loaded are {', '.join(sorted(tuner.peft_config))}"
        )
    hooks = [(module, set(module._forward_pre_hooks)) for module in tuner.model.modules()]
    with ExitStack() as stack:
        stack.push(lambda kind, *_: forget_hooks(hooks) if kind else None)
        # `generate` shows its inputs here, before it repeats them for its beams; the forward of a
        # task's model does not, but the model that it calls gets them as they are.
        if not _fits(names, args, kwargs):

            def check(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
                _fits(names, inputs, named)

            hook = tuner.model.register_forward_pre_hook(check, with_kwargs=True)
            stack.callback(hook.remove)
        for layer in tuner.model.modules():
            if isinstance(layer, AttachedLayer):
                layer._mixed = list(names)
                stack.callback(setattr, layer, "_mixed", None)
        yield


def forget_hooks(known: list[tuple[nn.Module, set[int]]]) -> None:
    """Remove pre-forward hooks but for those known: LoRA's outlive a mixed batch that fails."""
    for module, own in known:
        for key in set(module._forward_pre_hooks) - own:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _fits(names: list[str], args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call shows its inputs, as many as there are names."""
    inputs = (*args, *(kwargs.get(name) for name in INPUTS))
    samples = next((len(x) for x in inputs if isinstance(x, Tensor) and x.dim()), None)
    if samples not in (None, len(names)):
        raise ValueError(
            f"adapter_names has {len(names)} names for {samples} samples: pass one for each"
        )
    return samples is not None


def check_fits(
    model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> None:
    """Refuse adapter weights that belong to another architecture or shape.

    Raises:
        ValueError: naming the first tensor that has no place or another shape.
    """
    problem = _misfit(model, state_dict)
    if problem is None:
        return
    if isinstance(model, PeftModel) and config.inference_mode:
        # Placed a moment ago by from_pretrained or load_adapter; one that trains stays.
        take_out(model.base_model, adapter_name)
    raise ValueError(f"the adapter was saved for another {problem}")


def _misfit(model: nn.Module, state_dict: dict[str, Tensor]) -> str | None:
    places = model.state_dict()
    for key, tensor in state_dict.items():
        if key not in places:
            return f"architecture: this model has no place for {key}"
        if places[key].shape != tensor.shape and places[key].dtype.is_floating_point:
            return (
                f"model size or head count: {key} is {tuple(tensor.shape)}, "
                f"this model needs {tuple(places[key].shape)}"
            )
    return None


def take_out(tuner: BaseTuner, adapter_name: str) -> None:
    """Leave a model as it was before an adapter that turned out not to fit it."""
    if len(tuner.peft_config) > 1:
        tuner.delete_adapter(adapter_name)
    else:
        tuner.unload()
