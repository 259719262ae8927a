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
from lorada.explore.switch_parts import (
    Parts,
    active_parts,
    has_trained_copies,
    without_adapter,
    without_parts,
)
from lorada.functional.precision import wide
from lorada.support.error_messages import EXPLAINING, memory_remedy
from lorada.support.files import write_atomic
from lorada.support.task_head import SEVERAL_LABELS

LIKELIEST = 10  # next tokens that are shown
ATTENDED = ("first", "previous", "itself", "other")  # what a query attends to


@dataclass(frozen=True)
class ExplainedLayer:
    """One attention layer on one batch.

    Attributes:
        layer: name of the attention module.
        softmax: Attn with the adapter, (B, H, T, K).
        without: Attn without the adapter, (B, H, T, K).
        fused: the softmax plus the map, for ¬N the softmax with the map inside, (B, H, T, K).
        moved: how far the adapter moves the output of each head, (H,).
        attends: the shares of ``softmax`` on ``ATTENDED``, (4, H), means over queries.
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
        classes: the names of the V classes or labels; empty where V are tokens.
    """

    layers: list[ExplainedLayer]
    parts: list[str]
    change: dict[str, Tensor]
    probabilities: dict[str, Tensor]
    ids: Tensor
    real: Tensor
    tokenizer: Any = None
    head: str | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        return self.layers[index]

    def to_html(self, path: str | Path) -> None:
        """Write a page for a browser that shows all of a batch of one sample, without a network.

        Raises:
            ValueError: for a batch of several samples.
        """
        if len(self.ids) > 1:  # numbers by head are of a whole batch together
            count = len(self.ids)
            raise ValueError(f"a page shows one sample, not {count}: explain them one by one")
        tokenizer = self.tokenizer

        def word_of(token: int) -> str:
            """The text of a token; its number without a tokenizer."""
            if tokenizer is None:
                return str(token)
            return str(tokenizer.decode([token]))

        def name_of(index: int) -> str:
            """The name of a class, or the text of a token, by its place in the probabilities."""
            return self.classes[index] if self.classes else word_of(index)

        ids = self.ids[0][self.real[0]].tolist()
        words = [word_of(token) for token in ids]
        text = ""
        if tokenizer is not None:
            text = tokenizer.decode(ids, skip_special_tokens=True)
        run = {
            "name": "adapter",
            "method": ", ".join(self.parts),
            "parts": self.parts,
            "head": self.head,
            "shown": [page_entry(self, name_of)],
        }
        sentences = [{"tokens": words, "text": text}]
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
    parts = _explained_parts(model)
    attention_names = _attention_names(model)
    head = None
    was_training = model.training
    model.eval()
    try:
        with_adapter = _run_model(model, batch, attention_names)
        with without_adapter(model):
            without = _run_model(model, batch, attention_names)
        alone = _run_parts_alone(model, batch, parts, with_adapter)
        if has_trained_copies(model):
            head = _name_of_copies(with_adapter)
            with without_parts(parts, parts):
                alone[head] = _run_model(model, batch, {})
    finally:
        model.train(was_training)
    real = _real_tokens(batch)
    layers = []
    for module in with_adapter.attention:
        # Only what was computed both times can be compared.
        if module in without.attention:
            name = attention_names[module]
            layers.append(_explain_layer(name, with_adapter, without, module, real))
    if not layers:
        raise ValueError(
            f"{type(model).__name__} computes attention itself, so its attention cannot be shown: "
            "use a model that calls transformers' attention interface"
        )
    change = {}
    for name, passed in {"all": with_adapter, **alone}.items():
        change[name] = _compute_change(passed, without, real)
    passes = {"with": with_adapter, "without": without, **alone}
    return Explanation(
        layers,
        parts=list(parts),
        change=change,
        probabilities=_compute_probabilities(passes, real, getattr(model, "config", None)),
        ids=batch["input_ids"].cpu(),
        real=real.cpu(),
        tokenizer=tokenizer,
        head=head,
        classes=_class_names(with_adapter.logits, getattr(model, "config", None)),
    )


def _class_names(logits: Tensor | None, model_config: Any) -> tuple[str, ...]:
    """The names of the classes that logits (B, V) are of; empty for those of tokens, (B, T, V)."""
    if logits is None or logits.dim() == 3:
        return ()
    names = getattr(model_config, "id2label", None) or {}
    return tuple(str(names.get(index, index)) for index in range(logits.shape[-1]))


def _explained_parts(model: nn.Module) -> Parts:
    """The active parts that are shown alone; a pooling stays on, as a trained head reads it.

    Raises:
        ValueError: for a model without an active adapter, or with two maps on one softmax.
    """
    parts = {part: layers for part, layers in active_parts(model).items() if part != "pooling"}
    if not parts:
        raise ValueError("this model has no active adapter: load or enable one")
    # Two maps on one softmax could not be told apart.
    map_names: set[str] = set()
    for layer in parts.get("map", ()):
        map_names |= set(layer.active_adapters) & set(layer._get_available_adapters())
    if len(map_names) > 1:
        names = ", ".join(sorted(map_names))
        raise ValueError(f"{names} all have a map: activate one at a time")
    return parts


def _attention_names(model: nn.Module) -> dict[nn.Module, str]:
    """The names of a model's modules, but for cross-attention, which gets no map."""
    names = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] not in CROSS_ATTENTION:
            names[module] = name
    return names


def _real_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """Which tokens of a batch are real and not padding, (B, T)."""
    mask = batch.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(batch["input_ids"])
    return mask.bool()


@dataclass(frozen=True)
class _AttentionCall:
    """What one attention module computed."""

    call: AttentionCall
    output: Tensor  # (B, T, H, D)
    weights: Tensor  # the softmax map, (B, H, T, K)


@dataclass
class _ForwardPass:
    """What is kept of one forward pass."""

    attention: dict[nn.Module, _AttentionCall] = field(default_factory=dict)
    map_terms: dict[nn.Module, Observation] = field(default_factory=dict)  # what its map did
    hidden_states: list[Tensor] = field(default_factory=list)  # after each layer, (B, T, ·)
    logits: Tensor | None = None  # (B, T, V) or (B, V)


def _run_model(
    model: nn.Module, batch: Mapping[str, Tensor], watched: Mapping[nn.Module, str]
) -> _ForwardPass:
    """Let a model read a batch, and keep the attention calls of the ``watched`` modules."""
    passed = _ForwardPass()

    def keep_attention(call: AttentionCall, output: Tensor, weights: Tensor) -> None:
        if call.module in watched:
            passed.attention[call.module] = _AttentionCall(call, output, weights)

    def keep_map_term(observation: Observation) -> None:
        if observation.call.module in watched:
            passed.map_terms[observation.call.module] = observation

    with _eager_attention(model), watch(keep_attention), observe(keep_map_term):
        outputs = model(**batch, output_hidden_states=True)
    # An encoder-decoder calls its encoder's states by another name. The first are embeddings.
    states = outputs.get("hidden_states") or outputs.get("encoder_hidden_states") or ()
    passed.hidden_states = list(states[1:])
    passed.logits = outputs.get("logits")
    return passed


def _run_parts_alone(
    model: nn.Module, batch: Mapping[str, Tensor], parts: Parts, with_adapter: _ForwardPass
) -> dict[str, _ForwardPass]:
    """Let a model read a batch with one part at a time; by the part's name."""
    if len(parts) == 1:
        return dict.fromkeys(parts, with_adapter)  # the only part is the whole adapter
    alone = {}
    for part in parts:
        others = [other for other in parts if other != part]
        with without_parts(parts, others):
            alone[part] = _run_model(model, batch, {})
    return alone


def _name_of_copies(with_adapter: _ForwardPass) -> str:
    """What the page calls trained copies of modules: those of a model of classes are its head."""
    logits = with_adapter.logits
    if logits is not None and logits.dim() == 2:
        return "head"
    return "copies"


@contextmanager
def _eager_attention(model: nn.Module) -> Iterator[None]:
    """Let a model compute attention eagerly in a ``with`` block: only that returns its softmax."""
    # Modules share configs, and each is to be set and restored once. The field is private because
    # the public setter would also set the configs of sub-models.
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            configs[id(config)] = config
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    for config, _ in before:
        config._attn_implementation_internal = "eager"
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def _explain_layer(
    name: str, with_adapter: _ForwardPass, without: _ForwardPass, module: nn.Module, real: Tensor
) -> ExplainedLayer:
    """What the adapter does in one attention module, on the CPU."""
    attention = with_adapter.attention[module]
    attention_without = without.attention[module]
    # A decoder that reads an encoder's text has queries of its own, all of them real.
    if real.shape[1] != attention.output.shape[1]:
        real = real.new_ones(attention.output.shape[:2])

    difference = attention.output.float() - attention_without.output.float()
    norm_without = _norm_by_head(attention_without.output, real)
    moved = _norm_by_head(difference, real) / norm_without.clamp(min=1e-12)
    softmax, visible = _softmax_map(attention)
    softmax_without, _ = _softmax_map(attention_without)

    observation = with_adapter.map_terms.get(module)
    if observation is None:
        return ExplainedLayer(
            name,
            softmax=softmax.cpu(),
            without=softmax_without.cpu(),
            fused=softmax.cpu(),
            moved=moved.cpu(),
            attends=_attended_shares(softmax, real).cpu(),
        )
    maps = _separate_map(softmax, observation)
    # Shares are counted over the pairs that the map covers and the query may see.
    pairs = visible & observation.positions.pairs(observation.learned_map.length)[:, None]
    term_norm = _norm_by_head(observation.term, real)
    output_norm = _norm_by_head(observation.output, real)
    return ExplainedLayer(
        name,
        softmax=maps.softmax.cpu(),
        without=softmax_without.cpu(),
        fused=maps.fused.cpu(),
        moved=moved.cpu(),
        attends=_attended_shares(maps.softmax, real).cpu(),
        map=maps.map.cpu(),
        inside=maps.inside,
        negative=_share_below_zero(maps.fused, pairs).cpu(),
        map_negative=_share_below_zero(maps.map, pairs).cpu(),
        effect=(term_norm / output_norm.clamp(min=1e-12)).cpu(),
        relative_norm=ratio_of([squared_norms(observation)]),
    )


def _softmax_map(attention: _AttentionCall) -> tuple[Tensor, Tensor]:
    """The softmax of an eager call, (B, H, T, K), and which of its entries are visible."""
    weights = attention.weights
    visible = torch.ones_like(weights, dtype=torch.bool)
    if attention.call.mask is not None:
        visible = attention.call.visible_keys()[:, None].expand_as(weights)
    return wide(weights) * visible, visible  # a row of padding sees nothing


@dataclass(frozen=True)
class _SeparatedMap:
    """The map of a layer and its softmax, apart and together, each (B, H, T, K)."""

    softmax: Tensor
    map: Tensor
    fused: Tensor
    inside: bool  # whether the map is inside the softmax (¬N)


def _separate_map(softmax: Tensor, observation: Observation) -> _SeparatedMap:
    """Set the map beside the softmax of its call; for ¬N take it out of the softmax."""
    learned_map = observation.learned_map
    map_ = expand_map(learned_map, observation.call).expand_as(softmax)
    if learned_map.ablation != "no_negative":
        return _SeparatedMap(softmax, map_, fused=softmax + map_, inside=False)
    # The map is in the scores of this softmax: exp(x + a) · exp(-a) = exp(x), normalised again.
    weights = softmax * (-map_).exp()
    elsewhere = 1 - softmax.sum(-1, keepdim=True)  # of prefixes, and of scores for no token
    without_map = weights / (weights.sum(-1, keepdim=True) + elsewhere)
    return _SeparatedMap(without_map, map_, fused=softmax, inside=True)


def _share_below_zero(values: Tensor, pairs: Tensor) -> Tensor:
    """The share of entries below 0 among ``pairs`` (B, H, T, K), by head (H,)."""
    below = ((values < 0) & pairs).sum((0, 2, 3))
    return below / pairs.sum((0, 2, 3)).clamp(min=1)


def _norm_by_head(states: Tensor, real: Tensor) -> Tensor:
    """The norm of each head's part (H,) of states (B, T, H, D), over the real tokens."""
    squares = (states.float() * real[..., None, None]).square()
    return squares.sum((0, 1, 3)).sqrt()


def _attended_shares(softmax: Tensor, real: Tensor) -> Tensor:
    """The share of each of ``ATTENDED`` in a softmax map (B, H, T, K), a mean over queries (4, H).

    Padding counts neither as a query nor as a key. Zeros where the map is not one of these tokens
    with themselves, as of cross-attention.
    """
    count = real.shape[1]
    if softmax.shape[-2:] != (count, count):
        return softmax.new_zeros(len(ATTENDED), softmax.shape[1])
    # Tokens are numbered without padding, so that the first real one is 0.
    number = real.long().cumsum(-1) - 1
    query = number[:, :, None]
    key = number[:, None, :]
    itself = query == key
    previous = query == key + 1
    # The second token's previous one is the first: each pair counts once, as the nearest kind.
    first = (key == 0) & ~itself & ~previous
    other = ~(first | previous | itself)
    both_real = real[:, :, None] & real[:, None, :]
    kinds = torch.stack([first, previous, itself, other]) & both_real
    shares = torch.einsum("bhqk,cbqk->ch", softmax, kinds.to(softmax.dtype))
    return shares / real.sum()


def _compute_change(passed: _ForwardPass, without: _ForwardPass, real: Tensor) -> Tensor:
    """How far each layer's states are from those without the adapter, as a share of them (L,).

    Norms are over the real tokens.
    """
    changes = []
    for states, states_without in zip(passed.hidden_states, without.hidden_states, strict=True):
        counted = real
        if real.shape[1] != states.shape[1]:
            counted = real.new_ones(states.shape[:2])
        mask = counted[..., None]
        difference = ((states - states_without).float() * mask).norm()
        size = (states_without.float() * mask).norm()
        changes.append(difference / size.clamp(min=1e-12))
    if not changes:
        return torch.zeros(0)
    return torch.stack(changes).cpu()


def _compute_probabilities(
    passes: Mapping[str, _ForwardPass], real: Tensor, model_config: Any
) -> dict[str, Tensor]:
    """The probabilities of the next token behind the last real one, or of classes or labels."""
    probabilities = {}
    several_labels = getattr(model_config, "problem_type", None) == SEVERAL_LABELS
    for name, passed in passes.items():
        if passed.logits is None:
            return {}
        logits = passed.logits
        if logits.dim() == 3:
            logits = _logits_of_last_token(logits, real)
        elif several_labels:  # each has a probability of its own
            probabilities[name] = logits.float().sigmoid().cpu()
            continue
        if logits.shape[-1] == 1:  # a number, which is no class
            return {}
        probabilities[name] = logits.float().softmax(-1).cpu()
    return probabilities


def _logits_of_last_token(logits: Tensor, real: Tensor) -> Tensor:
    """The logits (B, V) behind the last real token of each sample, from those of all (B, T, V)."""
    rows = torch.arange(len(logits), device=logits.device)
    if logits.shape[1] != real.shape[1]:
        return logits[rows, -1]  # of other tokens, such as a decoder's beside an encoder's text
    places = torch.arange(real.shape[1], device=real.device)
    last = (places * real).argmax(-1)
    return logits[rows, last]


def page_entry(explanation: Explanation, word_of: Callable[[int], str]) -> dict[str, Any]:
    """What the page shows of a batch of one; ``word_of`` gives the text of a token or class.

    Layers that do not attend from the sample's tokens to themselves, such as those of a decoder
    that reads an encoder's text, are left out.
    """
    tokens = explanation.ids.shape[1]
    real = explanation.real[0]
    indices = []
    layers = []
    for index, layer in enumerate(explanation):
        if layer.softmax.shape[-2:] == (tokens, tokens):
            indices.append(index)
            layers.append(_layer_entry(layer, real))
    likeliest = {}
    for name, probabilities in explanation.probabilities.items():
        likeliest[name] = _likeliest(probabilities[0], word_of)
    change = {}
    for name, by_layer in explanation.change.items():
        # The last layers may have no hidden state.
        change[name] = [float(by_layer[index]) for index in indices if index < len(by_layer)]
    return {"layers": layers, "next": likeliest, "change": change}


def _layer_entry(layer: ExplainedLayer, real: Tensor) -> dict[str, Any]:
    """A layer on the page: numbers by head, and matrices over the real tokens."""

    def pack_real(matrices: Tensor | None) -> dict[str, Any] | None:
        if matrices is None:
            return None
        return pack(matrices[0][:, real][:, :, real].float().numpy())

    def by_head(numbers: Tensor | None) -> list[float] | None:
        if numbers is None:
            return None
        return numbers.tolist()

    return {
        "name": layer.layer.removeprefix("base_model.model."),
        "effect": by_head(layer.effect),
        "negative": by_head(layer.negative),
        "moved": by_head(layer.moved),
        "attends": dict(zip(ATTENDED, layer.attends.tolist(), strict=True)),
        "softmax": pack_real(layer.softmax),
        "map": pack_real(layer.map),
        "without": pack_real(layer.without),
        "inside": layer.inside,
        # Elsewhere the page adds softmax and map itself.
        "fused": pack_real(layer.fused) if layer.inside else None,
    }


def _likeliest(probabilities: Tensor, word_of: Callable[[int], str]) -> list[tuple[str, float]]:
    """The likeliest tokens or classes, each with its probability."""
    count = min(LIKELIEST, len(probabilities))
    top = probabilities.topk(count)
    pairs = []
    for token, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        pairs.append((word_of(token), min(probability, 1.0)))  # rounding may exceed 1
    return pairs
