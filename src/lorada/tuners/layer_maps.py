"""``layer_maps``: the maps of a model on a batch, their negative ratio and their effect size.

    negative ratio = share of entries below 0 among the visible pairs that the map covers
    effect size    = ‖tile(Attn_s) V‖ / ‖Attn V‖ over the real tokens of the batch (Frobenius)

Figures 1 and 3 of the paper show maps and negative ratios. The effect size shows whether a map
changes the output at all; at the paper's scale for LLMs it does not (docs/paper.md).

Shapes: B batch, H query heads, T queries, K key slots.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorada.attention.call import AttentionCall
from lorada.attention.dense_map import covered_pairs, expand_map
from lorada.attention.distance_map import DistanceMap, VisiblePairs
from lorada.attention.interface import dispatches
from lorada.attention.observation import Observation, observe
from lorada.attention.prefix import prefix_scores
from lorada.functional.precision import wide


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one attention layer on one batch.

    Attributes:
        layer: name of the attention module.
        softmax: Attn, (B, H, T, K). With a prefix a row sums to less than 1.
        map: tile(Attn_s), masked as the layer uses it, (B, H, T, K).
        fused: Attn^ = Attn + tile(Attn_s), for ¬N the softmax with the map inside, (B, H, T, K).
        negative_ratio: share of entries of ``fused`` below 0 by head, (H,).
        map_negative_ratio: the same of ``map``, (H,).
        effect_size: ‖tile(Attn_s) V‖ / ‖Attn V‖.
    """

    layer: str
    softmax: Tensor
    map: Tensor
    fused: Tensor
    negative_ratio: Tensor
    map_negative_ratio: Tensor
    effect_size: float


def layer_maps(model: nn.Module, batch: Mapping[str, Tensor]) -> list[LayerMaps]:
    """Run a model once and return the softmax map, the LMAM map and their sum of each layer.

    ``batch`` has the keyword arguments of the model's forward.

    Raises:
        ValueError: if no map was active.
    """
    names = {module: name for name, module in model.named_modules()}
    layers: list[LayerMaps] = []

    def keep(seen: Observation) -> None:
        if seen.call.module in names:
            layers.append(maps_of_call(names[seen.call.module], seen))

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), observe(keep):
            model(**batch)
    finally:
        model.train(was_training)
    if not layers:
        raise ValueError("this model has no active map: load or enable an adapter with LmamConfig")
    return layers


def maps_of_call(name: str, seen: Observation) -> LayerMaps:
    """The maps of one attention call."""
    call, attention_map = seen.call, seen.attention_map
    softmax, scores, attend = _softmax(call)
    visible = _visible(call)
    table = seen.positions.table(call.shape.queries, call.shape.keys, scores.device)
    if isinstance(attention_map, DistanceMap):
        map_ = attention_map.weights(VisiblePairs.read(call), call.value)
        pairs = visible & table.real_queries()[:, None, :, None]
    else:
        map_ = expand_map(attention_map, seen.positions, call.shape)
        pairs = visible & covered_pairs(table, attention_map.length)[:, None]
    map_ = map_.expand_as(softmax)
    inside_softmax = attention_map.ablation == "no_negative"
    fused = attend(scores + map_) if inside_softmax else softmax + map_
    pairs = pairs.expand_as(fused)
    return LayerMaps(
        name,
        softmax,
        map_,
        fused,
        _share_below_zero(fused, pairs),
        _share_below_zero(map_, pairs),
        ratio_of([squared_norms(seen)]),
    )


def softmax_of_call(call: AttentionCall) -> Tensor:
    """Attn of one call, (B, H, T, K), without any map; with a prefix a row sums to less than 1.

    Raises:
        ValueError: for a module that computes attention itself.
    """
    return _softmax(call)[0]


def _softmax(call: AttentionCall) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The softmax map, the scores before it, and the softmax itself.

    A kernel does not return its softmax map, so it is computed here by its definition.
    """
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


def squared_norms(seen: Observation) -> tuple[Tensor, Tensor]:
    """‖tile(Attn_s) V‖² and ‖Attn V‖² of one attention call, over its real tokens."""
    shape = seen.call.shape
    table = seen.positions.table(shape.queries, shape.keys, seen.output.device)
    real = table.real_queries()[..., None, None]
    return (seen.term * real).square().sum(), (wide(seen.output) * real).square().sum()


def ratio_of(squares: list[tuple[Tensor, Tensor]]) -> float:
    """The effect size from the squared norms of all calls."""
    term, output = (torch.stack(norms).sum().sqrt() for norms in zip(*squares, strict=True))
    return float(term / output.clamp(min=1e-12))
