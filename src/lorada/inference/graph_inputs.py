"""The inputs of an exported graph: an example to trace the model with, and its free sizes.

A decoder becomes one graph that reads new tokens behind a cache of any length. The cache may be
empty, so the same graph reads prompts and continues them. A model with a head reads whole texts.

    input_ids       (batch, tokens)        the new tokens
    attention_mask  (batch, past + tokens) 1 for a token and 0 for padding, those of the cache too
    position_ids    (batch, tokens)        for each new token, the number of tokens before it
    cache           keys and values (batch, heads, past, width) of each layer

Without a cache, ``past`` is 0 and there are no ``position_ids``.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

Inputs = dict[str, Any]


# Sizes of the example, all different: a trace takes equal sizes for one. The past is shorter than
# any sliding window, which would cut it.
BATCH, PAST, TOKENS = 2, 3, 5


def example_inputs(model: PreTrainedModel, token: int, *, cached: bool) -> Inputs:
    """Inputs to trace the model with, texts of one ``token``; the first is padded on the left."""
    ids = torch.full((BATCH, PAST + TOKENS), token)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    inputs = text_inputs(model, ids, mask, cached=cached)
    if not cached:
        return inputs
    with torch.no_grad():
        cache: Cache = model(**part(inputs, 0, PAST), use_cache=True).cache
    return {**part(inputs, PAST, PAST + TOKENS), "cache": plain(cache)}


def text_inputs(model: PreTrainedModel, ids: Tensor, mask: Tensor, *, cached: bool) -> Inputs:
    """The inputs of whole texts; with a cache only if the model may read them in parts."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if cached and "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return inputs


def part(inputs: Inputs, start: int, stop: int) -> Inputs:
    """The tokens from ``start`` to ``stop`` of whole texts, behind those before them."""
    # Contiguous: a trace would take the strides of a slice for a condition on the sizes.
    return {
        name: x[:, (0 if name == "attention_mask" else start) : stop].contiguous()
        for name, x in inputs.items()
    }


def plain(cache: Cache) -> DynamicCache:
    """A cache whose layers keep all tokens; under a sliding window the mask hides them."""
    copy = DynamicCache()
    for number, layer in enumerate(cache.layers):
        copy.update(layer.keys, layer.values, number)
    return copy


def empty(cache: Cache, batch: int) -> DynamicCache:
    """A cache without tokens, of the layers of another one."""
    copy = DynamicCache()
    for number, layer in enumerate(cache.layers):
        shape = (batch, layer.keys.shape[1], 0, layer.keys.shape[3])
        values = layer.values.new_zeros(*shape[:3], layer.values.shape[3])
        copy.update(layer.keys.new_zeros(shape), values, number)
    return copy


def free_sizes(inputs: Inputs) -> dict[str, Any]:
    """The axes of each input whose size may differ from the example's, for ``torch.export``."""
    free = torch.export.Dim.DYNAMIC  # not AUTO: an error if the model would serve one size only
    sizes: dict[str, Any] = {name: {0: free, 1: free} for name in inputs}
    if "cache" in inputs:
        sizes["cache"] = [{0: free, 2: free}] * (2 * len(inputs["cache"].layers))
    return sizes
