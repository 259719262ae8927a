"""Our configs, as PEFT's tests take them: by family of models, and for the custom models."""

from typing import Any

from peft import LoraConfig, PeftConfig

from lorada import (
    BottleneckConfig,
    LamdaConfig,
    LmamConfig,
    LoradaConfig,
    OmoeConfig,
    PrefixConfig,
    QuantaConfig,
    SoraConfig,
)

Case = tuple[type[PeftConfig], dict[str, Any]]

# Parts as dictionaries, so that every test makes its own.
LMAM = {"peft_type": "LMAM", "rank": 2, "length": 8, "inverse_scale": 1.0}
LORA = {"peft_type": "LORA", "r": 4}
QUANTA = {"peft_type": "QUANTA"}
BOTTLENECK = {"peft_type": "BOTTLENECK", "rank": 4}
PREFIX = {"peft_type": "PREFIX", "length": 3}
# On LoRA's modules, so the two are nested; its parameters carry "lora" in their names, which PEFT's
# tests take for the sign of what may train.
GRALORA = {"peft_type": "GRALORA", "r": 4, "gralora_k": 2}


# OMoE has default targets for LLaMAs alone. A pooler's dense would get no gradient.
MATRICES = ["q_proj", "c_attn", "q", "query", "query_proj", "down_proj", "fc2", "wo"]
MATRICES += ["intermediate.dense"]


def configs(task: str) -> list[Case]:
    """Each tuner alone, and three stacks; all of them for decoders alone."""
    cases: list[Case] = [
        (LmamConfig, {"rank": 2, "length": 8, "inverse_scale": 1.0}),
        (BottleneckConfig, {"rank": 4}),
        (PrefixConfig, {"length": 4}),
        (PrefixConfig, {"length": 3, "projection": 5}),
        (QuantaConfig, {}),
        (SoraConfig, {"rank": 4}),
        (LamdaConfig, {"rank": 4}),
        (OmoeConfig, {"rank": 2, "target_modules": MATRICES}),
        (LoradaConfig, {"parts": [LMAM, LORA, BOTTLENECK]}),
        (LoradaConfig, {"parts": [PREFIX, LORA]}),
        (LoradaConfig, {"parts": [LORA, GRALORA]}),
    ]
    if task != "CAUSAL_LM":
        cases = [case for case in cases if case[0] in (LmamConfig, BottleneckConfig, LoradaConfig)]
    return [(config, {**settings, "task_type": task}) for config, settings in cases]


# Config classes and what they must be given, for the tests of configs alone.
CONFIG_CLASSES: list[Case] = [
    (config, {"parts": [LMAM, LORA, BOTTLENECK]} if config is LoradaConfig else {})
    for config in dict.fromkeys(config for config, _ in configs("CAUSAL_LM"))
]


def on(part: dict[str, Any], *targets: str, **options: Any) -> dict[str, Any]:
    """A part on named modules."""
    return {**part, "target_modules": list(targets), **options}


def stack(name: str, model: str, *parts: dict[str, Any], **options: Any) -> tuple:
    """A case of a stack on a custom model."""
    return name, model, LoradaConfig, {"parts": list(parts), **options}


# A custom model has no attention that dispatches and no FFN, so no map and no bottleneck.
CUSTOM = [
    stack("LoRA in a stack", "MLP", on(LORA, "lin0")),
    stack("DoRA in a stack", "MLP", on(LORA, "lin0", use_dora=True)),
    stack("LoRA in a stack, head saved", "MLP", on(LORA, "lin0"), modules_to_save=["lin1"]),
    stack("GraLoRA around LoRA", "MLP", on(LORA, "lin0"), on(GRALORA, "lin0")),
    stack("LoRA in a stack", "EmbConv1D", on(LORA, "emb", "conv1d")),
    stack("LoRA in a stack", "Conv2d", on(LORA, "conv2d", "lin0")),
    ("QuanTA", "MLP", QuantaConfig, {"target_modules": ["lin0", "lin1"]}),
    ("QuanTA", "EmbConv1D", QuantaConfig, {"target_modules": ["lin0"]}),
    stack("QuanTA around LoRA", "MLP", on(LORA, "lin0"), on(QUANTA, "lin0")),
    # With a larger term, PEFT's learning rate of 0.5 ends in NaN.
    ("SoRA", "MLP", SoraConfig, {"rank": 4, "alpha": 1.0, "target_modules": ["lin0"]}),
    ("LaMDA", "MLP", LamdaConfig, {"rank": 2, "target_modules": ["lin0", "lin1"]}),
    ("OMoE", "MLP", OmoeConfig, {"rank": 2, "target_modules": ["lin0", "lin1"]}),
]


def lorada_config_on(target_modules: list[str], **options: Any) -> LoradaConfig:
    """A stack for tests that make a config of nothing but its target modules.

    Of two parts, since one of PEFT alone is saved as a plain adapter, which no stack stands beside.
    """
    parts = [LoraConfig(target_modules=target_modules), SoraConfig(target_modules=target_modules)]
    return LoradaConfig(parts=parts, **options)
