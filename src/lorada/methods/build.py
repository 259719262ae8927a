"""``build_method``: makes a ``Plan`` from the name of a method and the config of a model.

It chooses the method's settings for the model, and translates the names of matrices in them:
LLaMA's ``q_proj``, for one, becomes ``query`` on a BERT.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from peft import PeftConfig, TaskType
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from lorada.methods.check_overrides import part_overrides, settings_of
from lorada.methods.fit_to_model import fit_defaults, refuse_undefined
from lorada.methods.lookup import joined_sources, method_named
from lorada.methods.matrix_names import (
    ANY_LAYER,
    NAMING,
    SCHEMES,
    WRITTEN_FOR,
    Scheme,
    family_of,
    fits,
    renamed,
)
from lorada.methods.meta_model import meta_model
from lorada.methods.method import Family, Method, Settings, load, part_class
from lorada.methods.provenance import NOT_FROM_THE_PAPER, NOT_STATED, OF_ALL_OTHERS
from lorada.support.models import MODELS
from lorada.tuners import LoradaConfig
from lorada.tuners.base.linears import layer_linear_names
from lorada.tuners.bottleneck.placements import PLACEMENTS

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
        settings_from: where the settings come from; has the words "not from the paper" where they
            are not.
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
    """
    parts = method_named(name).part_names
    if overrides and not parts:
        raise ValueError(f"method {name} has no settings, but got {', '.join(overrides)}")
    return plan_method(name, model_config, part_overrides(parts, overrides))


def plan_method(name: str, model_config: Any, stated: Mapping[str, Settings]) -> Plan:
    """``build_method`` with settings by part that were checked when a recipe was read."""
    method = method_named(name)
    config, settings_from = None, method.source
    refuse_undefined(method, model_config)
    if method.trainable is None:
        chosen = choose_settings(method, model_config)
        wanted = settings_for(chosen, stated, model_config)
        settings, replaced = fit_defaults(wanted, stated, model_config)
        for sentence in replaced:
            logger.warning(sentence)
        settings_from = "; ".join([_with_differences(chosen, wanted, stated), *replaced])
        parts = [part_class(part)(**values) for part, values in settings.items()]
        config = LoradaConfig(parts=parts)
        if model_config.model_type not in NO_TASK_TYPE:
            config.task_type = TASK_TYPES[family_of(model_config)]
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


@dataclass(frozen=True)
class ChosenSettings:
    """The settings of a method for one kind of model."""

    homes: Mapping[str, str]  # part name → the model type whose names of matrices its settings use
    parts: Mapping[str, Settings]  # part name → settings
    source: str  # where they come from, in words
    printed: Mapping[str, Mapping[str, Any]]  # part name → what the source prints instead


def choose_settings(method: Method, model_config: Any) -> ChosenSettings:
    """A method's settings for a model: the model's own, its family's, or unpublished ones."""
    if method.summands:
        return _joined([(m.name, choose_settings(m, model_config)) for m in method.summands])
    family, model_type = family_of(model_config), model_config.model_type
    # DeBERTa is an encoder like RoBERTa, and uses its settings where a method has none for DeBERTa.
    families: tuple[Family, ...] = (family, "roberta") if family == "deberta" else (family,)
    named = [key for key, model in MODELS.items() if model.is_model_of(model_config)]
    # A named model may have its settings under its model type, as mBART has.
    for key in (*named, *([model_type] if named else []), *families):
        if key in method.parts:
            home = WRITTEN_FOR.get(key, model_type)
            parts, source = method.parts[key], method.source_of(key)
            # Settings of ours were chosen for every model of a family, so no model lent them.
            if home != model_type and not source.startswith(NOT_FROM_THE_PAPER):
                source += f"; those of {home} models, taken to a {model_type} model"
            printed = method.printed.get(key, {})
            return ChosenSettings(dict.fromkeys(parts, home), parts, source, printed)
    for key in families:
        if key in method.unpublished.parts:
            parts = method.unpublished.parts[key]
            home = WRITTEN_FOR[method.unpublished.named_as or key]
            source, printed = method.source_of(key), method.printed.get(key, {})
            return ChosenSettings(dict.fromkeys(parts, home), parts, source, printed)
    known = ", ".join(method.parts | method.unpublished.parts)
    raise ValueError(
        f"{method.name} has no settings for {model_type} models, only for {known}: "
        "use another method"
    )


def _joined(summands: Sequence[tuple[str, ChosenSettings]]) -> ChosenSettings:
    """The settings of a sum, from those of each method, by name."""
    return ChosenSettings(
        {part: home for _, one in summands for part, home in one.homes.items()},
        {part: values for _, one in summands for part, values in one.parts.items()},
        joined_sources([(name, one.source) for name, one in summands]),
        {part: values for _, one in summands for part, values in one.printed.items()},
    )


def _with_differences(
    chosen: ChosenSettings, settings: Mapping[str, Settings], stated: Mapping[str, Settings]
) -> str:
    """The source of the settings, and which of them it does not have."""
    sentences = []
    for part, values in settings.items():
        defaults, own = part_class(part).__dataclass_fields__, stated.get(part, {})
        there = {**chosen.parts[part], **chosen.printed.get(part, {})}
        # Names of matrices are translated for each model, so only the user's are compared.
        there = {key: value for key, value in there.items() if key not in NAMING or key in own}
        for key in {**there, **own}:
            here = values[key] if key in values else defaults[key].default
            at_source = there.get(key, NOT_STATED)
            if here != (None if at_source == OF_ALL_OTHERS else at_source):
                words = NOT_STATED if at_source == NOT_STATED else f"there {at_source}"
                sentences.append(f"{part}.{key}={here} ({words})")
    if not sentences:
        return chosen.source
    return f"{chosen.source}; but for {', '.join(sentences)}"


def settings_for(
    chosen: ChosenSettings, stated: Mapping[str, Settings], model_config: Any
) -> dict[str, Settings]:
    """Translate chosen settings for a model, and put the user's (``stated``) in their place."""
    found: dict[str, Settings] = {}
    here: Scheme | None = None
    for part, values in chosen.parts.items():
        own = stated.get(part, {})
        settings = {**deepcopy(values), **_alpha_for(part, values, own), **own}
        named = [(key, chosen.homes[part]) for key in NAMING if key in values and key not in own]
        placement = PLACEMENTS.get(settings.get("placement", ""))
        if placement is not None and placement.linears and "target_modules" not in settings:
            settings["target_modules"] = list(placement.linears)
            named.append(("target_modules", "llama"))
        for key, home in named:
            if isinstance(settings[key], str):
                continue  # a regex, which is for the model it was written for
            here = here or scheme_of(model_config, f"{part}.{key}")
            settings[key] = renamed(settings[key], SCHEMES[home], here)
        _name_layers(settings)
        if here is SCHEMES["gpt2"] and "fan_in_fan_out" in settings_of(part):
            settings.setdefault("fan_in_fan_out", True)  # the layout of Conv1D's weights
        found[part] = settings
    return found


def _name_layers(settings: Settings) -> None:
    """Put chosen layers into the regex of targets: PEFT reads ``layers_to_transform`` for lists."""
    layers, targets = settings.get("layers_to_transform"), settings.get("target_modules")
    if layers == [] or not isinstance(targets, str):  # the former is refused by the config
        return
    if layers is not None and targets.startswith(ANY_LAYER):
        numbers = "|".join(map(str, [layers] if isinstance(layers, int) else layers))
        settings["target_modules"] = targets.replace(ANY_LAYER, rf".*\.({numbers})", 1)
        settings["layers_to_transform"] = None


def _alpha_for(part: str, values: Settings, own: Settings) -> Settings:
    """The alpha that keeps the scale α/r of a part whose rank the user gives alone."""
    fields = part_class(part).__dataclass_fields__
    rank = next((name for name in ("init_r", "rank", "r") if name in fields), "")
    alpha = next((name for name in fields if name.endswith("alpha")), "")
    # rsLoRA's scale is α/√r, by which one alpha suits every rank.
    if not alpha or rank not in own or alpha in own or own.get("use_rslora"):
        return {}
    size, before = (values.get(key, fields[key].default) for key in (rank, alpha))
    if not size or not before:
        return {}
    after = before * own[rank] / size
    return {alpha: int(after) if after.is_integer() else after}


def scheme_of(model_config: Any, wanted: str) -> Scheme:
    """The names of a model's matrices: those of its type, or of a type with the same linear layers.

    ``wanted`` is the setting that needs the names; the error tells the user to give it.
    """
    model_type = model_config.model_type
    if model_type in SCHEMES:
        return SCHEMES[model_type]
    model = meta_model(model_config)
    linears = [] if model is None else layer_linear_names(model)
    for scheme in SCHEMES.values():
        if linears and fits(scheme, linears):
            return scheme
    known = f"; its layers have {', '.join(linears)}" if linears else ""
    raise ValueError(
        f"the matrices of {model_type} models have no names that are known here: "
        f"give {wanted}=[…]{known}"
    )
