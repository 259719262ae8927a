"""``explain``: what the active adapter of a model does to a batch, layer by layer, head by head.

The model reads the batch with its adapter, without it, and with each part of it alone. The
difference shows what the adapter does, whatever its method.

    moved         = ‖O_with − O_without‖ / ‖O_without‖ of a head's output over the real tokens
    change        = ‖h_with − h_without‖ / ‖h_without‖ of the hidden states after a layer
    effect of map = ‖tile(Attn_s) V‖ / ‖Attn V‖ of a head
    (Frobenius norms)

Shapes: L layers, B samples, H query heads, T queries, K keys, V words or classes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorada.attention.call import AttentionCall
from lorada.attention.dense_map import covered_pairs, expand_map
from lorada.attention.interface import watch
from lorada.attention.modules import CROSS_ATTENTION
from lorada.attention.observation import Observation, observe, ratio_of, squared_norms
from lorada.explore.explained import KEPT, ExplainedLayer, Explanation
from lorada.functional.precision import wide
from lorada.tuners.switching import (
    active_parts,
    has_trained_copies,
    without_adapter,
    without_parts,
)


@torch.no_grad()
def explain(model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any = None) -> Explanation:
    """Let a model read a batch, in eager attention, with its adapter, without it, each part alone.

    Args:
        model: a model with an active adapter of any method.
        batch: keyword arguments of its forward, ``input_ids`` among them.
        tokenizer: that of the model, for the texts on the page.

    Raises:
        ValueError: if no adapter is active, or for a model that computes attention itself.
    """
    parts = active_parts(model)
    if not parts:
        raise ValueError("this model has no active adapter: load or enable one")
    names = {
        module: name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] not in CROSS_ATTENTION
    }
    was_training = model.training
    model.eval()
    try:
        with_all = _read(model, batch, names)
        with without_adapter(model, parts):
            without = _read(model, batch, names)
        alone = {}
        for name in parts:
            with without_parts(parts, [other for other in parts if other != name]):
                alone[name] = with_all if len(parts) == 1 else _read(model, batch, {})
        head = None
        if has_trained_copies(model):
            of_classes = with_all.logits is not None and with_all.logits.dim() == 2
            head = "head" if of_classes else "copies"
            with without_parts(parts, parts):
                alone[head] = _read(model, batch, {})
    finally:
        model.train(was_training)
    mask = batch.get("attention_mask")
    real = (torch.ones_like(batch["input_ids"]) if mask is None else mask).bool()
    layers = [
        _layer(names[module], with_all, without, module, real)
        for module in with_all.calls
        if module in without.calls
    ]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} computes attention itself, so its attention cannot be shown: "
            "use a model that calls transformers' attention interface"
        )
    reads = {"with": with_all, "without": without, **alone}
    return Explanation(
        layers,
        list(parts),
        {name: _change(read, without, real) for name, read in {"all": with_all, **alone}.items()},
        _probabilities(reads, real),
        batch["input_ids"].cpu(),
        real.cpu(),
        tokenizer,
        head,
    )


@dataclass
class _Reading:
    """One forward pass.

    Attributes:
        calls: attention module → its call, output (B, T, H, D) and softmax map (B, H, T, K).
        maps: attention module → what its map did.
        hidden: the hidden states after each layer, (B, T, ·).
        logits: (B, T, V) or (B, V); None if the model has none.
    """

    calls: dict[nn.Module, tuple[AttentionCall, Tensor, Tensor]] = field(default_factory=dict)
    maps: dict[nn.Module, Observation] = field(default_factory=dict)
    hidden: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None


def _read(
    model: nn.Module, batch: Mapping[str, Tensor], watched: Mapping[nn.Module, str]
) -> _Reading:
    """Let a model read a batch, and keep the attention calls of some modules."""
    found = _Reading()

    def keep(call: AttentionCall, output: Tensor, weights: Tensor) -> None:
        if call.module in watched:
            found.calls[call.module] = (call, output, weights)

    def keep_map(seen: Observation) -> None:
        if seen.call.module in watched:
            found.maps[seen.call.module] = seen

    with _eager_attention(model), watch(keep), observe(keep_map):
        out = model(**batch, output_hidden_states=True)
    states = out.get("hidden_states") or out.get("encoder_hidden_states") or ()
    found.hidden = list(states[1:])
    found.logits = out.get("logits")
    return found


@contextmanager
def _eager_attention(model: nn.Module) -> Iterator[None]:
    """Let a model compute attention eagerly in a ``with`` block: only that returns its softmax."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    known = {id(c): c for c in configs if hasattr(c, "_attn_implementation_internal")}
    before = [(config, config._attn_implementation_internal) for config in known.values()]
    for config, _ in before:
        config._attn_implementation_internal = "eager"
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def _layer(
    name: str, with_all: _Reading, without: _Reading, module: nn.Module, real: Tensor
) -> ExplainedLayer:
    call, output, weights = with_all.calls[module]
    call_off, output_off, weights_off = without.calls[module]
    seen = with_all.maps.get(module)
    found = _maps_of_call(call, weights, seen)
    assert found["softmax"] is not None
    real = real if real.shape[1] == output.shape[1] else real.new_ones(output.shape[:2])
    found["effect"] = None
    if seen is not None:
        norms = _by_head(seen.term, real), _by_head(seen.output, real)
        found["effect"] = norms[0] / norms[1].clamp(min=1e-12)
    moved = _by_head(output.float() - output_off.float(), real)
    found["moved"] = moved / _by_head(output_off, real).clamp(min=1e-12)
    found["without"] = _maps_of_call(call_off, weights_off, None)["softmax"]
    found["attends"] = _attends(found["softmax"], real)
    tensors: dict[str, Any] = {
        key: None if tensor is None else tensor.cpu() for key, tensor in found.items()
    }
    return ExplainedLayer(
        layer=name,
        inside=seen is not None and seen.attention_map.ablation == "no_negative",
        effect_size=None if seen is None else ratio_of([squared_norms(seen)]),
        **tensors,
    )


def _maps_of_call(
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
    pairs = visible & covered_pairs(table, attention_map.length)[:, None]
    map_ = expand_map(attention_map, seen.positions, call.shape).expand_as(softmax)
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


def _by_head(states: Tensor, real: Tensor) -> Tensor:
    """The norm of each head's part (H,) of states (B, T, H, D), over the real tokens."""
    return (states.float() * real[..., None, None]).square().sum((0, 1, 3)).sqrt()


def _attends(softmax: Tensor, real: Tensor) -> Tensor:
    """The shares of ``KEPT`` in a softmax map (B, H, T, K), by head, (4, H)."""
    count = real.shape[1]
    if softmax.shape[-2:] != (count, count):
        return softmax.new_zeros(len(KEPT), softmax.shape[1])
    number = real.long().cumsum(-1) - 1
    query, key = number[:, :, None], number[:, None, :]
    itself, previous = query == key, query == key + 1
    first = (key == 0) & ~itself & ~previous
    both = real[:, :, None] & real[:, None, :]
    kinds = torch.stack([first, previous, itself, ~(first | previous | itself)]) & both
    shares = torch.einsum("bhqk,cbqk->ch", softmax, kinds.to(softmax.dtype))
    return shares / real.sum()


def _change(read: _Reading, without: _Reading, real: Tensor) -> Tensor:
    """How far each layer's hidden states are from those without the adapter, (L,)."""
    found = []
    for on, off in zip(read.hidden, without.hidden, strict=True):
        seen = real if real.shape[1] == on.shape[1] else real.new_ones(on.shape[:2])
        change, size = ((x.float() * seen[..., None]).norm() for x in (on - off, off))
        found.append(change / size.clamp(min=1e-12))
    return torch.stack(found).cpu() if found else torch.zeros(0)


def _probabilities(reads: Mapping[str, _Reading], real: Tensor) -> dict[str, Tensor]:
    """The probabilities of the next token behind the last real one, or of the classes."""
    found = {}
    for name, read in reads.items():
        if read.logits is None:
            return {}
        logits = read.logits
        if logits.dim() == 3:
            places = torch.arange(real.shape[1], device=real.device)
            last = (places * real).argmax(-1) if logits.shape[1] == real.shape[1] else -1
            logits = logits[torch.arange(len(logits), device=logits.device), last]
        if logits.shape[-1] == 1:  # a number, which is no class
            return {}
        found[name] = logits.float().softmax(-1).cpu()
    return found
