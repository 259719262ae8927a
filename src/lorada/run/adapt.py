"""A base model with a method placed on it, from a recipe or from a finished run."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from lorada.method import PARTS, load
from lorada.plan import Plan, build_method, in_head, select_trainable
from lorada.run.models import kind_of, load_config, load_model, stretched
from lorada.run.recipe import Recipe
from lorada.tuners import LoradaConfig, PrefixConfig
from lorada.tuners.nesting import keys_of_others
from lorada.tuners.newer import newer_version
from lorada.tuners.types import known_types

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
    if labels is None and kind_of(config) == "encoder":
        raise ValueError(
            f"{recipe.model} is a {config.model_type} model, which cannot continue a prompt: "
            "use rows with text and label, or a model that generates"
        )
    return load_model(
        recipe.model,
        labels=labels,
        dtype=recipe.dtype,
        trust_remote_code=recipe.trust_remote_code,
        **({} if recipe.rope_factor is None else stretched(config, recipe.rope_factor)),
    )


def adapt(
    base: PreTrainedModel, plan: Plan, recipe: Recipe, labels: int | None
) -> PeftModel | PreTrainedModel:
    """Place a method on a model, ready to train.

    Raises:
        ValueError: if the method does not fit the model, or ``--from`` the method, or if a head is
            to stay as it was drawn where there is none.
    """
    model = _placed(base, plan, recipe, labels)
    if not recipe.train_head:
        heads = [p for name, p in model.named_parameters() if in_head(name)]
        if labels is None or not heads:
            raise ValueError("train_head=false: this task puts no head on a model: leave it out")
        for parameter in heads:
            parameter.requires_grad_(False)
    return model


def _placed(
    base: PreTrainedModel, plan: Plan, recipe: Recipe, labels: int | None
) -> PeftModel | PreTrainedModel:
    if plan.config is None:
        if recipe.from_adapter is not None:
            raise ValueError(f"--from needs a method with an adapter, which {recipe.method} is not")
        assert plan.trainable is not None
        select_trainable(base, plan.trainable)
        return base
    config = plan.config
    config.task_type = task_type(base.config, classifies=labels is not None)
    if labels is not None and hasattr(base, "classification_head"):
        # BART's head goes by a name that PEFT does not know as one, and would stay as it was drawn.
        config.modules_to_save = ["classification_head"]
    if recipe.from_adapter is None:
        return get_peft_model(base, config)
    assert isinstance(config, LoradaConfig)
    return _start_from(base, config, recipe)


def task_type(model_config: Any, *, classifies: bool) -> str:
    """What PEFT calls the task of a model with a head for classes or scores, or without one."""
    generates = "SEQ_2_SEQ_LM" if model_config.is_encoder_decoder else "CAUSAL_LM"
    return "SEQ_CLS" if classifies else generates


def _start_from(base: PreTrainedModel, config: LoradaConfig, recipe: Recipe) -> PeftModel:
    """A stack whose parts are those of a saved adapter, and the method's for every other kind."""
    folder = Path(str(recipe.from_adapter))
    saved, weights = adapter_config(folder), adapter_weights(folder)
    old = saved if isinstance(saved, LoradaConfig) else LoradaConfig(parts=[saved])
    kinds = {part.peft_type for part in old.parts}
    for name in recipe.parts:
        if any(isinstance(part, load(PARTS[name])) for part in old.parts):
            raise ValueError(
                f"{folder} brings its own {name} part as it was trained: leave out the settings "
                f"{', '.join(f'{name}.{key}' for key in recipe.parts[name])}"
            )
    old.parts = [*(part for part in config.parts if part.peft_type not in kinds), *old.parts]
    old.task_type, old.inference_mode = config.task_type, False
    old.base_model_name_or_path = None
    model = get_peft_model(base, old)
    _refuse_missing(model, weights, folder, kinds)
    set_peft_model_state_dict(model, weights)
    logger.warning("%d tensors taken over from %s", len(weights), folder)
    return model


def _refuse_missing(
    model: PeftModel, weights: dict[str, torch.Tensor], folder: Path, kinds: set[Any] | None = None
) -> None:
    """Refuse a file that lacks tensors of the parts it should bring; None for all parts."""
    missing = get_peft_model_state_dict(model).keys() - weights.keys()
    if kinds is not None:
        tuners = [PEFT_TYPE_TO_TUNER_MAPPING[kind] for kind in kinds]
        missing -= set.intersection(*(keys_of_others(model, tuner, missing) for tuner in tuners))
    if missing:
        raise ValueError(
            f"{folder} has no {min(missing)}: it is incomplete, or was saved for another "
            "architecture"
        )


def adapter_config(folder: Path) -> PeftConfig:
    """The config of a saved adapter.

    Raises:
        ValueError: for a folder that is missing or empty, or a config that is not JSON or of a
            type that nobody registered.
    """
    if not folder.is_dir():
        raise ValueError(f"no adapter folder at {folder}")
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {ADAPTER_CONFIG}: not a PEFT adapter")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    kind = data.get("peft_type") if isinstance(data, dict) else None
    if kind not in known_types():
        newer = newer_version(data.get("lorada_version")) if isinstance(data, dict) else ""
        raise ValueError(
            f"{path} has peft_type={kind!r}, which neither peft nor lorada knows"
            + (f" ({newer})" if newer else "")
        )
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} has a value of the wrong type: {error}") from error


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter.

    Raises:
        ValueError: for a file that is missing, empty, truncated or not safetensors.
    """
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
    adapter_config(folder)
    weights = adapter_weights(folder)
    try:
        model = PeftModel.from_pretrained(base, str(folder))
    except TypeError as error:
        raise ValueError(f"{folder} has a setting of the wrong type: {error}") from error
    _refuse_missing(model, weights, folder)
    return model.eval()


def fold_prefixes(model: PeftModel) -> None:
    """Keep of a prefix what attention sees, and not the network that made it in training."""
    for part in model.peft_config["default"].parts:
        if isinstance(part, PrefixConfig) and part.projection is not None:
            model.fold()


def base_parameters(base: nn.Module) -> int:
    """N: the parameters of a model before a method is placed on it, without a task head."""
    return sum(p.numel() for name, p in base.named_parameters() if not in_head(name))


def parameter_counts(model: nn.Module, total: int) -> dict[str, Any]:
    """How many parameters a model trains, against the ``total`` of its base.

    Returns:
        ``trainable`` (p), ``total`` (N), ``percent`` (100 p/N) and ``percent_of_all``
        (100 p/(N+p), PEFT's own convention); without a task head.
    """
    trainable = sum(
        p.numel() for name, p in model.named_parameters() if p.requires_grad and not in_head(name)
    )
    added = trainable if isinstance(model, PeftModel) else 0
    return {
        "trainable": trainable,
        "total": total,
        "percent": 100 * trainable / total,
        "percent_of_all": 100 * trainable / (total + added),
    }
