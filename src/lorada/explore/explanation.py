"""``explain``: what the active adapter of a model does to a batch, layer by layer, head by head.

The model reads the batch with its adapter, without it, and with each part of it alone. The
difference shows what the adapter does, whatever its method.

    moved         = ‖O_with − O_without‖ / ‖O_without‖ of a head's output over the real tokens
    change        = ‖h_with − h_without‖ / ‖h_without‖ of the hidden states after a layer
    effect of map = ‖tile(Attn_s) V‖ / ‖Attn V‖ of a head
    (Frobenius norms)

Shapes: L layers, B samples, H query heads, T queries, K keys, V words or classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorada.attention.call import AttentionCall
from lorada.attention.interface import CROSS_ATTENTION, watch
from lorada.attention.map_term import expand_map
from lorada.attention.observation import Observation, observe, ratio_of, squared_norms
from lorada.explore.explorer_page import explorer_page, pack
from lorada.functional.precision import wide
from lorada.support.error_messages import EXPLAINING, memory_remedy
from lorada.support.files import write_atomic
from lorada.support.task_head import SEVERAL_LABELS
from lorada.tuners.switch_parts import (
    Parts,
    active_parts,
    has_trained_copies,
    without_adapter,
    without_parts,
)

LIKELIEST = 10  # next tokens that are shown
KEPT = ("first", "previous", "itself", "other")  # what a query attends to


@dataclass(frozen=True)
class ExplainedLayer:
    """One attention layer on one batch.

    Attributes:
        layer: name of the attention module.
        softmax: Attn with the adapter, (B, H, T, K).
        without: Attn without the adapter, (B, H, T, K).
        fused: the softmax plus the map, for ¬N the softmax with the map inside, (B, H, T, K).
        moved: how far the adapter moves the output of each head, (H,).
        attends: the shares of ``softmax`` on ``KEPT``, (4, H), means over queries.
        map: tile(Attn_s), (B, H, T, K); None, as all below, if the layer has no active map.
        inside: whether the map is inside the softmax (¬N).
        negative: share of the visible entries of ``fused`` within the map below 0, (H,).
        map_negative: the same of ``map``, (H,).
        effect: effect of the map by head, (H,).
        relative_norm: that of all heads together.
    """

    layer: str
    softmax: Tensor
    without: Tensor
    fused: Tensor
    moved: Tensor
    attends: Tensor
    map: Tensor | None = None
    inside: bool = False
    negative: Tensor | None = None
    map_negative: Tensor | None = None
    effect: Tensor | None = None
    relative_norm: float | None = None


@dataclass(frozen=True)
class Explanation(Sequence[ExplainedLayer]):
    """What an adapter does to a batch: a sequence of its layers, and what becomes of them.

    Attributes:
        layers: the attention layers, in order.
        parts: the names of the adapter's parts.
        change: "all", each part alone and ``head`` → the change of the hidden states after each
            layer, (L,).
        probabilities: "with", "without", each part alone and ``head`` → of the next token, of the
            classes, or of each label by itself where a text may have several, (B, V); empty for a
            model that gives none.
        ids: the tokens that were read, (B, T).
        real: which of them are tokens and not padding, (B, T).
        tokenizer: makes texts of tokens on the page; None for their numbers.
        head: what the trained copies of modules are called that the adapter has besides its parts:
            "head" for a model of classes, else "copies". A part alone has them too; under this
            name they are without any part. None if the adapter has none.
    """

    layers: list[ExplainedLayer]
    parts: list[str]
    change: dict[str, Tensor]
    probabilities: dict[str, Tensor]
    ids: Tensor
    real: Tensor
    tokenizer: Any = None
    head: str | None = None

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        return self.layers[index]

    def to_html(self, path: str | Path) -> None:
        """Write a page for a browser that shows all of a batch of one sample, without a network."""
        if len(self.ids) > 1:  # numbers by head are of a whole batch together
            count = len(self.ids)
            raise ValueError(f"a page shows one sample, not {count}: explain them one by one")
        tokenizer = self.tokenizer

        def word_of(token: int) -> str:
            return str(token) if tokenizer is None else str(tokenizer.decode([token]))

        ids = self.ids[0][self.real[0]].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True) if tokenizer else ""
        run = {
            "name": "adapter", "method": ", ".join(self.parts), "parts": self.parts,
            "head": self.head, "shown": [shown(self, word_of)],
        }  # fmt: skip
        sentences = [{"tokens": [*map(word_of, ids)], "text": text}]
        write_atomic(Path(path), explorer_page({"sentences": sentences, "run": run}))


@torch.no_grad()
@memory_remedy(EXPLAINING)
def explain(model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any = None) -> Explanation:
    """Let a model read a batch, in eager attention, with its adapter, without it, each part alone.

    Args:
        model: a model with an active adapter of any method.
        batch: keyword arguments of its forward, ``input_ids`` among them.
        tokenizer: that of the model, for the texts on the page.

    A merged adapter is unmerged.

    Raises:
        ValueError: if no adapter is active, or two with a map are; or for a model that computes
            attention itself.
    """
    parts = _shown_parts(model)
    names = {
        module: name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] not in CROSS_ATTENTION
    }
    was_training = model.training
    model.eval()
    try:
        with_all = _read(model, batch, names)
        with without_adapter(model):
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
        _probabilities(reads, real, getattr(model, "config", None)),
        batch["input_ids"].cpu(),
        real.cpu(),
        tokenizer,
        head,
    )


def _shown_parts(model: nn.Module) -> Parts:
    """The active parts that are shown alone; a pooling stays on, as a trained head reads it."""
    parts = {name: own for name, own in active_parts(model).items() if name != "pooling"}
    if not parts:
        raise ValueError("this model has no active adapter: load or enable one")
    maps = {
        name for layer in parts.get("map", ())
        for name in {*layer.active_adapters} & {*layer._get_available_adapters()}
    }  # fmt: skip
    if len(maps) > 1:
        raise ValueError(f"{', '.join(sorted(maps))} all have a map: activate one at a time")
    return parts


@dataclass
class _Reading:
    """One forward pass."""

    # Attention module → its call, output (B, T, H, D) and softmax map (B, H, T, K).
    calls: dict[nn.Module, tuple[AttentionCall, Tensor, Tensor]] = field(default_factory=dict)
    maps: dict[nn.Module, Observation] = field(default_factory=dict)  # what its map did
    hidden: list[Tensor] = field(default_factory=list)  # states after each layer, (B, T, ·)
    logits: Tensor | None = None  # (B, T, V) or (B, V)


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
    real = real if real.shape[1] == output.shape[1] else real.new_ones(output.shape[:2])
    softmax, visible = _softmax(call, weights)
    found: dict[str, Any] = {"softmax": softmax, "fused": softmax}
    if (seen := with_all.maps.get(module)) is not None:
        found |= _of_map(softmax, visible, seen)
        norms = _by_head(seen.term, real), _by_head(seen.output, real)
        found["effect"] = norms[0] / norms[1].clamp(min=1e-12)
    moved = _by_head(output.float() - output_off.float(), real)
    found["moved"] = moved / _by_head(output_off, real).clamp(min=1e-12)
    found["without"], _ = _softmax(call_off, weights_off)
    found["attends"] = _attends(found["softmax"], real)
    for key, one in found.items():
        found[key] = one.cpu() if isinstance(one, Tensor) else one
    return ExplainedLayer(name, **found)


def _softmax(call: AttentionCall, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of an eager call, (B, H, T, K), and which of its entries are visible."""
    visible = torch.ones_like(weights, dtype=torch.bool)
    if call.mask is not None:
        visible = call.visible_keys()[:, None].expand_as(weights)
    return wide(weights) * visible, visible  # a row of padding sees nothing


def _of_map(softmax: Tensor, visible: Tensor, seen: Observation) -> dict[str, Any]:
    """What a map does to a softmax (B, H, T, K), and for ¬N the softmax without it."""
    learned_map = seen.learned_map
    pairs = visible & seen.positions.pairs(learned_map.length)[:, None]
    map_ = expand_map(learned_map, seen.call).expand_as(softmax)
    inside = learned_map.ablation == "no_negative"
    if inside:  # the map is in the scores of this softmax
        fused, own = softmax, softmax * (-map_).exp()
        elsewhere = 1 - fused.sum(-1, keepdim=True)  # of prefixes, and of scores for no token
        softmax = own / (own.sum(-1, keepdim=True) + elsewhere)
    else:
        fused = softmax + map_
    return {
        "softmax": softmax,
        "map": map_,
        "fused": fused,
        "inside": inside,
        "negative": _share_below_zero(fused, pairs),
        "map_negative": _share_below_zero(map_, pairs),
        "relative_norm": ratio_of([squared_norms(seen)]),
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


def _probabilities(
    reads: Mapping[str, _Reading], real: Tensor, model_config: Any
) -> dict[str, Tensor]:
    """The probabilities of the next token behind the last real one, or of classes or labels."""
    found = {}
    several = getattr(model_config, "problem_type", None) == SEVERAL_LABELS
    for name, read in reads.items():
        if read.logits is None:
            return {}
        logits = read.logits
        if logits.dim() == 3:
            places = torch.arange(real.shape[1], device=real.device)
            last = (places * real).argmax(-1) if logits.shape[1] == real.shape[1] else -1
            logits = logits[torch.arange(len(logits), device=logits.device), last]
        if several and logits.dim() == 2:
            found[name] = logits.float().sigmoid().cpu()
            continue
        if logits.shape[-1] == 1:  # a number, which is no class
            return {}
        found[name] = logits.float().softmax(-1).cpu()
    return found


def shown(found: Explanation, word_of: Callable[[int], str]) -> dict[str, Any]:
    """What the page shows of a batch of one; ``word_of`` gives the text of a token or class.

    Layers that do not attend from the sample's tokens to themselves, such as those of a decoder
    that reads an encoder's text, are left out.
    """
    square = found.ids.shape[1], found.ids.shape[1]
    fitting = [number for number, one in enumerate(found) if one.softmax.shape[-2:] == square]
    return {
        "layers": [_shown_layer(found[number], found.real[0]) for number in fitting],
        "next": {name: _likeliest(one[0], word_of) for name, one in found.probabilities.items()},
        "change": {
            name: [float(one[number]) for number in fitting if number < len(one)]
            for name, one in found.change.items()
        },
    }


def _shown_layer(layer: ExplainedLayer, real: Tensor) -> dict[str, Any]:
    def matrices(whole: Tensor | None) -> dict[str, Any] | None:
        return None if whole is None else pack(whole[0][:, real][:, :, real].float().numpy())

    def by_head(numbers: Tensor | None) -> list[float] | None:
        return None if numbers is None else numbers.tolist()

    return {
        "name": layer.layer.removeprefix("base_model.model."),
        "effect": by_head(layer.effect),
        "negative": by_head(layer.negative),
        "moved": by_head(layer.moved),
        "attends": dict(zip(KEPT, layer.attends.tolist(), strict=True)),
        "softmax": matrices(layer.softmax),
        "map": matrices(layer.map),
        "without": matrices(layer.without),
        "inside": layer.inside,
        "fused": matrices(layer.fused) if layer.inside else None,
    }


def _likeliest(probabilities: Tensor, word_of: Callable[[int], str]) -> list[tuple[str, float]]:
    best = probabilities.topk(min(LIKELIEST, len(probabilities)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(word_of(token), min(share, 1.0)) for token, share in pairs]
