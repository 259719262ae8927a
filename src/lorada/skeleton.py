"""A model without weights, made from its config alone, to see what a method would meet in it."""

import copy
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from lorada.roles import family_of
from lorada.tuners.added import linear_maps

_AUTO = {"llama": AutoModelForCausalLM, "bart": AutoModelForSeq2SeqLM}


def skeleton(model_config: Any) -> PreTrainedModel | None:
    """A model of this config on the meta device; None where transformers has no code for it."""
    classes = [_AUTO.get(family_of(model_config), AutoModel), AutoModel]
    for auto in classes:
        config = copy.deepcopy(model_config)
        # Kernels that are not installed here are the business of who loads the model.
        config._attn_implementation = None
        try:
            with torch.device("meta"):
                model: PreTrainedModel = auto.from_config(config, trust_remote_code=False)
        except (ValueError, ImportError):
            continue
        return model
    return None


def linears_of(model_config: Any) -> list[str]:
    """Names, within a layer, of the linears of a model; none where it cannot be made."""
    model = skeleton(model_config)
    return [] if model is None else linear_maps(model)
