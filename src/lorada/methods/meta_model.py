"""A model without weights, made from its config alone, to look at before a method is placed."""

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

_AUTO: dict[str, tuple[Any, Any]] = {
    "llama": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "bart": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
}
_BASE = (AutoModel, MODEL_MAPPING)


def meta_model(model_config: Any, attention: str | None = None) -> PreTrainedModel | None:
    """A model of this config on the meta device; None where transformers has no class for it."""
    for auto, known in (_AUTO.get(family_of(model_config), _BASE), _BASE):
        if type(model_config) not in known:
            continue  # otherwise the auto class would import every model before it fails
        config = copy.deepcopy(model_config)
        # A kernel that the config names matters only to the code that loads the model.
        config._attn_implementation = attention
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config)
        return model
    return None
