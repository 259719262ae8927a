"""A model without weights, made from its config alone, to see what a method would meet in it."""

import copy
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from lorada.methods.matrix_names import family_of
from lorada.tuners.base.delta_layer import linear_maps

_AUTO: dict[str, tuple[Any, Any]] = {
    "llama": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "bart": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
}
_BASE = (AutoModel, MODEL_MAPPING)


def skeleton(model_config: Any) -> PreTrainedModel | None:
    """A model of this config on the meta device; None where transformers has no code for it."""
    for auto, known in (_AUTO.get(family_of(model_config), _BASE), _BASE):
        if type(model_config) not in known:
            continue  # the error of an auto class imports every model there is
        config = copy.deepcopy(model_config)
        # Kernels that are not installed here are the business of who loads the model.
        config._attn_implementation = None
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config)
        return model
    return None


def linears_of(model_config: Any) -> list[str]:
    """Names, within a layer, of the linears of a model; none where it cannot be made."""
    model = skeleton(model_config)
    return [] if model is None else linear_maps(model)
