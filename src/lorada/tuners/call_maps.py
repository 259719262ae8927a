"""The softmax map of one attention call, and with it the map of an adapter, as matrices.

A kernel returns neither, so both are computed here by their definitions, for ``explain``.

Shapes: B batch, H query heads, T queries, K key slots.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lorada.attention.call import AttentionCall
from lorada.attention.dense_map import covered_pairs, expand_map
from lorada.attention.distance_map import DistanceMap
from lorada.attention.interface import dispatches
from lorada.attention.observation import Observation
from lorada.attention.prefix import prefix_scores
from lorada.functional.precision import wide


def maps_of_call(call: AttentionCall, seen: Observation | None) -> dict[str, Tensor | None]:
    """The maps of one attention call, by the names that ``ExplainedLayer`` has for them.

    Args:
        call: the call.
        seen: what its map did; None without a map.

    Raises:
        ValueError: for a module that computes attention itself.
    """
    softmax, scores, attend = _softmax(call)
    if seen is None:
        nothing = dict.fromkeys(("map", "negative", "map_negative"))
        return {"softmax": softmax, "fused": softmax, **nothing}
    visible = _visible(call)
    attention_map = seen.attention_map
    table = seen.positions.table(call.shape.queries, call.shape.keys, scores.device)
    if isinstance(attention_map, DistanceMap):
        map_ = attention_map.weights(call)
        pairs = visible & table.real_queries()[:, None, :, None]
    else:
        map_ = expand_map(attention_map, seen.positions, call.shape)
        pairs = visible & covered_pairs(table, attention_map.length)[:, None]
    map_ = map_.expand_as(softmax)
    inside_softmax = attention_map.ablation == "no_negative"
    fused = attend(scores + map_) if inside_softmax else softmax + map_
    pairs = pairs.expand_as(fused)
    shares = {"negative": fused, "map_negative": map_}
    return {
        "softmax": softmax,
        "map": map_,
        "fused": fused,
        **{name: _share_below_zero(entries, pairs) for name, entries in shares.items()},
    }


def _softmax(call: AttentionCall) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The softmax map, the scores before it, and the softmax itself."""
    query, key = call.query, call.key
    if query is None or key is None or not dispatches(call.module):
        raise ValueError(
            f"{type(call.module).__name__} computes attention itself, so its softmax map cannot be "
            "shown: use a model that calls transformers' attention interface"
        )
    keys = key.repeat_interleave(call.shape.heads // key.shape[1], dim=1)
    scores = (wide(query) @ wide(keys).transpose(-1, -2)) * call.scaling
    cap = call.kwargs.get("softcap")
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = (scores + _bias(call)).masked_fill(~_visible(call), float("-inf"))
    before = prefix_scores(call.prefixes, query, key, call.scaling)
    sinks = call.kwargs.get("s_aux")  # a score of each head for no token at all
    if sinks is not None:
        shape = (*query.shape[:3], 1)
        before = torch.cat([wide(sinks)[:, None, None].expand(shape), before], -1)

    def attend(scores: Tensor) -> Tensor:
        """The softmax over prefixes and tokens, without the columns of the prefixes."""
        shares = torch.cat([before.to(scores.dtype), scores], -1).softmax(-1).nan_to_num()
        return shares[..., before.shape[-1] :]

    return attend(scores), scores, attend


def _bias(call: AttentionCall) -> Tensor | float:
    """What is added to the scores of visible keys: T5's positions, or an additive mask."""
    bias = call.kwargs.get("position_bias")
    by_position: Tensor | float = 0.0 if bias is None else bias
    mask = call.mask
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.is_floating_point():
        return by_position + wide(mask[..., : call.shape.keys])
    return by_position


def _share_below_zero(values: Tensor, pairs: Tensor) -> Tensor:
    """The share of entries below 0 among ``pairs`` (B, H, T, K), by head (H,)."""
    return ((values < 0) & pairs).sum((0, 2, 3)) / pairs.sum((0, 2, 3)).clamp(min=1)


def _visible(call: AttentionCall) -> Tensor:
    """(B or 1, 1, T, K) booleans: which keys each query attends to."""
    queries, keys, device = call.shape.queries, call.shape.keys, call.value.device
    everything = torch.ones(1, queries, keys, dtype=torch.bool, device=device)
    visible = everything if call.mask is None else call.visible_keys()
    if call.shape.causal and (call.mask is None or visible.shape[1] != queries):
        # A (B, K) mask shows only which keys are tokens.
        visible = visible & everything.tril(keys - queries)
    return visible.expand(-1, queries, -1)[:, None]
