"""What a stack keeps as an adapter when its other parts are merged into the weights."""

from typing import Any

from peft import (
    PeftConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn

from lorada.tuners.base.attach import AttachedModel
from lorada.tuners.base.attached_layer import AttachedLayer
from lorada.tuners.base.merging import refuse_unmergeable
from lorada.tuners.stack.nesting import tuner_of


def wraps(part: PeftConfig) -> bool:
    """Whether a part is placed around weights, and not beside a module."""
    return not issubclass(tuner_of(part), AttachedModel)


def refuse_to_merge(stack: Any, name: str) -> None:
    """Refuse to merge an adapter with a part around weights that cannot be merged into them.

    Raises:
        ValueError: naming the part.
    """
    tuners = stack.__dict__["_tuners"][name]
    around = [tuner for tuner in tuners if wraps(tuner.peft_config[name])]
    refuse_unmergeable(stack.model, name, around)


def merge_and_keep(stack: Any, name: str) -> nn.Module:
    """Merge the parts of an adapter that wrap weights, and place the others on the result.

    Args:
        stack: the ``LoradaModel``, which is used up.
        name: of the adapter.

    Returns:
        A ``PeftModel`` over the merged base, or the merged base itself if no part remains.

    Raises:
        ValueError: for a part that cannot be merged; the stack is as it was then.
    """
    refuse_to_merge(stack, name)
    config = stack.peft_config[name]
    merged, rest = (
        [part for part in config.parts if wraps(part) is wanted] for wanted in (True, False)
    )
    config.parts = rest  # what is merged is not asked for its weights
    state = get_peft_model_state_dict(stack, adapter_name=name)
    attached = {n for n, module in stack.named_modules() if isinstance(module, AttachedLayer)}
    kept = {
        f"base_model.{key}": value.clone()
        for key, value in state.items()
        if any(key.startswith(f"{layer}.") for layer in attached)
    }
    config.parts = merged
    base: nn.Module = stack._unload_and_optionally_merge(merge=True, adapter_names=[name])
    if not rest:
        return base
    said = {"task_type": config.task_type, "base_model_type": config.base_model_type}
    model: nn.Module = get_peft_model(base, type(config)(parts=rest, **said))
    # A task head, which PEFT puts into every adapter of such a task, is the base's by now.
    set_peft_model_state_dict(model, {**get_peft_model_state_dict(model), **kept})
    return model.train(stack.training)
