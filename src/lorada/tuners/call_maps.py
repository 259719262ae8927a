"""The maps of one attention call as matrices: the softmax map, and with it the map of an adapter.

Shapes: B batch, H query heads, T queries, K key slots.
"""

import torch
from torch import Tensor

from lorada.attention.call import AttentionCall
from lorada.attention.dense_map import covered_pairs, expand_map
from lorada.attention.distance_map import DistanceMap
from lorada.attention.observation import Observation
from lorada.functional.precision import wide


def maps_of_call(
    call: AttentionCall, weights: Tensor, seen: Observation | None
) -> dict[str, Tensor | None]:
    """The maps of one attention call, by the names that ``ExplainedLayer`` has for them.

    Args:
        call: the call of an eager attention.
        weights: the softmax map (B, H, T, K) that it returned.
        seen: what its map did; None without a map.
    """
    visible = torch.ones_like(weights, dtype=torch.bool)
    if call.mask is not None:
        visible = call.visible_keys()[:, None].expand_as(weights)
    softmax = fused = wide(weights) * visible  # a row of padding sees nothing
    if seen is None:
        nothing = dict.fromkeys(("map", "negative", "map_negative"))
        return {"softmax": softmax, "fused": softmax, **nothing}
    attention_map = seen.attention_map
    table = seen.positions.table(call.shape.queries, call.shape.keys, weights.device)
    if isinstance(attention_map, DistanceMap):
        map_ = attention_map.weights(call)
        pairs = visible & table.real_queries()[:, None, :, None]
    else:
        map_ = expand_map(attention_map, seen.positions, call.shape)
        pairs = visible & covered_pairs(table, attention_map.length)[:, None]
    map_ = map_.expand_as(softmax)
    if attention_map.ablation == "no_negative":  # the map is in the scores of this softmax
        own = fused * (-map_).exp()
        elsewhere = 1 - fused.sum(-1, keepdim=True)  # of prefixes, and of scores for no token
        softmax = own / (own.sum(-1, keepdim=True) + elsewhere)
    else:
        fused = softmax + map_
    shares = {"negative": fused, "map_negative": map_}
    return {
        "softmax": softmax,
        "map": map_,
        "fused": fused,
        **{name: _share_below_zero(entries, pairs) for name, entries in shares.items()},
    }


def _share_below_zero(values: Tensor, pairs: Tensor) -> Tensor:
    """The share of entries below 0 among ``pairs`` (B, H, T, K), by head (H,)."""
    return ((values < 0) & pairs).sum((0, 2, 3)) / pairs.sum((0, 2, 3)).clamp(min=1)
