"""Merging the parts of a stack: which parts can be merged, in what order, and which are kept."""

import functools
import warnings
from typing import Any, cast

from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from lorada.tuners.base.delta_layer import DeltaLayer
from lorada.tuners.base.layer import AttachedLayer
from lorada.tuners.base.linears import has_adapter, linear_of, plain_matrix, wrappers
from lorada.tuners.base.part_config import STACK
from lorada.tuners.base.tuner import LoradaTuner
from lorada.tuners.stack.nested_layers import layer_kind, wraps
from lorada.tuners.stack.stack_config import UNMERGEABLE

# What is said instead of saving an adapter without the weights that it belongs to.
MERGED = (
    "merge_weights() has merged what it can of this adapter into the base, which its file would "
    "not hold: save it before, or write base and adapter by `lorada export RUN DIR`. In Python, "
    "save what model.merge_and_unload() gives if every part can be merged; else give "
    "model.peft_config[...].base_model_name_or_path the folder in which you save model.unload()"
)


class UnmergeableError(ValueError):
    """A part that cannot be merged into the weights, but can be an adapter beside them."""


def refuse_unmergeable(model: nn.Module, name: str, tuners: list[BaseTuner]) -> None:
    """Refuse to merge an adapter if one of its parts wraps modules and cannot be merged.

    ``tuners`` are the tuners of its parts; those of attached parts are ignored.
    """
    for tuner in tuners:
        part: PeftConfig = tuner.peft_config[name]
        if not wraps(part):
            continue
        if tokens := getattr(part, "alora_invocation_tokens", None):
            raise ValueError(
                f"alora_invocation_tokens={tokens} changes only what follows these tokens, "
                "which a merged weight cannot do: keep it as an adapter"
            )
        if getattr(part, "layer_replication", None):
            raise ValueError(
                "layer_replication makes layers that share their weights, so none can be changed: "
                "keep it as an adapter"
            )
        if getattr(tuner, "not_mergeable", "") or part.peft_type in UNMERGEABLE:
            raise UnmergeableError(
                f"a stack with {type(part).__name__} cannot be merged into the weights: "
                "keep it as an adapter"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tied weights, which we untie
            tuner._check_merge_allowed()
        if isinstance(tuner, LoradaTuner):
            tuner.refuse_merge([name])
    for place, chain in wrappers(model).items():
        for layer in chain:
            if isinstance(layer, DeltaLayer) and has_adapter(layer, name):
                plain_matrix(layer.get_base_layer(), "merging")  # before any weight is changed
        own = {layer_kind(layer).__name__ for layer in chain if has_adapter(layer, name)}
        if len(own) > 1 and linear_of(chain[0]) is None:
            raise UnmergeableError(
                f"{' and '.join(sorted(own))} on {place}, which is not linear, cannot be merged "
                "together: keep it as an adapter"
            )
        if len(own) > 1:
            plain_matrix(chain[-1].get_base_layer(), "merging several parts")
        if getattr(chain[-1].get_base_layer(), "bias", None) is not None:
            continue
        for layer in chain:
            biases = {"lora_bias=True": getattr(layer, "lora_bias", {}).get(name, False)}
            biases["the bias of BEFT"] = name in getattr(layer, "beft_bias", {})
            for bias, there in biases.items():
                if there:
                    raise UnmergeableError(
                        f"{bias} cannot be merged into {place}, which has no bias: "
                        "keep it as an adapter"
                    )


def merge_and_keep_attached(stack: Any, name: str) -> nn.Module:
    """Merge the parts of an adapter that wrap modules, and put the attached ones on the result.

    ``stack`` is a ``LoradaModel``, which cannot be used afterwards.

    Returns:
        A ``PeftModel`` over the merged base, or the merged base itself if no part remains.
    """
    refuse_unmergeable(stack.model, name, stack.tuners_of(name))
    config = stack.peft_config[name]
    parts = config.parts
    rest = [part for part in parts if not wraps(part)]
    try:
        config.parts = rest  # so that the state dict has only their weights
        state = get_peft_model_state_dict(stack, adapter_name=name)
        attached = {n for n, module in stack.named_modules() if isinstance(module, AttachedLayer)}
        weights = {
            f"base_model.{key}": value.clone()
            for key, value in state.items()
            if any(key.startswith(f"{layer}.") for layer in attached)
        }
        config.parts = [part for part in parts if wraps(part)]
        base: nn.Module = stack._unload_and_optionally_merge(merge=True, adapter_names=[name])
    except Exception:
        config.parts = parts
        raise
    stack.merged_bases = (config.base_model_name_or_path,)
    if not rest:
        return base
    fields = {"task_type": config.task_type, "base_model_type": config.base_model_type}
    model: Any = get_peft_model(base, type(config)(parts=rest, **fields))
    # PEFT adds a task head to every adapter of such a task. The trained head is in the base now.
    set_peft_model_state_dict(model, {**get_peft_model_state_dict(model), **weights})
    if rest != parts or config.modules_to_save:
        model.base_model.merged_bases = (model.peft_config["default"].base_model_name_or_path,)
    return cast(nn.Module, model.train(stack.training))


def merge_weights(model: PeftModel) -> nn.Module:
    """``model.merge_weights()`` of a model with a stack, as a function with types.

    Raises:
        ValueError: as that does, or for a model without a stack.
    """
    if model.peft_type != STACK:
        raise ValueError(
            f"merge_weights is for a stack, and this adapter has the type {model.peft_type.value}: "
            "model.merge_and_unload() merges a plain one"
        )
    merged: nn.Module = model.base_model.merge_weights()
    return merged


def register() -> None:
    """Let ``PeftModel.save_pretrained`` refuse an adapter that names a base as it was unmerged."""
    of_peft: Any = PeftModel.save_pretrained

    @functools.wraps(of_peft)
    def save_pretrained(model: PeftModel, *args: Any, **options: Any) -> None:
        merged = getattr(model.base_model, "merged_bases", ())
        if any(config.base_model_name_or_path in merged for config in model.peft_config.values()):
            raise ValueError(MERGED)
        of_peft(model, *args, **options)

    PeftModel.save_pretrained = save_pretrained  # type: ignore[method-assign]
