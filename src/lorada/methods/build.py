"""``build_method``: makes a ``Plan`` from the name of a method and the config of a model.

It chooses the method's settings for the model, and translates the names of matrices in them:
LLaMA's ``q_proj``, for one, becomes ``query`` on a BERT.
"""

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from peft import PeftConfig, TaskType
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from lorada.methods.check_overrides import part_overrides, settings_of
from lorada.methods.fit_to_model import fit_defaults, refuse_undefined
from lorada.methods.lookup import allow_methods, joined_sources, method_named
from lorada.methods.matrix_names import (
    ANY_LAYER,
    NAMING,
    SCHEMES,
    WRITTEN_FOR,
    Scheme,
    family_of,
    has_linears_of,
    translate_names,
)
from lorada.methods.meta_model import meta_model
from lorada.methods.method import (
    RATE_RATIO,
    Family,
    Method,
    Settings,
    load,
    part_class,
    part_config,
)
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
        freeze: freezes parameters of the adapter, once it is placed; called with the model.
        optimizer: makes the method's own optimizer.
        rate_ratio: how many times the learning rate LoRA's B trains at; None for the same rate.
        arguments: TrainingArguments that the method changes.
        settings_from: where the settings come from; has the words "not from the paper" where they
            are not.
    """

    config: PeftConfig | None
    callbacks: tuple[TrainerCallback, ...] = ()
    trainable: str | None = None
    with_head: str | None = None
    prepare: Callable[[nn.Module, Any], PeftConfig] | None = None
    freeze: Callable[[nn.Module], None] | None = None
    optimizer: Callable[[nn.Module, TrainingArguments], Optimizer] | None = None
    rate_ratio: float | None = None
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
        ValueError: for an unknown method, or settings that it does not have.
    """
    allow_methods([name])  # the program that calls this names it
    parts = method_named(name).part_names
    if overrides and not parts:
        raise ValueError(f"method {name} has no settings, but got {', '.join(overrides)}")
    return plan_method(name, model_config, part_overrides(parts, overrides))


def plan_method(name: str, model_config: Any, stated: Mapping[str, Settings]) -> Plan:
    """Make a method ready for a model, with settings by part that were checked with the recipe."""
    method = method_named(name)
    refuse_undefined(method, model_config)
    config, settings_from, rate_ratio = None, method.source, None
    if method.trainable is None:
        settings, settings_from = _adapter_settings(method, model_config, stated)
        config = _adapter_config(settings, model_config)
        rate_ratio = settings.get("lora", {}).get(RATE_RATIO)
    prepare = None
    if method.prepare is not None:
        prepare = partial(load(method.prepare), config=config)
    return Plan(
        config,
        callbacks=tuple(load(callback)() for callback in method.callbacks),
        trainable=method.trainable,
        with_head=method.with_head,
        prepare=prepare,
        freeze=None if method.freeze is None else load(method.freeze),
        optimizer=None if method.optimizer is None else load(method.optimizer),
        rate_ratio=rate_ratio,
        arguments=dict(method.arguments),
        settings_from=settings_from,
    )


def _adapter_settings(
    method: Method, model_config: Any, stated: Mapping[str, Settings]
) -> tuple[dict[str, Settings], str]:
    """The settings of a method's parts for a model, by part, and in words where they come from.

    Settings that do not fit the model are replaced, with a warning.
    """
    method_settings = choose_settings(method, model_config)
    settings = settings_for(method_settings, stated, model_config)
    fitted = fit_defaults(settings, stated, model_config)
    sentences = [str(replacement) for replacement in fitted.replaced]
    for sentence in sentences:
        logger.warning(sentence)
    # The differences are those of the settings that were meant; what did not fit follows them.
    source = _source_with_differences(method_settings, settings, stated)
    return fitted.parts, "; ".join([source, *sentences])


def _adapter_config(settings: Mapping[str, Settings], model_config: Any) -> LoradaConfig:
    """The config of an adapter with these settings of its parts."""
    config = LoradaConfig(parts=[part_config(part, values) for part, values in settings.items()])
    if model_config.model_type not in NO_TASK_TYPE:
        config.task_type = TASK_TYPES[family_of(model_config)]
    return config


@dataclass(frozen=True)
class PartSettings:
    """The settings of one part of a method for one kind of model."""

    values: Settings
    home: str  # the model type whose names of matrices they use
    printed: Mapping[str, Any]  # what the source prints instead of some of them


@dataclass(frozen=True)
class ChosenSettings:
    """The settings of a method for one kind of model."""

    parts: Mapping[str, PartSettings]  # by the part's name
    source: str  # where they come from, in words


def choose_settings(method: Method, model_config: Any) -> ChosenSettings:
    """Choose a method's settings for a model: the model's own, its family's, or unpublished ones.

    Of a sum they are those of its methods.

    Raises:
        ValueError: if the method has none for this kind of model.
    """
    if method.summands:
        return _settings_of_sum(method, model_config)
    model_type = model_config.model_type
    families = _families(model_config)
    # A named model may have its settings under its model type, as mBART has.
    model_names = [key for key, model in MODELS.items() if model.is_model_of(model_config)]
    if model_names:
        model_names.append(model_type)
    for key in (*model_names, *families):
        if key in method.parts:
            return _published_settings(method, key, model_type)
    for key in families:
        if key in method.unpublished.parts:
            home = WRITTEN_FOR[method.unpublished.named_as or key]
            return _settings_under(method, key, method.unpublished.parts[key], home)
    kinds = ", ".join(method.parts | method.unpublished.parts)
    raise ValueError(
        f"{method.name} has no settings for {model_type} models, only for {kinds}: "
        "use another method"
    )


def _families(model_config: Any) -> tuple[Family, ...]:
    """The families whose settings a model takes, the nearest first."""
    family = family_of(model_config)
    # DeBERTa is an encoder like RoBERTa, and uses its settings where a method has none for DeBERTa.
    return (family, "roberta") if family == "deberta" else (family,)


def _published_settings(method: Method, key: str, model_type: str) -> ChosenSettings:
    """The settings that a method's paper has under a key of ``Method.parts``."""
    home = WRITTEN_FOR.get(key, model_type)
    method_settings = _settings_under(method, key, method.parts[key], home)
    # Settings of ours were chosen for every model of a family, so no model lent them.
    if home == model_type or method_settings.source.startswith(NOT_FROM_THE_PAPER):
        return method_settings
    borrowed = f"{method_settings.source}; those of {home} models, taken to a {model_type} model"
    return replace(method_settings, source=borrowed)


def _settings_under(
    method: Method, key: str, parts: Mapping[str, Settings], home: str
) -> ChosenSettings:
    """Settings that a method has under a key, with names of matrices as in ``home`` models."""
    printed = method.printed.get(key, {})
    part_settings = {}
    for part, values in parts.items():
        part_settings[part] = PartSettings(values, home, printed.get(part, {}))
    return ChosenSettings(part_settings, method.source_of(key))


def _settings_of_sum(method: Method, model_config: Any) -> ChosenSettings:
    """The settings of a sum, from those of each of its methods."""
    parts: dict[str, PartSettings] = {}
    sources: list[tuple[str, str]] = []
    for summand in method.summands:
        method_settings = choose_settings(summand, model_config)
        parts |= method_settings.parts
        sources.append((summand.name, method_settings.source))
    return ChosenSettings(parts, joined_sources(sources))


def _source_with_differences(
    method_settings: ChosenSettings,
    settings: Mapping[str, Settings],
    stated: Mapping[str, Settings],
) -> str:
    """The source of the settings in words, and the settings in which they differ from it."""
    differences: list[str] = []
    for part, values in settings.items():
        part_settings = method_settings.parts[part]
        differences += _differences_of_part(part, part_settings, values, stated.get(part, {}))
    if not differences:
        return method_settings.source
    return f"{method_settings.source}; but for {', '.join(differences)}"


def _differences_of_part(
    part: str, part_settings: PartSettings, settings: Settings, stated: Settings
) -> list[str]:
    """What a part takes other than the source has, each as ``lora.r=8 (there 32)``.

    Args:
        part: its name.
        part_settings: what was chosen for it, and what the source prints.
        settings: what it takes, the user's among them.
        stated: the user's.
    """
    defaults = part_class(part).__dataclass_fields__
    at_source = {}
    source_values = {**part_settings.values, **part_settings.printed}
    for key, value in source_values.items():
        # Names of matrices are translated for each model, so only the user's are compared.
        if key not in NAMING or key in stated:
            at_source[key] = value
    differences = []
    for key in {**at_source, **stated}:
        value = settings[key] if key in settings else defaults[key].default
        source_value = at_source.get(key, NOT_STATED)
        # A config says None for the learning rate of all other parameters.
        expected = None if source_value == OF_ALL_OTHERS else source_value
        if value != expected:
            words = NOT_STATED if source_value == NOT_STATED else f"there {source_value}"
            differences.append(f"{part}.{key}={value} ({words})")
    return differences


def settings_for(
    method_settings: ChosenSettings, stated: Mapping[str, Settings], model_config: Any
) -> dict[str, Settings]:
    """Translate chosen settings for a model, and put the user's (``stated``) in their place."""
    parts: dict[str, Settings] = {}
    scheme: Scheme | None = None  # looked up only for a setting that names matrices
    for part, part_settings in method_settings.parts.items():
        values = part_settings.values
        user_settings = stated.get(part, {})
        alpha = _alpha_for_rank(part, values, user_settings)
        settings = {**deepcopy(values), **alpha, **user_settings}
        # Setting that names matrices → the model type whose names it uses. The user's are as meant.
        own_naming = [key for key in NAMING if key in values and key not in user_settings]
        homes = dict.fromkeys(own_naming, part_settings.home)
        placement = PLACEMENTS.get(settings.get("placement", ""))
        if placement is not None and placement.linears and "target_modules" not in settings:
            settings["target_modules"] = list(placement.linears)
            homes["target_modules"] = "llama"
        for key, home in homes.items():
            if isinstance(settings[key], str):
                continue  # a regex, which is for the model it was written for
            if scheme is None:
                scheme = scheme_of(model_config, f"{part}.{key}")
            settings[key] = translate_names(settings[key], SCHEMES[home], scheme)
        _put_layers_into_regex(settings)
        if scheme is SCHEMES["gpt2"] and "fan_in_fan_out" in settings_of(part):
            settings.setdefault("fan_in_fan_out", True)  # the layout of Conv1D's weights
        parts[part] = settings
    return parts


def _put_layers_into_regex(settings: Settings) -> None:
    """Put chosen layers into the regex of targets: PEFT reads ``layers_to_transform`` for lists."""
    layers, targets = settings.get("layers_to_transform"), settings.get("target_modules")
    if layers == [] or not isinstance(targets, str):  # the former is refused by the config
        return
    if layers is None or not targets.startswith(ANY_LAYER):
        return
    indices = [layers] if isinstance(layers, int) else layers
    alternatives = "|".join(map(str, indices))
    settings["target_modules"] = targets.replace(ANY_LAYER, rf".*\.({alternatives})", 1)
    settings["layers_to_transform"] = None


def _alpha_for_rank(part: str, settings: Settings, user_settings: Settings) -> Settings:
    """The alpha that keeps the scale α/r of a part whose rank the user gives alone."""
    fields = part_class(part).__dataclass_fields__
    rank_key = next((name for name in ("init_r", "rank", "r") if name in fields), "")
    alpha_key = next((name for name in fields if name.endswith("alpha")), "")
    if not alpha_key or rank_key not in user_settings or alpha_key in user_settings:
        return {}
    # rsLoRA's scale is α/√r, by which one alpha suits every rank.
    if user_settings.get("use_rslora"):
        return {}
    rank = settings.get(rank_key, fields[rank_key].default)
    alpha = settings.get(alpha_key, fields[alpha_key].default)
    if not rank or not alpha:
        return {}
    scaled = alpha * user_settings[rank_key] / rank
    return {alpha_key: int(scaled) if scaled.is_integer() else scaled}


def scheme_of(model_config: Any, needed_by: str) -> Scheme:
    """The names of a model's matrices: those of its type, or of a type with the same linear layers.

    ``needed_by`` is the setting that needs the names; the error tells the user to give it.

    Raises:
        ValueError: if no known type has the same linear layers.
    """
    model_type = model_config.model_type
    if model_type in SCHEMES:
        return SCHEMES[model_type]
    model = meta_model(model_config)
    # There is no model if transformers has no class for the config.
    linear_names = [] if model is None else layer_linear_names(model)
    for scheme in SCHEMES.values():
        if linear_names and has_linears_of(scheme, linear_names):
            return scheme
    known = f"; its layers have {', '.join(linear_names)}" if linear_names else ""
    raise ValueError(
        f"the matrices of {model_type} models have no names that are known here: "
        f"give {needed_by}=[…]{known}"
    )
