"""What works on which architecture, each cell against the plain run; docs/architectures.md.

A cell that is not run has its reason in ``REASONS``, and the page is made of both: after a change,
``LORADA_WRITE_DOCS=1 pytest tests/test_architectures.py -k page`` writes it anew.
"""

import os
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, ENCODER_DECODERS, inputs, logits
from conftest import assert_close
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from lorada import BottleneckConfig, LmamConfig
from lorada.attention import Observation, dispatches, observe
from lorada.functional import mask_map
from lorada.hooked import hooks_for
from lorada.tuners.lmam import LmamLayer

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
LENGTH = 5  # n, shorter than the samples
NEW = 4  # tokens to generate
ENCODERS = ("bert", "roberta", "xlm_roberta", "distilbert", "modernbert", "deberta", "deberta_v2")
HOOKED = ("deberta", "deberta_v2", "falcon", "falcon_alibi", "bloom")


def adapted(name: str, **changes) -> PeftModel:
    """A tiny model with a random map, the same for the same architecture."""
    base = ARCHITECTURES[name](**changes)
    torch.manual_seed(1)
    config = LmamConfig(length=LENGTH, inverse_scale=2.0, init_weights=False)
    return get_peft_model(base, config).eval()


def batch_of(name: str) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return inputs(name)


def real_rows(name: str, batch: dict[str, Tensor], values: Tensor) -> Tensor:
    """The rows of the logits that belong to tokens."""
    if name in (*ENCODER_DECODERS, "vit"):
        return values
    return values[batch["attention_mask"].bool()]


def literal_terms(model: PeftModel, seen: list[Observation]) -> list[Tensor]:
    """The map of each call on its whole, unpadded sequence, written out and multiplied."""
    terms = []
    for call in seen:
        layer = call.module.lmam
        assert isinstance(layer, LmamLayer)
        w_a, w_b = layer.lora_w_a["default"], layer.lora_w_b["default"]
        pe = 10000.0 ** (-2.0 * torch.arange(LENGTH) / LENGTH)
        low_rank = (w_a + pe[:, None]) @ (w_b + pe) / 2.0
        causal = "decoder" in call.name if hasattr(call, "name") else call.view.causal
        low_rank = mask_map(low_rank, causal, call.view.window)
        value = call.view.value
        size = value.shape[2]
        full = torch.zeros(len(low_rank), size, size)
        full[:, :LENGTH, :LENGTH] = low_rank[:, :size, :size]
        value = value.repeat_interleave(len(low_rank) // value.shape[1], 1)
        terms.append((full @ value).transpose(1, 2))
    return terms
