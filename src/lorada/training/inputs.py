"""Reads what a run needs before it loads weights, and refuses settings that do not go together."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import (
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TorchAoConfig,
)

from lorada.data.answer_length import answer_limit
from lorada.data.rows.doubtful_rows import warn_of_doubtful
from lorada.data.rows.rows import Rows
from lorada.data.rows.training_rows import training_rows
from lorada.data.scoring.chosen_metric import ChosenMetric, metric_of
from lorada.data.task import Kind
from lorada.data.tokenize import context_of
from lorada.methods.build import Plan, plan_method
from lorada.methods.head_modules import HEADS, POOLER
from lorada.methods.lookup import method_named
from lorada.methods.meta_model import meta_model
from lorada.methods.method import SHIFTED_ATTENTION, load
from lorada.runs.folder import read_template
from lorada.runs.recipe import Recipe
from lorada.support.error_messages import needs_extra
from lorada.support.row_sources import HEADED, Form
from lorada.training.arguments import on_mps, with_dtype
from lorada.training.models.loading import (
    kind_of,
    load_config,
    load_tokenizer,
    own_classes,
    set_languages,
    stretched,
)
from lorada.tuners import LmamConfig, PrefixConfig
from lorada.tuners.pooling import refuse_type


@dataclass(frozen=True)
class Prepared:
    """A recipe, with the dtype that its base gets here, and its config, kind and tokenizer."""

    recipe: Recipe
    config: PreTrainedConfig
    kind: Kind
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedTraining(Prepared):
    """What a training needs before it loads weights."""

    plan: Plan
    rows: Rows
    held_out: Rows | None  # which are measured while training
    metric: ChosenMetric | None  # None for a benchmark, which has its own

    @cached_property
    def context(self) -> int | None:
        """How many tokens the model can read; None if its config does not say."""
        return context_of(stretched(self.config, self.recipe.rope_factor))

    @cached_property
    def max_answer_tokens(self) -> int | None:
        """The most tokens of an answer, as ``answer_limit`` finds them: it reads every response."""
        return answer_limit(self.rows, self.recipe, self.tokenizer, self.kind, self.context)


def prepare(recipe: Recipe) -> Prepared:
    """Read the config and the tokenizer of a recipe's base model."""
    config = load_config(recipe.model, trust_remote_code=recipe.trust_remote_code)
    tokenizer = load_tokenizer(recipe.model, config, trust_remote_code=recipe.trust_remote_code)
    if recipe.chat_template is not None:
        tokenizer.chat_template = read_template(recipe.chat_template)
    return Prepared(with_dtype(recipe, config), config, kind_of(config), tokenizer)


def prepare_training(recipe: Recipe) -> PreparedTraining:
    """Read the base model's config and tokenizer and the rows, and plan the method.

    Doubtful labels are warned of.

    Raises:
        ValueError: for what does not go together, such as a chat template and rows that are no
            chats. What is quick to see is checked before the method is planned.
    """
    base = prepare(recipe)
    # A checkpoint that is a classifier already says which classes the rows may have.
    rows, held_out = training_rows(recipe, base.kind, own_classes(base.config))
    # What does not go together with these rows is refused before the method is planned.
    if recipe.pooling is not None:
        refuse_pooling(recipe.pooling, base.config, rows.form, rows.path)
    if recipe.chat_template is not None and rows.form != "messages":
        raise ValueError(
            f"chat_template={recipe.chat_template} is for chats, and {rows.path} has {rows.form} "
            "rows: leave it out"
        )
    warn_of_doubtful(rows)
    metric = metric_of(rows, recipe)
    if recipe.packing:
        refuse_packing(rows.form, base.kind, recipe.method)
    plan = plan_method(recipe.method, base.config, recipe.parts)
    refuse_base_settings(recipe, base.config, plan)
    set_languages(base.tokenizer, recipe.languages, rows.protocol.languages)
    return PreparedTraining(**vars(base), plan=plan, rows=rows, held_out=held_out, metric=metric)


def refuse_pooling(pooling: str, model_config: Any, form: Form, path: str) -> None:
    """Refuse a pooling for rows of a ``form`` without a head, and for a base it is not made for.

    Args:
        pooling: by its name in recipes.
        model_config: of the base model.
        form: of the training rows.
        path: of their file, for the error.
    """
    if form not in HEADED:
        raise ValueError(
            f"pooling={pooling} is what a head for classes or scores reads, and {path} has {form} "
            "rows, which need none: leave it out"
        )
    refuse_type(model_config.model_type)


def refuse_packing(form: Form, kind: Kind, method: str) -> None:
    """Refuse rows, models and methods that packing does not work for."""
    if kind != "decoder":
        raise ValueError("packing=true is for decoders only: leave it out")
    if form not in ("messages", "prompt"):
        raise ValueError(
            f"packing=true is for prompts or messages, not for rows of the form {form!r}"
        )
    if SHIFTED_ATTENTION in method_named(method).callbacks:
        raise ValueError("packing=true: LongLoRA's groups would span several rows; leave it out")


MASKED = ("sdpa", "eager")  # implementations that take any mask


def loading_settings(
    recipe: Recipe, device: torch.device | None, *, headed: bool
) -> dict[str, Any]:
    """What ``from_pretrained`` is told of a recipe's base, which goes to ``device`` or the CPU.

    A task head, if it is ``headed``, trains, so it is not quantised.
    """
    unquantized_modules = [*HEADS, POOLER] if headed else None
    settings = {
        "device_map": _device_map(recipe, device),
        "attn_implementation": recipe.attn_implementation,
        "quantization_config": _quantization(recipe, unquantized_modules),
    }
    # What is None is left to transformers.
    return {name: value for name, value in settings.items() if value is not None}


def _device_map(recipe: Recipe, device: torch.device | None) -> Any:
    """Which parts of the base go to which device; None leaves all on the CPU."""
    if recipe.device_map is not None:
        return recipe.device_map
    if device is not None:
        return {"": device}  # the whole model, by the empty name of its root
    if recipe.quantization is not None:
        # Quantised weights would go to a GPU by themselves, even where FSDP is to place them.
        return {"": "cpu"}
    return None


def _quantization(recipe: Recipe, unquantized_modules: list[str] | None) -> Any:
    """The quantisation of a recipe as transformers takes it; None for a recipe without one.

    nf4 has a second quantisation of its scales, as in QLoRA; int8 is of the weights alone.

    Args:
        recipe: with ``quantization``, and the dtype in which 4-bit weights are multiplied.
        unquantized_modules: names of modules that stay as they are; None for none.

    Raises:
        ImportError: if bitsandbytes or torchao is not installed.
    """
    if recipe.quantization is None:
        return None
    if recipe.quantization == "nf4":
        with needs_extra("bnb"):
            import bitsandbytes  # noqa: F401
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, recipe.base_dtype),
            llm_int8_skip_modules=unquantized_modules,  # of 4 bits too, in spite of its name
        )
    with needs_extra("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig
    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=unquantized_modules)


def refuse_base_settings(recipe: Recipe, config: Any, plan: Plan) -> None:
    """Refuse a quantisation or an attention that method or device cannot train with."""
    if recipe.quantization is not None:
        _refuse_quantization(recipe, plan)
    if recipe.attn_implementation is not None:
        _refuse_attention(recipe.attn_implementation, config, plan)


def _refuse_quantization(recipe: Recipe, plan: Plan) -> None:
    """Refuse a quantised base where the method trains the base itself, on MPS, and under FSDP."""
    if plan.config is None:
        raise ValueError(
            f"quantization={recipe.quantization} and method={recipe.method}, which trains the "
            "base itself, exclude each other: choose a method with an adapter"
        )
    if on_mps(recipe.training):
        raise ValueError(
            f"quantization={recipe.quantization} does not train on MPS: leave it out, or add "
            "training.use_cpu=true"
        )
    by_accelerate = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if by_accelerate or recipe.training.get("fsdp"):
        raise ValueError(
            f"quantization={recipe.quantization} and training.fsdp, which shards weights of 16 or "
            "32 bits, exclude each other: leave out one of the two"
        )


def _refuse_attention(implementation: str, config: Any, plan: Plan) -> None:
    """Refuse an attention implementation without the masks that a method needs, or unknown.

    Unknown ones are found by making the model without weights, where transformers looks the
    implementation up and checks that its package is installed.
    """
    if "/" in implementation:  # a kernel of the hub, which transformers fetches
        return
    if implementation not in MASKED:
        reason = _reason_for_masks(plan)
        if reason is not None:
            raise ValueError(
                f"attn_implementation={implementation} does not work with {reason}: use "
                f"{' or '.join(MASKED)}"
            )
    try:
        meta_model(config, implementation)
    except (ImportError, ValueError) as error:  # no such one, or its package is missing
        message = " ".join(str(error).split())
        raise ValueError(f"attn_implementation={implementation}: {message}") from error


def _reason_for_masks(plan: Plan) -> str | None:
    """Which part of a method works only where attention takes any mask; None for none."""
    if any(isinstance(callback, load(SHIFTED_ATTENTION)) for callback in plan.callbacks):
        return "shifted sparse attention, which has a mask for each head"
    for part in getattr(plan.config, "parts", [plan.config]):
        if isinstance(part, PrefixConfig):
            return "a prefix, whose keys every token sees"
        if isinstance(part, LmamConfig) and part.ablation == "no_negative":
            return "ablation=no_negative, which puts the map into the mask"
    return None
