"""``build_method``: makes a ``Plan`` from the name of a method and the config of a model."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from peft import PeftConfig, TaskType
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from lorada.methods.fit_to_model import fit_defaults, refuse_undefined
from lorada.methods.lookup import method_named
from lorada.methods.matrix_names import family_of
from lorada.methods.method import Family, Method, load, part_class
from lorada.methods.model_settings import choose_settings, settings_for
from lorada.methods.overrides import part_overrides
from lorada.tuners import LoradaConfig

logger = logging.getLogger(__name__)

TASK_TYPES: dict[Family, TaskType] = {
    "llama": TaskType.CAUSAL_LM,
    "roberta": TaskType.SEQ_CLS,
    "deberta": TaskType.SEQ_CLS,
    "bart": TaskType.SEQ_2_SEQ_LM,
}
# Models of pictures and sounds: PEFT's classes for tasks do not pass those on to the model.
NO_TASK_TYPE = ("vit", "whisper")


@dataclass(frozen=True)
class Plan:
    """What a Trainer needs to train a method on one model.

    Attributes:
        config: the PEFT config of the adapter; None for a method without one.
        callbacks: Trainer callbacks that the method needs.
        trainable: regex of the names of parameters that train, for a method without an adapter.
        with_head: regex of further parameters that train but, like the task head, do not count.
        prepare: completes the config; called with model and batches.
        optimizer: makes the method's own optimizer.
        arguments: TrainingArguments that the method changes.
        settings_from: where the settings come from; begins with "not from the paper" if they are
            not.
    """

    config: PeftConfig | None
    callbacks: tuple[TrainerCallback, ...] = ()
    trainable: str | None = None
    with_head: str | None = None
    prepare: Callable[[nn.Module, Any], PeftConfig] | None = None
    optimizer: Callable[[nn.Module, TrainingArguments], Optimizer] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    settings_from: str = ""


def build_method(name: str, model_config: Any, **overrides: Any) -> Plan:
    """Make a method ready for a model.

    Args:
        name: a key of ``METHODS``, another name that ``method_named`` knows, such as ``ia3``, or
            a sum of such names.
        model_config: the transformers config of the model.
        overrides: settings of parts, as ``lmam={"rank": 4}``, or ``rank=4`` where only one part
            has a setting of that name.

    Raises:
        ValueError: for an unknown method or setting (with the nearest names), a setting that
            several parts have (with the full keys), a value of another type, a method that is not
            defined on this model, or a model with unknown names of matrices.
    """
    method = method_named(name)
    config, settings_from = None, method.source
    refuse_undefined(method, model_config)
    if method.trainable is None:
        config, settings_from = _stack(method, model_config, overrides)
    elif overrides:
        raise ValueError(f"method {name} has no settings, but got {', '.join(overrides)}")
    return Plan(
        config,
        callbacks=tuple(load(callback)() for callback in method.callbacks),
        trainable=method.trainable,
        with_head=method.with_head,
        prepare=None if method.prepare is None else partial(load(method.prepare), config=config),
        optimizer=None if method.optimizer is None else load(method.optimizer),
        arguments=dict(method.arguments),
        settings_from=settings_from,
    )


def _stack(
    method: Method, model_config: Any, overrides: dict[str, Any]
) -> tuple[LoradaConfig, str]:
    """The config of a method, and where its settings come from."""
    chosen = choose_settings(method, model_config)
    # Size 0 is also accepted for a part that this model does not have.
    without = {part: {size: 0} for part, size in method.sizes.items() if part not in chosen.parts}
    asked = {key: value for key, value in overrides.items() if without.get(key, ...) != value}
    stated = part_overrides(chosen.parts, asked)
    settings = settings_for(chosen, stated, model_config)
    absent = [part for part, size in method.sizes.items() if settings.get(part, {}).get(size) == 0]
    left = {part: values for part, values in settings.items() if part not in absent}
    if not left:
        sizes = ", ".join(f"{part}.{method.sizes[part]}=0" for part in absent)
        raise ValueError(f"{sizes} leaves {method.name} without a part: give one of them a size")
    left, replaced = fit_defaults(left, stated, model_config)
    for sentence in replaced:
        logger.warning(sentence)
    kind = None if model_config.model_type in NO_TASK_TYPE else TASK_TYPES[family_of(model_config)]
    configs = [part_class(part)(**values) for part, values in left.items()]
    return LoradaConfig(parts=configs, task_type=kind), "; ".join([chosen.source, *replaced])
