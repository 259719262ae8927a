"""The prefixes that the tests of ``PrefixConfig`` as an adapter run through."""

import pytest
import torch
from conftest import TINY
from peft import PeftModel, get_peft_model
from stacks import lora, randomise
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorada import LmamConfig, LoradaConfig, PrefixConfig
from lorada.tuners.prefix import PrefixLayer, PrefixNetwork

LENGTH, WIDTH = 3, 5  # of the prefix in tokens, of the network that it comes out of
PREFIXES = {
    "flat": {},
    "network": {"projection": WIDTH},
}
PARTS = ("alone", "in a stack")


def config_of(prefix: str, part: str, name: str, **options):
    config = PrefixConfig(length=LENGTH, **PREFIXES[prefix], **options)
    if part == "alone":
        return config
    return LoradaConfig(parts=[config, LmamConfig(rank=2, length=6), lora(name)])


def trained(prefix: str, part: str = "alone", name: str = "llama", **options) -> PeftModel:
    """A tiny model whose prefix has moved from its start."""
    model = get_peft_model(TINY[name](), config_of(prefix, part, name, **options)).eval()
    randomise(model)
    return model


def layers(model: nn.Module) -> list[PrefixLayer]:
    return [m for m in model.modules() if isinstance(m, PrefixLayer)]


def networks(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, PrefixNetwork)]


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in trainable(model).values())


def on_meta(model: type[PreTrainedModel], config, **options) -> PeftModel:
    with torch.device("meta"):
        return get_peft_model(model(config), PrefixConfig(**options))


every_prefix = pytest.mark.parametrize("prefix", PREFIXES)
every_part = pytest.mark.parametrize("part", PARTS)
