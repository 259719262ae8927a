"""The inputs of an exported graph, and the comparison of its numbers with those of torch.

A decoder becomes one graph that reads new tokens behind a cache of any length, empty at first. A
model with a head reads whole texts; its ``past`` is 0, and it has no cache and no ``position_ids``.

    input_ids       (batch, tokens)        the new tokens
    attention_mask  (batch, past + tokens) 1 for a token and 0 for padding, those of the cache too
    position_ids    (batch, tokens)        for each new token, the number of tokens before it
    cache           keys and values (batch, heads, past, width) of each layer

Padded batches of mixed length are compared. A decoder reads the beginning of each text at once and
its last tokens one by one. Numbers are compared where there are tokens, not at padding.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from lorada.inference.load import Run
from lorada.runs.data.dataset import context_of
from lorada.tuners.lmam import map_configs
from lorada.tuners.switching import switched_off

Inputs = dict[str, Any]

PAST = 2  # tokens in the cache of the traced example: no sliding window cuts them
STEPS = 3  # tokens of each text that a decoder reads one by one
SHORT = 12  # tokens of texts that are short
BEYOND = 8  # tokens of the longest text beyond the longest map


# The inputs of each batch, its logits where there are tokens, and the largest change of a logit by
# the adapter, None for a model without one.
Expected = tuple[list[Inputs], list[Tensor], float | None]


def expected_of(run: Run, *, cached: bool) -> Expected:
    """What a run's model computes in torch from texts of random tokens."""
    model: Any = run.model
    base = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    numbered = cached and "position_ids" in inspect.signature(base.forward).parameters
    texts = []
    for ids, mask in _texts(run, cached=cached):
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if numbered else {}
        texts.append({"input_ids": ids, "attention_mask": mask, **positions})
    call = partial(model, use_cache=True) if cached else model

    def logits() -> list[Tensor]:
        with torch.no_grad():
            return [_logits(call, inputs, None, cached=cached) for inputs in texts]

    found = logits()
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    if not layers:
        return texts, found, None
    with switched_off(layers):
        return texts, found, _difference(found, logits())


def example_inputs(model: PreTrainedModel, text: Inputs, *, cached: bool) -> Inputs:
    """Inputs to trace a model with: a text, for a decoder the last tokens of it behind a cache.

    All sizes differ from each other, since a trace takes equal ones for one.
    """
    if not cached:
        return text
    with torch.no_grad():
        cache = model(**_part(text, 0, PAST), use_cache=True).cache
    # Its layers keep all tokens; under a sliding window the mask hides them.
    plain = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
    return {**_part(text, PAST, SHORT), "cache": plain}


def difference_of(
    folder: Path, texts: list[Inputs], expected: list[Tensor], cache: Any, **options: Any
) -> float:
    """The largest difference of two logits, one of a graph in onnxruntime and one of torch.

    Args:
        folder: where the graph is.
        texts: the inputs of each batch.
        expected: their logits in torch.
        cache: the cache of the example that it was traced with; None for a graph without one.
        options: of transformers' ``from_pretrained``.
    """
    import onnxruntime
    from transformers.exporters import ExportedModel

    session = onnxruntime.SessionOptions()
    session.log_severity_level = 3  # errors; it warns of what it keeps
    graph = ExportedModel.from_pretrained(str(folder), session_options=session, **options)
    found = []
    for inputs in texts:
        empty = None if cache is None else _empty(cache, len(inputs["input_ids"]))
        found.append(_logits(graph, inputs, empty, cached=cache is not None))
    return _difference(found, expected)


def _part(inputs: Inputs, start: int, stop: int) -> Inputs:
    """The tokens from ``start`` to ``stop`` of whole texts, behind those before them."""
    # Contiguous: a trace would take the strides of a slice for a condition on the sizes.
    return {
        name: x[:, (0 if name == "attention_mask" else start) : stop].contiguous()
        for name, x in inputs.items()
    }


def _empty(cache: Cache, batch: int) -> DynamicCache:
    """A cache without tokens, of the layers of another one."""
    pairs = ((layer.keys, layer.values) for layer in cache.layers)
    return DynamicCache([
        tuple(x.new_zeros(batch, x.shape[1], 0, x.shape[3]) for x in pair) for pair in pairs
    ])  # fmt: skip


def _logits(call: Callable[..., Any], inputs: Inputs, cache: Any, *, cached: bool) -> Tensor:
    """The logits of texts that are read whole, or at first in part and then token by token."""
    if not cached:
        whole: Tensor = call(**inputs).logits
        return whole.float()
    mask = inputs["attention_mask"]
    tokens = mask.shape[1]
    first = max(tokens - STEPS, 1)
    found = []
    for start, stop in pairwise([0, first, *range(first + 1, tokens + 1)]):
        output = call(**_part(inputs, start, stop), cache=cache)
        found.append(output.logits.float())
        cache = output.cache
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
    pad = run.tokenizer.pad_token_id or 0
    for number, (batch, count) in enumerate(sizes):
        chosen = torch.randint(len(tokens), (batch, count), generator=generator)
        pads = count * torch.arange(batch)[:, None] // (batch + 1)  # of each row
        mask = (torch.arange(count) >= pads).long()  # a decoder's prompts must end alike
        if not cached and number == 0:  # texts for a head are padded on either side
            mask = mask.flip(1)
        yield torch.where(mask.bool(), tokens[chosen], pad), mask


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    each = [(one - other).abs().max() for one, other in zip(found, expected, strict=True)]
    return float(torch.stack(each).max())  # a NaN of any batch stays
