"""Settings of a recipe that change how its base is loaded: quantisation, attention, placement."""

from typing import Any

import torch
from peft import PeftConfig
from transformers import AttentionMaskInterface, BitsAndBytesConfig, TorchAoConfig

from lorada.methods.build import Plan
from lorada.methods.meta_model import meta_model
from lorada.methods.method import SHIFTED_ATTENTION, Method
from lorada.methods.task_head import HEADS, POOLER
from lorada.runs.recipe import Recipe
from lorada.support.errors import needs_extra, unknown_name
from lorada.tuners import LmamConfig, PrefixConfig

MASKED = ("sdpa", "eager")  # implementations that take any mask


def loading_settings(
    recipe: Recipe, device: torch.device | None, *, headed: bool
) -> dict[str, Any]:
    """What ``from_pretrained`` is told of a recipe's base.

    ``device`` is where it goes, None for the CPU; ``headed`` says whether it has a task head, which
    trains and so stays as it is.
    """
    settings: dict[str, Any] = {}
    if recipe.device_map is not None:
        settings["device_map"] = recipe.device_map
    elif device is not None:
        settings["device_map"] = {"": device}
    elif recipe.quantization is not None:
        settings["device_map"] = {"": "cpu"}
    if recipe.attn_implementation is not None:
        settings["attn_implementation"] = recipe.attn_implementation
    if recipe.quantization is not None:
        settings["quantization_config"] = _quantization(
            recipe, [*HEADS, POOLER] if headed else None
        )
    return settings


def _quantization(recipe: Recipe, kept: list[str] | None) -> Any:
    """nf4 with a second quantisation of its scales, as in QLoRA; int8 of the weights alone.

    ``kept`` are the modules that are not quantised; None for the library's own choice.
    """
    if recipe.quantization == "nf4":
        with needs_extra("bnb"):
            import bitsandbytes  # noqa: F401
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, recipe.base_dtype),
            llm_int8_skip_modules=kept,
        )
    with needs_extra("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig
    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)


def refuse_base_settings(recipe: Recipe, config: Any, method: Method, plan: Plan) -> None:
    """Refuse a quantisation or an attention that the method cannot be trained with.

    ``config`` is that of the base.
    """
    if recipe.quantization is not None and plan.config is None:
        raise ValueError(
            f"quantization={recipe.quantization} and method={recipe.method}, which trains the "
            "base itself, exclude each other: choose a method with an adapter"
        )
    asked = recipe.attn_implementation
    if asked is None or "/" in asked:  # a kernel of the hub, which transformers fetches
        return
    known = sorted(AttentionMaskInterface().valid_keys())  # each has a mask of its own form
    if asked not in known:
        raise unknown_name("attn_implementation", asked, known)
    if asked not in MASKED and (reason := _needs_masks(recipe, method, plan.config)):
        raise ValueError(
            f"attn_implementation={asked} does not work with {reason}: use {' or '.join(MASKED)}"
        )
    try:
        meta_model(config, asked)
    except (ImportError, ValueError) as error:  # a package that is not installed, most often
        raise ValueError(f"attn_implementation={asked}: {' '.join(str(error).split())}") from error


def _needs_masks(recipe: Recipe, method: Method, config: PeftConfig | None) -> str | None:
    """Which part of a method works only where attention takes any mask; None for none."""
    if SHIFTED_ATTENTION in method.callbacks:
        return "shifted sparse attention, which has a mask for each head"
    for part in getattr(config, "parts", [config]):
        if isinstance(part, PrefixConfig) and recipe.packing:
            return "a prefix before each of several packed rows"
        if isinstance(part, LmamConfig) and part.ablation == "no_negative":
            return "ablation=no_negative, which puts the map into the mask"
    return None
