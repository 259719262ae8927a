"""Every method on every kind of model, made small: what the tests of all methods run through."""

import functools
from typing import Any

import torch
from architectures import ARCHITECTURES, ENCODER_DECODERS, inputs
from conftest import SIZES, _build
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import ElectraConfig, ElectraForMaskedLM

from lorada import METHODS, build_method
from lorada.methods.build import Plan
from lorada.methods.describe import part_names
from lorada.methods.model_settings import column_of
from lorada.methods.task_head import select_trainable

BUILDERS = {
    **ARCHITECTURES,
    "electra": functools.partial(
        _build, ElectraForMaskedLM, ElectraConfig,
        SIZES | {"embedding_size": 32, "max_position_embeddings": 64},
    ),
}  # fmt: skip
# The models of the paper, on which sizes and training are checked too, and all others.
MODELS = ("llama", "roberta", "deberta_v2", "bart", "mbart")
FURTHER = tuple(name for name in BUILDERS if name not in MODELS)
OFTEN = ("gpt2", "phi3", "t5", "distilbert")  # of those, in every run of the tests
# What a tiny model needs other than what the paper's has.
SMALL = {
    "lmam": {"rank": 2, "length": 6, "heads": 2},
    "bottleneck": {"rank": 3},
    "pa_attn": {"rank": 3},
    "parallel_ffn": {"rank": 3},
    "prefix": {"length": 3},
    "lora": {"r": 2},
    "sora": {"rank": 2},
    "lamda": {"rank": 2},
    "omoe": {"rank": 2},
    "shira": {"r": 2},
    "adalora": {"init_r": 4, "target_r": 2, "total_step": 20},
}

# Methods that are not defined on a model, and what is said of it.
NO_BIASES = "bitfit trains biases, and {} has none"
NO_MASK = "longlora needs attention that takes a mask for each head, and {} computes its own"
NO_PREFIX = "a prefix needs attention that dispatches .*; {} computes it itself"
WORDS: dict[tuple[str, str], str] = {
    **{
        ("bitfit", model): NO_BIASES
        for model in ("llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "t5",
                      "modernbert")
    },
    **{
        ("longlora", model): NO_MASK
        for model in ("falcon", "falcon_alibi", "bloom", "deberta", "deberta_v2")
    },
    **{
        (name, model): NO_PREFIX
        for name in ("prefix", "mam", "prefix_lora", "autopeft")
        for model in ("falcon", "falcon_alibi", "bloom", "deberta")
    },
    ("shira", "gpt2"): r"PEFT's SHiRA takes nn.Linear only, and .*c_attn of {} is a Conv1D",
}  # fmt: skip


def small(name: str, config: Any = None) -> dict:
    """Overrides that make a method small, for the parts it has (on a model, where it is given)."""
    parts = part_names(name)
    if config is not None and parts:
        own = column_of(name.removesuffix("+lmam"), config).parts
        parts = [part for part in parts if part in own or (part == "lmam" and "+" in name)]
    return {part: SMALL[part] for part in parts if part in SMALL}


def defined(name: str, model: str) -> bool:
    return (name, model) not in WORDS


CASES = [(name, model) for name in METHODS for model in MODELS if defined(name, model)]
FURTHER_CASES = [(name, model) for model in FURTHER for name in METHODS if defined(name, model)]
UNDEFINED = list(WORDS)


def placed(name: str, model: str, batch: dict[str, Tensor]) -> tuple[nn.Module | PeftModel, Plan]:
    """A tiny model with a method on it, in eval mode, and the plan of the method."""
    base = BUILDERS[model]()
    plan = build_method(name, base.config, **small(name, base.config))
    if plan.config is None:
        select_trainable(base, plan.trainable)
        return base, plan
    config = plan.config
    if plan.prepare is not None:
        config = plan.prepare(base, [with_labels(model, batch)])
    config.task_type = None
    return get_peft_model(base, config).eval(), plan


def with_labels(model: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch whose labels are its own tokens, or classes of its pictures."""
    if model == "vit":
        return {**batch, "labels": torch.arange(3)}
    name = "decoder_input_ids" if model in ENCODER_DECODERS else "input_ids"
    return {**batch, "labels": batch[name]}


def labelled(model: str) -> dict[str, Tensor]:
    """A batch with labels that have nothing to do with it, so there is much to learn."""
    batch = inputs(model)
    tokens = batch.get("decoder_input_ids", batch["input_ids"])
    labels = tokens.roll(1, 0).masked_fill(tokens == 0, -100)
    return {**batch, "labels": labels}
