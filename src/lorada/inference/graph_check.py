"""Compares an exported graph with the model in torch, on padded batches of mixed length.

A decoder reads the beginning of each text at once and its last tokens one by one, so the check
covers prompts and decoding. Numbers are compared where there are tokens, not at padding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from lorada.inference.graph_inputs import Inputs, empty, part, text_inputs
from lorada.inference.load import Run
from lorada.runs.data.dataset import context_of
from lorada.tuners.lmam import map_configs
from lorada.tuners.switching import switched_off

STEPS = 3  # tokens of each text that a decoder reads one by one
SHORT = 12  # tokens of texts that are short
BEYOND = 8  # tokens of the longest text beyond the longest map
# The largest difference, as a share of the largest logit. In fp32 the sums of both have errors of
# some 1e-6 of that; a part that is missing or in the wrong place is off by its own effect.
TOLERANCE = 1e-4

# Runs a model on inputs and a cache (None to begin); returns logits and the cache behind them.
Call = Callable[[Inputs, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Check:
    """How the numbers of a graph compare with torch's.

    Attributes:
        difference: the largest difference of two logits.
        effect: the largest change of a logit by the adapter; None for a model without one.
        largest: the largest logit.
    """

    difference: float
    effect: float | None
    largest: float

    @property
    def passed(self) -> bool:
        """Whether the difference is rounding; a NaN is none."""
        return self.difference <= TOLERANCE * self.largest


@dataclass(frozen=True)
class Expected:
    """What a model computes in torch.

    Attributes:
        texts: the inputs of each batch.
        logits: those of each batch where there are tokens.
        effect: as in ``Check``.
    """

    texts: list[Inputs]
    logits: list[Tensor]
    effect: float | None


def expected_of(run: Run, *, cached: bool) -> Expected:
    """The logits of a run's model on texts of random tokens."""
    model: Any = run.model
    base = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    texts = [text_inputs(base, *text, cached=cached) for text in _texts(run, cached=cached)]

    def call(inputs: Inputs, cache: Any) -> tuple[Tensor, Any]:
        after = {"cache": cache, "use_cache": True} if cached else {}
        output = model(**inputs, **after)
        return output.logits, output.cache if cached else None

    def logits() -> list[Tensor]:
        with torch.no_grad():
            return [_logits(call, inputs, None, cached=cached) for inputs in texts]

    found = logits()
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    if not layers:
        return Expected(texts, found, None)
    with switched_off(layers):
        effect = max(map(_difference, found, logits()))
    return Expected(texts, found, effect)


def compare(graph: Any, expected: Expected, cache: Any) -> Check:
    """Run a graph on the same texts.

    Args:
        graph: transformers' ``ExportedModel``.
        expected: what it has to compute.
        cache: the cache of the example that it was traced with; None for a graph without one.
    """

    def call(inputs: Inputs, before: Any) -> tuple[Tensor, Any]:
        output = graph(**inputs, **({} if before is None else {"cache": before}))
        return output.logits, None if before is None else output.cache

    found = []
    for inputs in expected.texts:
        first = None if cache is None else empty(cache, len(inputs["input_ids"]))
        found.append(_logits(call, inputs, first, cached=cache is not None))
    return Check(
        max(map(_difference, found, expected.logits)),
        expected.effect,
        max(float(x.abs().max()) for x in expected.logits),
    )


def _logits(call: Call, inputs: Inputs, cache: Any, *, cached: bool) -> Tensor:
    """The logits of texts that are read whole, or at first in part and then token by token."""
    if not cached:
        return call(inputs, None)[0].float()
    mask = inputs["attention_mask"]
    tokens = mask.shape[1]
    first = max(tokens - STEPS, 1)
    ends = [0, first, *range(first + 1, tokens + 1)]
    found = []
    for start, stop in pairwise(ends):
        logits, cache = call(part(inputs, start, stop), cache)
        found.append(logits.float())
    return torch.cat(found, 1)[mask.bool()]


def _texts(run: Run, *, cached: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of random tokens and their masks: short, as long as the longest map, and longer."""
    special = {*run.tokenizer.all_special_ids, run.model.config.pad_token_id}
    known = min(len(run.tokenizer), run.model.config.get_text_config().vocab_size)
    tokens = torch.tensor([i for i in range(known) if i not in special])
    generator = torch.Generator().manual_seed(0)
    most = context_of(run.model.config) or 2**30
    length = max([SHORT, *(config.length for config in map_configs(run.model))])
    sizes = [(3, min(SHORT, most)), (1, min(length, most)), (2, min(length + BEYOND, most)), (1, 1)]
    for number, (batch, count) in enumerate(sizes):
        chosen = torch.randint(len(tokens), (batch, count), generator=generator)
        mask = torch.ones(batch, count, dtype=torch.long)
        # A decoder's prompts must end alike; texts for a head are padded on either side.
        for row in range(batch - 1):
            pads = max(1, count * (row + 1) // (batch + 1))
            side = slice(0, pads) if cached or number else slice(count - pads, count)
            mask[row, side] = 0
        pad = run.tokenizer.pad_token_id
        yield torch.where(mask.bool(), tokens[chosen], 0 if pad is None else pad), mask


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())
