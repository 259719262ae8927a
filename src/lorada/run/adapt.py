"""A base model with a method placed on it, from a recipe or from a finished run."""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from lorada.methods import Plan, build_method, select_trainable
from lorada.run.models import is_causal, load_config, load_model
from lorada.run.recipe import Recipe
from lorada.tuners import LoradaConfig

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def plan_for(recipe: Recipe) -> Plan:
    """The recipe's method, made ready for the recipe's model."""
    config = load_config(recipe.model, trust_remote_code=recipe.trust_remote_code)
    return build_method(recipe.method, config, **recipe.parts)


def load_base(recipe: Recipe, labels: int | None = None) -> PreTrainedModel:
    """The recipe's model without any adapter.

    Raises:
        ValueError: if the rows ask for a text of a model that cannot generate.
    """
    config = load_config(recipe.model, trust_remote_code=recipe.trust_remote_code)
    if labels is None and not is_causal(config):
        raise ValueError(
            f"{recipe.model} is a {config.model_type} model and cannot generate a response: "
            "use rows with text and label"
        )
    return load_model(
        recipe.model,
        labels=labels,
        dtype=recipe.dtype,
        trust_remote_code=recipe.trust_remote_code,
    )


def adapt(
    base: PreTrainedModel, plan: Plan, recipe: Recipe, labels: int | None
) -> PeftModel | PreTrainedModel:
    """Place a method on a model, ready to train."""
    if plan.config is None:
        if recipe.from_adapter is not None:
            raise ValueError(f"--from needs a method with an adapter, which {recipe.method} is not")
        assert plan.trainable is not None
        select_trainable(base, plan.trainable)
        return base
    config = plan.config
    config.task_type = "SEQ_CLS" if labels is not None else "CAUSAL_LM"
    weights: dict[str, torch.Tensor] = {}
    if recipe.from_adapter is not None:
        assert isinstance(config, LoradaConfig)
        config, weights = _stack_on(config, Path(recipe.from_adapter))
    model = get_peft_model(base, config)
    if weights:
        set_peft_model_state_dict(model, weights)
        logger.warning("%d tensors taken over from %s", len(weights), recipe.from_adapter)
    return model


def _stack_on(config: LoradaConfig, folder: Path) -> tuple[LoradaConfig, dict[str, torch.Tensor]]:
    """A stack whose parts are those of a saved adapter, and the method's for every other kind."""
    weights = adapter_weights(folder)
    saved = PeftConfig.from_pretrained(str(folder))
    old = saved.parts if isinstance(saved, LoradaConfig) else [saved]
    kinds = {part.peft_type for part in old}
    new = [part for part in config.parts if part.peft_type not in kinds]
    return LoradaConfig(parts=[*new, *old], task_type=config.task_type), weights


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter.

    Raises:
        ValueError: for a folder that is missing, empty, truncated or not safetensors.
    """
    if not folder.is_dir():
        raise ValueError(f"no adapter folder at {folder}")
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} has no {ADAPTER_CONFIG}: not a PEFT adapter")
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        pickles = ", ".join(p.name for p in folder.glob("*.bin"))
        found = f"; {pickles} is a pickle, which lorada does not load" if pickles else ""
        raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}{found}")
    try:
        weights: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not safetensors: {error}") from error
    if not weights:
        raise ValueError(f"{path} holds no tensors")
    return weights


def load_adapted(base: PreTrainedModel, folder: Path) -> PeftModel:
    """A model with a saved adapter, for inference.

    Raises:
        ValueError: for a folder that is not a whole adapter of this model.
    """
    adapter_weights(folder)
    model = PeftModel.from_pretrained(base, str(folder))
    return model.eval()


def parameter_counts(model: nn.Module) -> dict[str, Any]:
    """How many parameters a model trains and has; task heads are counted in neither.

    Returns:
        ``trainable`` (p), ``total`` (N), ``percent`` (100 p/N) and ``percent_of_all``
        (100 p/(N+p)), as METHODS.md 6 defines them.
    """
    trainable = base = 0
    adapted = isinstance(model, PeftModel)
    for name, parameter in model.named_parameters():
        if any(head in name.split(".") for head in ("classifier", "score", "pre_classifier")):
            continue
        if parameter.requires_grad:
            trainable += parameter.numel()
        if not adapted or ".lora_" not in name:
            base += parameter.numel()
    return {
        "trainable": trainable,
        "total": base,
        "percent": 100 * trainable / base,
        "percent_of_all": 100 * trainable / (base + trainable if adapted else base),
    }
