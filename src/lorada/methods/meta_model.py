"""A model without weights, made from its config alone, to look at before a method is placed."""

import copy
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from lorada.methods.matrix_names import family_of

_AUTO: dict[str, Any] = {"llama": AutoModelForCausalLM, "bart": AutoModelForSeq2SeqLM}


def meta_model(model_config: Any, attention: str | None = None) -> PreTrainedModel | None:
    """A model of this config on the meta device; None where transformers has no class for it."""
    for auto in (_AUTO.get(family_of(model_config), AutoModel), AutoModel):
        if type(model_config) not in auto._model_mapping:
            continue  # otherwise the auto class would import every model before it fails
        config = copy.deepcopy(model_config)
        # A kernel that the config names matters only to the code that loads the model.
        config._attn_implementation = attention
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config)
        return model
    return None
