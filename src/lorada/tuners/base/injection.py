"""Checks when an adapter is placed or loaded; if one fails, the model is restored."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from lorada.support.errors import unknown_name
from lorada.tuners.base.layer import LoradaTunerLayer

# Heads that PEFT adds to ``modules_to_save`` by task, whether a model has them or not.
HEADS_OF_PEFT = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


@contextmanager
def all_or_nothing(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """Restore a model if placing an adapter on it fails half-way."""
    children = [(module, dict(module._modules)) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    layers = [module for module, _ in children if isinstance(module, BaseTunerLayer)]
    copied = [module for module, _ in children if isinstance(module, AuxiliaryTrainingWrapper)]
    attributes = [
        (module, dict(vars(module))) for module in (*layers, *copied)
    ]  # as what is active
    known = [(wrapper, set(wrapper._adapters)) for wrapper in copied]
    without = [m for m in layers if adapter_name not in m._get_available_adapters()]
    try:
        yield
    except BaseException:
        before = {id(module) for module, _ in children}
        for module in list(model.modules()):
            if isinstance(module, LoradaTunerLayer) and id(module) not in before:
                module.detach_from_host()
        for layer, values in attributes:
            vars(layer).update(values)
        for wrapper, names in known:
            wrapper._adapters = names
        for layer in without:
            layer.delete_adapter(adapter_name)
        for module, own in children:
            module._modules.clear()
            module._modules.update(own)
        for parameter, requires_grad in trainable:
            parameter.requires_grad = requires_grad
        raise


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
    for name, whole in model.named_modules():
        if not isinstance(whole, ModulesToSaveWrapper) or adapter_name not in whole.modules_to_save:
            continue
        for inner, layer in whole.modules_to_save[adapter_name].named_modules():
            if isinstance(layer, BaseTunerLayer):
                raise ValueError(
                    f"modules_to_save trains {name} whole, where a part of the stack has {inner}: "
                    "leave the module out of one of them"
                )


def refuse_absent(model: nn.Module, configs: Iterable[PeftConfig], task: Any) -> None:
    """Refuse ``modules_to_save`` that the model does not have; PEFT ignores them silently.

    Args:
        model: the model.
        configs: the configs that name modules to save.
        task: PEFT's name of the task, whose heads are not refused; None for the heads of any task.
    """
    present = [name for name, _ in model.named_modules(remove_duplicate=False)]
    task = getattr(task, "value", task)
    spared = {name for key, names in HEADS_OF_PEFT.items() if task in (None, key) for name in names}
    for config in configs:
        for name in getattr(config, "modules_to_save", None) or []:
            if name in spared or any(full.endswith(name) for full in present):
                continue
            own = {last for full in present if not (last := full.rpartition(".")[2]).isdigit()}
            raise unknown_name("module in modules_to_save", str(name), own - {""})


def check_fits(
    model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> None:
    """Refuse the weights of an adapter that was saved for another architecture or size."""
    problem = _misfit(model, state_dict)
    if problem is None:
        return
    if isinstance(model, PeftModel) and config.inference_mode:
        # from_pretrained or load_adapter has just placed it. An adapter in training stays.
        _remove(model.base_model, adapter_name)
    raise ValueError(f"the adapter was saved for another {problem}")


def _misfit(model: nn.Module, state_dict: dict[str, Tensor]) -> str | None:
    own = model.state_dict()
    for key, tensor in state_dict.items():
        if key not in own:
            return f"architecture: this model has no place for {key}"
        if own[key].shape != tensor.shape and own[key].dtype.is_floating_point:
            return (
                f"model size or head count: {key} is {tuple(tensor.shape)}, "
                f"this model needs {tuple(own[key].shape)}"
            )
    return None


def _remove(tuner: BaseTuner, adapter_name: str) -> None:
    if len(tuner.peft_config) > 1:
        tuner.delete_adapter(adapter_name)
    else:
        tuner.unload()
