"""``build_method``: from a name of METHODS and a model to a Plan that a Trainer can follow."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from peft import PeftConfig, TaskType
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from lorada.described import method_named
from lorada.errors import unknown
from lorada.method import COLUMNS, FAMILIES, PARTS, Family, Method, Settings, load
from lorada.methods import MAP
from lorada.tuners import LoradaConfig

TASK_TYPES: dict[Family, TaskType] = {
    "llama": TaskType.CAUSAL_LM,
    "roberta": TaskType.SEQ_CLS,
    "deberta": TaskType.SEQ_CLS,
    "bart": TaskType.SEQ_2_SEQ_LM,
}


@dataclass(frozen=True)
class Plan:
    """A method made ready for one model.

    Attributes:
        config: the PEFT config to place, or None.
        callbacks: Trainer callbacks of methods that change the procedure.
        trainable: a regex of parameter names that train when there is no PEFT config.
        with_head: a regex of those that train with the task head then, and are not counted.
        prepare: called with model and batches by methods that must see both first.
        optimizer: makes the optimizer of a method that has its own.
        arguments: overrides of TrainingArguments.
    """

    config: PeftConfig | None
    callbacks: tuple[TrainerCallback, ...] = ()
    trainable: str | None = None
    with_head: str | None = None
    prepare: Callable[[nn.Module, Any], PeftConfig] | None = None
    optimizer: Callable[[nn.Module, TrainingArguments], Optimizer] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def family_of(model_config: Any) -> Family:
    """The column of settings that a model takes.

    Raises:
        ValueError: for a model type without one.
    """
    model_type = model_config.model_type
    if model_type not in FAMILIES:
        raise ValueError(
            f"no settings for model type {model_type!r}; there are for {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def column_of(method: Method, model_config: Any) -> dict[str, Settings] | None:
    """The settings of a method for a model: the model's own column, else that of its family."""
    for name, sizes in COLUMNS.items():
        same = all(getattr(model_config, key, None) == value for key, value in sizes.items())
        if same and name in method.parts:
            return method.parts[name]
    return method.parts.get(family_of(model_config))


def build_method(name: str, model_config: Any, **overrides: Any) -> Plan:
    """Make a method ready for a model.

    Args:
        name: a key of ``METHODS``, or ``NAME+lmam``.
        model_config: the transformers config of the model.
        overrides: settings of parts, as ``lmam={"rank": 4}``, or bare (``rank=4``) where only
            one part has a field of that name.

    Raises:
        ValueError: for an unknown method or setting (with the nearest names), an ambiguous
            setting (with the full keys), or a method that this model has no form of.
    """
    method, plus_map = method_named(name)
    config = None
    if method.trainable is None:
        config = _stack(name, method, plus_map, model_config, overrides)
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
    )


def _stack(
    name: str, method: Method, plus_map: bool, model_config: Any, overrides: dict[str, Any]
) -> LoradaConfig:
    column = column_of(method, model_config)
    if column is None:
        raise ValueError(
            f"{name} has no settings for {model_config.model_type} models, "
            f"only for {', '.join(method.parts)}-like ones"
        )
    settings = {part: dict(values) for part, values in column.items()}
    if plus_map:
        settings = {"lmam": dict(MAP), **settings}
    # To leave out a part that this model has no form of changes nothing.
    without = {part: {size: 0} for part, size in method.sizes.items() if part not in settings}
    asked = {key: value for key, value in overrides.items() if without.get(key, ...) != value}
    for part, values in part_overrides(list(settings), asked).items():
        settings[part].update(values)
    absent = [part for part, size in method.sizes.items() if settings.get(part, {}).get(size) == 0]
    left = {part: values for part, values in settings.items() if part not in absent}
    if not left:
        sizes = ", ".join(f"{part}.{method.sizes[part]}=0" for part in absent)
        raise ValueError(f"{sizes} leaves {name} without a part: give one of them a size")
    configs = [load(PARTS[part])(**values) for part, values in left.items()]
    return LoradaConfig(parts=configs, task_type=TASK_TYPES[family_of(model_config)])


def part_overrides(parts: list[str], overrides: dict[str, Any]) -> dict[str, Settings]:
    """Sort overrides by part: ``{"lmam": {"rank": 4}}`` from either form of key.

    Raises:
        ValueError: for a setting that no part has, or that several have.
    """
    found: dict[str, Settings] = {part: {} for part in parts}
    known = {part: {f.name for f in fields(load(PARTS[part])) if f.init} for part in parts}
    for key, value in overrides.items():
        if key in parts and isinstance(value, dict):
            for name in value:
                if name not in known[key]:
                    raise unknown(f"setting of {key}", name, known[key])
            found[key].update(value)
            continue
        found[owner_of(key, known, also=parts)][key] = value
    return found


def owner_of(key: str, known: Mapping[str, Collection[str]], also: Iterable[str] = ()) -> str:
    """The one section that has a setting of this name.

    Args:
        key: a bare key, such as ``rank``.
        known: section → names of its settings.
        also: other names that would have been right here, for the hint.

    Raises:
        ValueError: if no section has it (with the nearest names), or several (with the full keys).
    """
    owners = [section for section, names in known.items() if key in names]
    if len(owners) > 1:
        full = ", ".join(f"{owner}.{key}" for owner in owners)
        raise ValueError(f"{key} is a setting of several sections: write {full}")
    if not owners:
        raise unknown(
            "override", key, {*also, *(name for names in known.values() for name in names)}
        )
    return owners[0]
