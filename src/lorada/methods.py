"""METHODS: the rows of the paper as data, and ``build_method``, which turns a name into a Plan.

A method is a list of parts with their settings, one column per family of models. Combinations
(LoRaDA-A, LoRaDA-LA, ``NAME+lmam``) are longer lists and nothing else.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from peft import LoraConfig, PeftConfig, TaskType
from torch import nn
from transformers import TrainerCallback

from lorada.errors import unknown
from lorada.tuners import BottleneckConfig, LmamConfig, LoradaConfig

Family = Literal["llama", "roberta"]
Settings = dict[str, Any]

PARTS: dict[str, type[PeftConfig]] = {
    "lmam": LmamConfig,
    "lora": LoraConfig,
    "bottleneck": BottleneckConfig,
}

# Which column of the paper's tables a model takes: decoders like LLaMA, encoders like RoBERTa.
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), "llama"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta"), "roberta"),
}


@dataclass(frozen=True)
class Method:
    """One row of the paper.

    Attributes:
        summary: one line for ``lorada methods``.
        parts: part name → settings, by family; None for methods without an adapter.
        trainable: rule of parameter names for methods that select parameters of the base.
        source: where the settings come from.
    """

    summary: str
    parts: dict[Family, dict[str, Settings]] = field(default_factory=dict)
    trainable: str | None = None
    source: str = ""


MAP = {"rank": 2, "length": 128}
LLM_LORA = {"target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]}

METHODS: dict[str, Method] = {
    "lmam": Method(
        "the low-rank attention map alone",
        {"llama": {"lmam": MAP}, "roberta": {"lmam": MAP}},
        source="Table 19, LLaMA-7B",
    ),
    "fmam": Method(
        "the full-rank attention map alone (the ¬L ablation)",
        {
            "llama": {"lmam": {"length": 128, "ablation": "full_rank"}},
            "roberta": {"lmam": {"length": 128, "ablation": "full_rank"}},
        },
        source="Tables 3 and 9",
    ),
    "lora": Method(
        "LoRA",
        {
            "llama": {"lora": {"r": 32, "lora_alpha": 64, "lora_dropout": 0.05, **LLM_LORA}},
            "roberta": {
                "lora": {
                    "r": 16, "lora_alpha": 32, "lora_dropout": 0.1,
                    "target_modules": ["query", "value"],
                }
            },
        },
        source="Tables 4 and 5",
    ),
    "dora": Method(
        "DoRA: LoRA with the magnitude of each output row learned apart",
        {
            "llama": {
                "lora": {
                    "r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "use_dora": True, **LLM_LORA,
                }
            },
        },
        source="Table 4",
    ),
    "adapter_ffn": Method(
        "Adapter-FFN: a scaled bottleneck adapter parallel to the FFN",
        {
            "llama": {"bottleneck": {"rank": 18, "scale": 4.0}},
            "roberta": {"bottleneck": {"rank": 32, "scale": 2.0, "dropout": 0.1}},
        },
        source="Table 5",
    ),
    "lorada_a": Method(
        "LoRaDA-A: the map with Adapter-FFN",
        {
            "llama": {
                "lmam": MAP,
                "bottleneck": {"rank": 18, "scale": 4.0},
            },
            "roberta": {
                "lmam": {"rank": 3, "length": 512, "heads": 3},
                "bottleneck": {"rank": 16, "scale": 2.0, "dropout": 0.1},
            },
        },
        source="Table 16",
    ),
    "lorada_la": Method(
        "LoRaDA-LA: the map with LoRA and Adapter-FFN",
        {
            "llama": {
                "lmam": MAP,
                "lora": {
                    "r": 1, "lora_alpha": 2, "lora_dropout": 0.05,
                    "target_modules": ["o_proj", "down_proj"],
                },
                "bottleneck": {"rank": 18, "scale": 4.0, "dropout": 0.05},
            },
        },
        source="Table 19, LLaMA-7B",
    ),
    "bitfit": Method("only the biases of the base", trainable=r"(^|\.)bias$", source="Table 5"),
    "full": Method("every parameter of the base", trainable=r".", source="Table 5"),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A method made ready for one model.

    Attributes:
        config: the PEFT config to place, or None.
        callbacks: Trainer callbacks of methods that change the procedure.
        trainable: a regex of parameter names that train when there is no PEFT config.
        prepare: called with model and batches by methods that must see both first.
        arguments: overrides of TrainingArguments.
    """

    config: PeftConfig | None
    callbacks: tuple[TrainerCallback, ...] = ()
    trainable: str | None = None
    prepare: Callable[[nn.Module, Any], PeftConfig] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def part_names(name: str) -> list[str]:
    """The parts of a method, in the order in which they are stacked."""
    method, plus_map = _method(name)
    names = list(next(iter(method.parts.values()), {}))
    return (["lmam"] if plus_map else []) + names


def _method(name: str) -> tuple[Method, bool]:
    plain = name.removesuffix("+lmam")
    if plain not in METHODS:
        raise unknown("method", name, METHODS)
    method, plus_map = METHODS[plain], name != plain
    if plus_map and (not method.parts or "lmam" in next(iter(method.parts.values()))):
        raise ValueError(f"unknown method {name!r}: {plain} cannot take a map on top")
    return method, plus_map


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
    method, plus_map = _method(name)
    if method.trainable is not None:
        if overrides:
            raise ValueError(f"method {name} has no settings, but got {', '.join(overrides)}")
        return Plan(None, trainable=method.trainable)
    family = family_of(model_config)
    if family not in method.parts:
        raise ValueError(
            f"{name} has no settings for {model_config.model_type} models, "
            f"only for {', '.join(method.parts)}-like ones"
        )
    settings = {part: dict(values) for part, values in method.parts[family].items()}
    if plus_map:
        settings = {"lmam": dict(MAP), **settings}
    for part, values in part_overrides(list(settings), overrides).items():
        settings[part].update(values)
    task_type = TaskType.CAUSAL_LM if family == "llama" else TaskType.SEQ_CLS
    configs = [PARTS[part](**values) for part, values in settings.items()]
    return Plan(LoradaConfig(parts=configs, task_type=task_type))


def part_overrides(parts: list[str], overrides: dict[str, Any]) -> dict[str, Settings]:
    """Sort overrides by part: ``{"lmam": {"rank": 4}}`` from either form of key.

    Raises:
        ValueError: for a setting that no part has, or that several have.
    """
    found: dict[str, Settings] = {part: {} for part in parts}
    known = {part: {f.name for f in fields(PARTS[part]) if f.init} for part in parts}
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


def select_trainable(model: nn.Module, rule: str) -> None:
    """Freeze every parameter but those whose name matches the rule.

    Raises:
        ValueError: if no parameter does (a LLaMA has no biases for BitFit).
    """
    chosen = {name for name, _ in model.named_parameters() if re.search(rule, name)}
    if not chosen:
        raise ValueError(
            f"no parameter of {type(model).__name__} matches {rule!r}: "
            "this method is not defined for this model"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen or in_head(name))


def in_head(name: str) -> bool:
    """Whether a parameter belongs to a task head, which always trains and is never counted."""
    return any(head in name.split(".") for head in ("classifier", "score", "pre_classifier"))
