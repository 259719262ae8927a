"""Merging the parts of a stack: which parts can be merged, in what order, and which are kept."""

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
from torch import Tensor, nn

from lorada.tuners.base.linears import layer_kind, linear_of, plain_matrix, wrappers
from lorada.tuners.base.merged_weights import (
    UnmergeableError,
    folded_layers,
    layers_with,
    refuse_nonlinear,
)
from lorada.tuners.base.part_config import STACK
from lorada.tuners.base.tuner import AttachedLayer
from lorada.tuners.stack.nested_layers import wraps
from lorada.tuners.stack.trial_merge import refuses_to_merge, setting_against_merging


def refuse_unmergeable(model: nn.Module, name: str, tuners: list[BaseTuner]) -> None:
    """Refuse to merge an adapter if one of its parts wraps modules and cannot be merged.

    ``tuners`` are the tuners of its parts; those of attached parts are ignored.

    Raises:
        ValueError: if a part or one of its layers cannot be merged; no weight is changed before.
    """
    for tuner in tuners:
        part: PeftConfig = tuner.peft_config[name]
        if wraps(part):
            _refuse_unmergeable_part(part, tuner)
    for module_name, chain in wrappers(model).items():
        if folded_layers(chain, [name]):
            plain_matrix(chain[-1].get_base_layer(), "merging")  # before any weight is changed
        kinds = {layer_kind(layer).__name__ for layer in layers_with(chain, [name])}
        if len(kinds) > 1 and linear_of(chain[0]) is None:
            raise UnmergeableError(
                f"{' and '.join(sorted(kinds))} on {module_name}, which is not linear, cannot be "
                "merged together: keep it as an adapter"
            )
        if getattr(chain[-1].get_base_layer(), "bias", None) is None:
            _refuse_bias(module_name, chain, name)


def _refuse_unmergeable_part(part: PeftConfig, tuner: BaseTuner) -> None:
    """Refuse a part that wraps modules and cannot be merged, by its settings or its kind.

    Raises:
        ValueError: for a setting, or an adapter that PEFT says cannot be merged now.
        UnmergeableError: for a kind that is never merged.
    """
    reason = setting_against_merging(part)
    if reason:
        raise ValueError(reason)
    if refuses_to_merge(part):
        raise UnmergeableError(
            f"a stack with {type(part).__name__} cannot be merged into the weights: "
            "keep it as an adapter"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied weights, which we untie
        tuner._check_merge_allowed()


def _refuse_bias(module_name: str, chain: list[Any], name: str) -> None:
    """Refuse to merge a bias of an adapter into a module that has none."""
    for layer in chain:
        biases = {
            "lora_bias=True": getattr(layer, "lora_bias", {}).get(name, False),
            "the bias of BEFT": name in getattr(layer, "beft_bias", {}),
        }
        for bias, has_bias in biases.items():
            if has_bias:
                raise UnmergeableError(
                    f"{bias} cannot be merged into {module_name}, which has no bias: "
                    "keep it as an adapter"
                )


def merge_and_keep_attached(stack: Any) -> nn.Module:
    """Do the work of ``merge_weights`` on the tuner of a stack, a ``LoradaModel``.

    Raises:
        ValueError: if several adapters are active, or a part that wraps modules cannot be merged.
    """
    active = stack.active_adapters
    if len(active) != 1:
        raise ValueError(
            f"merge_weights() merges one adapter, and {len(active)} are active "
            f"({', '.join(active)}): call model.set_adapter(name) first"
        )
    (name,) = active
    refuse_unmergeable(stack.model, name, stack.tuners_of(name))
    refuse_nonlinear(stack.model, [name])
    config = stack.peft_config[name]
    parts = config.parts
    attached_parts = [part for part in parts if not wraps(part)]
    try:
        config.parts = attached_parts  # so that the state dict has only their weights
        # Copies, taken before the parts are detached from the model below.
        weights = _attached_weights(stack, name)
        config.parts = [part for part in parts if wraps(part)]
        base: nn.Module = stack._unload_and_optionally_merge(merge=True, adapter_names=[name])
    except Exception:  # the config names all parts again
        config.parts = parts
        raise
    # From now on saving the adapter is refused: its file would not hold what is merged.
    stack.merged_bases = (config.base_model_name_or_path,)
    if not attached_parts:
        return base
    fields = {"task_type": config.task_type, "base_model_type": config.base_model_type}
    model: Any = get_peft_model(base, type(config)(parts=attached_parts, **fields))
    # PEFT adds a task head to every adapter of such a task. The trained head is in the base now.
    set_peft_model_state_dict(model, {**get_peft_model_state_dict(model), **weights})
    if attached_parts != parts or config.modules_to_save:
        model.base_model.merged_bases = (model.peft_config["default"].base_model_name_or_path,)
    return cast(nn.Module, model.train(stack.training))


def _attached_weights(stack: Any, name: str) -> dict[str, Tensor]:
    """Copies of the weights of an adapter's attached parts, by their names in a file."""
    layers = [key for key, module in stack.named_modules() if isinstance(module, AttachedLayer)]
    prefixes = tuple(f"{layer}." for layer in layers)
    weights = {}
    for key, value in get_peft_model_state_dict(stack, adapter_name=name).items():
        if key.startswith(prefixes):
            weights[f"base_model.{key}"] = value.clone()
    return weights


def merge_weights(model: PeftModel) -> nn.Module:
    """Merge the parts of the active adapter of a stack that can be merged, and keep the rest.

    Returns:
        A ``PeftModel`` over the merged base whose adapter holds the remaining parts; the merged
        base itself if nothing remains. ``model`` cannot be used afterwards.

    Raises:
        ValueError: for a model without a stack, if several adapters are active, or if a part that
            wraps modules cannot be merged: with the other parts merged it would wrap other weights
            than those it was trained on.
    """
    if model.peft_type != STACK:
        raise ValueError(
            f"merge_weights is for a stack, and this adapter has the type {model.peft_type.value}: "
            "model.merge_and_unload() merges a plain one, if its type can be merged"
        )
    return merge_and_keep_attached(model.base_model)
