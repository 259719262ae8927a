"""Every method on every kind of model, made small: what the tests of all methods run through."""

import functools
from typing import Any

import torch
from architectures import ARCHITECTURES, ENCODER_DECODERS, inputs
from conftest import SIZES, _build
from covering_cases import covering
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import ElectraConfig, ElectraForMaskedLM

from lorada import METHODS, build_method
from lorada.methods.build import Plan, choose_settings
from lorada.methods.head_modules import select_trainable
from lorada.methods.lookup import method_named
from lorada.methods.matrix_names import family_of
from lorada.methods.method import SHIFTED_ATTENTION
from lorada.training.load_recipe import load_recipe
from lorada.training.parameter_counts import parameters_of

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

# Models without a single bias, and models that compute attention themselves, without transformers'.
NO_BIASES = ("llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "t5", "modernbert")
OWN_ATTENTION = ("deberta", "deberta_v2")


def small(name: str, config: Any = None) -> dict:
    """Overrides that make a method small, for the parts it has (on a model, where it is given)."""
    method = method_named(name)
    of_model = method.parts and config is not None
    parts = choose_settings(method, config).parts if of_model else method.part_names
    return {part: SMALL[part] for part in parts if part in SMALL}


def refusal(name: str, model: str) -> str | None:
    """What a method says where it has no form on a model, as a regex; None where it has one."""
    method = method_named(name)
    if method.trains == "biases" and model in NO_BIASES:
        return rf"{name} trains biases, and \w+ has none"
    if SHIFTED_ATTENTION in method.callbacks and model in OWN_ATTENTION:
        return rf"{name} needs attention that takes a mask for each head, and \w+ computes its own"
    if "prefix" in method.part_names and model == "deberta":
        return r"a prefix needs attention that dispatches .*; \w+ computes it itself"
    if "shira" in method.part_names and model == "gpt2":
        return r"PEFT's SHiRA takes nn.Linear only, and .*c_attn of \w+ is a Conv1D"
    known, kind = {*method.parts, *method.unpublished.parts}, family(model)
    if known.isdisjoint((kind, "roberta") if kind == "deberta" else (kind,)) and method.parts:
        return f"{name} has no settings for .* models, only for"
    return None


@functools.cache
def counted(name: str, model: str, *overrides: str) -> dict[str, Any]:
    """The parameters of a method on a model, counted without weights."""
    given = {"method": name, "model": model, "output": "-"}
    return parameters_of(load_recipe(None, list(overrides), given))


def family(model: str) -> str:
    return family_of(BUILDERS[model]().config)


def defined(name: str, model: str) -> bool:
    return refusal(name, model) is None


CASES = [(name, model) for name in METHODS for model in MODELS if defined(name, model)]
FURTHER_CASES = [(name, model) for model in FURTHER for name in METHODS if defined(name, model)]
UNDEFINED = [(name, model) for name in METHODS for model in BUILDERS if not defined(name, model)]


ATTENTION, BLOCK = ("lmam", "prefix"), ("bottleneck", "pa_attn", "parallel_ffn")


def pairs(name: str, model: str) -> set[tuple[str, str]]:
    """What meets in a case: each part and the kind of model; where it sits, and the model."""
    method, kind = method_named(name), family(model).replace("deberta", "roberta")
    found = {(part, kind) for part in method.part_names or [method.trains]}
    for part in method.part_names:
        sits = "attention" if part in ATTENTION else "block" if part in BLOCK else "matrices"
        found.add((sits, model))
    return found


def selected(cases: list[tuple[str, str]]) -> list:
    """The cases of a matrix of methods and models that run.

    With every run of the tests each method is on one model, and each model has one method. With the
    slow ones each part is on each kind of model (decoder, encoder, encoder-decoder), and each model
    has parts in its attention, beside its blocks and on its matrices.
    """
    return covering(cases, 1, pairs)


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
    model = get_peft_model(base, config).eval()
    if plan.freeze is not None:
        plan.freeze(model)
    return model, plan


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
