"""The only file that knows transformers' attention interface.

``install`` wraps each registered attention function in place, so implementation names, masks and
saved configs stay as they are. A module without a map passes straight through; one with a child
``lmam`` gets ``Attn·V + tile(Attn_s)·V``, the second term computed in fp32 beside the kernel. A
child ``prefix`` puts keys and values before those of the call, which the map does not see.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, N map
length, D head width.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lorada.attention.attention_map import AttentionMap, View, for_samples
from lorada.attention.dense_map import spread_map
from lorada.attention.map_term import add_term, map_term
from lorada.attention.positions import Places, TokenTable, locate
from lorada.attention.prefix import Prefix, behind, implementation_of
from lorada.attention.shifted_sparse import ShiftedGroups
from lorada.attention.tensor_memo import Remembered

CHILD = "lmam"
PREFIX_CHILD = "prefix"
SHIFTED = "shifted"  # no child but a plain attribute: shifted sparse attention has no parameters


class MapLayer(Protocol):
    """What the wrapper asks of the child ``lmam`` of an attention module."""

    @property
    def seen(self) -> Tensor | int | None:
        """What the model's forward was told of the tokens: their 2-D mask, or their number."""

    @property
    def packable(self) -> bool:
        """Whether it may have been given packed sequences, told by their positions alone."""

    @property
    def reach(self) -> float:
        """How many tokens lie under the longest map."""

    def maps(self) -> list[AttentionMap]:
        """The maps that are active now; empty when the adapter is disabled."""


@dataclass(frozen=True)
class Observation:
    """What one attention call computed, for ``observe``."""

    module: nn.Module
    query: Tensor | None  # (B, H, T, D); None where the model computes attention itself
    key: Tensor | None  # (B, G, K, D)
    mask: Any
    scaling: float
    places: Places
    attention_map: AttentionMap
    view: View
    value: Tensor  # (B, G, K, D)
    output: Tensor  # (B, T, H, D), Attn·V
    term: Tensor  # (B, T, H, D), tile(Attn_s)·V; what the map changed, for ¬N
    prefixes: list[Prefix]  # which the softmax sees before ``key``


_observers: list[Callable[[Observation], None]] = []
_places = Remembered()


@contextmanager
def observe(observer: Callable[[Observation], None]) -> Iterator[None]:
    """Call ``observer`` after every attention call that added a map, while the context lasts."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def install() -> None:
    """Wrap every registered attention function that is not wrapped yet, and ``eager``."""
    for name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        function = ALL_ATTENTION_FUNCTIONS[name]
        if not hasattr(function, "adds_map"):
            AttentionInterface.register(name, _with_map(function))
    if "eager" not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register("eager", _with_map(_eager))


def uninstall() -> None:
    """Put the original functions back."""
    mapping = AttentionInterface._global_mapping
    for name in list(ALL_ATTENTION_FUNCTIONS.valid_keys()):
        function = mapping[name]
        if name == "eager":
            del mapping[name]
        elif hasattr(function, "adds_map"):
            AttentionInterface.register(name, function.__wrapped__)


def dispatches(module: nn.Module) -> bool:
    """Whether a module calls its attention through the interface, so that a map reaches it."""
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(forward, "__code__", _eager.__code__).co_names


def head_count(module: nn.Module) -> int:
    """Query heads of an attention module."""
    for source in (module, getattr(module, "config", None)):
        for name in ("num_heads", "num_attention_heads", "n_heads"):
            if isinstance(getattr(source, name, None), int):
                return int(getattr(source, name))
    raise ValueError(f"{type(module).__name__} does not say how many attention heads it has")


def is_installed(implementation: str | None) -> bool:
    """Whether calls under this implementation name go through the wrapper."""
    name = implementation or "eager"
    if name != "paged|eager":  # the one paged function that has a name of its own
        name = name.removeprefix("paged|")
    return hasattr(ALL_ATTENTION_FUNCTIONS.get(name), "adds_map")


def check_installed(module: Any, args: Any) -> None:
    """A forward pre-hook of attention modules that hold a part.

    Raises:
        ValueError: if the module's attention function would ignore it.
    """
    implementation = module.config._attn_implementation
    if not is_installed(implementation):
        raise ValueError(
            f"attn_implementation={implementation!r} was registered after the adapter was placed "
            "and would silently ignore it: call lorada.attention.install() after registering"
        )


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The eager function that ``module`` would have fallen back to."""
    forward = inspect.unwrap(type(module).forward)
    # A few files have several, such as vision_eager_attention_forward; the forward names its own.
    names = [n for n in forward.__code__.co_names if n.endswith("eager_attention_forward")]
    result: tuple[Tensor, Tensor | None] = forward.__globals__[names[0]](module, *args, **kwargs)
    return result


def _with_map(attend: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., Any]:
    @functools.wraps(attend)
    def attend_with_map(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        # Straight from the dictionaries: a look at a name that is not there is slow in a module.
        layer: Any = module._modules.get(CHILD)
        beyond = layer is None or _lies_beyond(layer, query, key, attention_mask, kwargs)
        maps = [] if beyond else layer.maps()
        before: Any = module._modules.get(PREFIX_CHILD)
        prefixes = before.prefixes() if before is not None else []
        run = behind(attend, prefixes) if prefixes else attend
        mask = attention_mask
        groups: ShiftedGroups | None = module.__dict__.get(SHIFTED)
        if groups is not None and module.training:
            # The map goes on reading the mask of the call: it is added to full attention's places.
            kernel, causal = implementation_of(module), _is_causal(module, kwargs)
            mask = groups.mask(kernel, query, key, attention_mask, kwargs, causal=causal)
        if not maps:
            return run(module, query, key, value, mask, **kwargs)
        if kwargs.get("block_table") is not None:
            raise ValueError(
                "a paged cache was passed without its values, which LMAM needs: use "
                "attn_implementation='sdpa' for continuous batching"
            )
        view = View(
            query.shape[2],
            value.shape[2],
            query.shape[1],
            _is_causal(module, kwargs),
            kwargs.get("sliding_window"),
        )
        call = Call(module, view, value, attention_mask, kwargs, query, key, prefixes)
        inside = [m for m in maps if m.ablation == "no_negative"]
        for attention_map in inside:
            mask = call.mask_with(attention_map, mask)
        if inside:
            kwargs = {**kwargs, "is_causal": False}
        output, weights = run(module, query, key, value, mask, **kwargs)
        if inside and _observers:
            plain = call.without_map(run, kwargs)
            for attention_map in inside:
                change = (output - plain).float()
                call.report(attention_map, call.places(attention_map), plain, change)
        result = output
        for attention_map in maps:
            if attention_map.ablation != "no_negative":
                result = call.add_term(attention_map, output, result)
        return result, weights

    attend_with_map.adds_map = True  # type: ignore[attr-defined]
    return attend_with_map


def _lies_beyond(
    layer: MapLayer, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]
) -> bool:
    """Whether shapes alone tell that no map reaches the one token of this call: long decoding."""
    if mask is not None or query.shape[2] != 1 or torch.compiler.is_compiling() or _observers:
        return False
    # The first places tokens in other ways, the second is refused. A window changes nothing: where
    # it has dropped keys, the token is a later one than their number says.
    if kwargs.get("cu_seq_lens_q") is not None or kwargs.get("block_table") is not None:
        return False
    return key.shape[2] > layer.reach


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """The module knows whether it is a decoder; a call may say False for a mask that is causal."""
    causal = getattr(module, "is_causal", None)
    return bool(kwargs.get("is_causal", True) if causal is None else causal)


@dataclass(frozen=True)
class Call:
    """One call of attention, and what the maps of its module add to it."""

    module: nn.Module
    view: View
    value: Tensor
    mask: Any
    kwargs: dict[str, Any]
    query: Tensor | None = None
    key: Tensor | None = None
    prefixes: list[Prefix] = field(default_factory=list)

    def places(self, attention_map: AttentionMap) -> Places:
        """Where the tokens of this call sit in a map.

        Raises:
            ValueError: if sequences are packed into a row and attention does not keep them apart.
        """
        kernel = implementation_of(self.module)
        layer: Any = getattr(self.module, CHILD, None)
        seen, packable = getattr(layer, "seen", None), getattr(layer, "packable", True)
        # Positions say something only of packed sequences and of keys that a window has dropped.
        told = packable or self.view.window is not None
        position_ids = self.kwargs.get("position_ids") if told else None
        by_query: Tensor | None = self.kwargs.get("cu_seq_lens_q")
        by_key: Tensor | None = self.kwargs.get("cu_seq_lens_k")
        by_key = by_query if by_key is None else by_key
        ask = partial(
            locate,
            self.view.queries,
            self.view.keys,
            length=attention_map.length,
            align=attention_map.align,
            positions=attention_map.positions,
            window=self.view.window,
            causal=self.view.causal,
            flash="flash" in kernel,
            packable=packable,
            device=self.value.device,
        )
        # Flex attention's mask is no tensor, but was made with some.
        mask = getattr(self.mask, "kv_num_blocks", self.mask)
        pattern = getattr(self.mask, "mask_mod", None)
        read = {"mask": mask, "position_ids": position_ids, "seen": seen,
                "queries": by_query, "keys": by_key}  # fmt: skip
        by_length = None if by_query is None or by_key is None else (by_query, by_key)
        places = _places(
            read,
            (*ask.args, *ask.keywords.values(), pattern),
            lambda: ask(self.mask, position_ids, cu_seq_lens=by_length, seen=seen),
        )
        packed = isinstance(places, TokenTable) and places.sequences > 1
        if packed and self.mask is None and "flash" not in kernel:
            raise ValueError(
                "several sequences are packed into one row and attention would let them see each "
                "other: pass use_cache=False and position_ids that start anew with each sequence"
            )
        return places

    def add_term(self, attention_map: AttentionMap, output: Tensor, result: Tensor) -> Tensor:
        """``result`` (B, T, H, D) plus tile(Attn_s)·V, rounded to its dtype once, at the end."""
        places = self.places(attention_map)
        if _observers:
            with torch.no_grad():  # what is only looked at needs no graph
                term = map_term(attention_map, places, self.view, self.value)
            if term is None:
                term = torch.zeros_like(output, dtype=torch.float32)
            self.report(attention_map, places, output, term)
        return add_term(result, attention_map, places, self.view, self.value)

    def without_map(self, attend: Callable[..., Any], kwargs: dict[str, Any]) -> Tensor:
        """The output of this call without ¬N's map, for observers: what the map changed."""
        own = {**kwargs, "is_causal": self.view.causal if self.mask is None else None}
        with torch.no_grad():
            output: Tensor = attend(
                self.module, self.query, self.key, self.value, self.mask, **own
            )[0]
        return output

    def report(
        self, attention_map: AttentionMap, places: Places, output: Tensor, term: Tensor
    ) -> None:
        """Tell the observers what this call computed."""
        if not _observers:
            return
        scaling = self.kwargs.get("scaling") or self.value.shape[-1] ** -0.5
        seen = Observation(
            self.module, self.query, self.key, self.mask, scaling, places,
            attention_map, self.view, self.value, output.detach(), term.detach(), self.prefixes,
        )  # fmt: skip
        for observer in _observers:
            observer(seen)

    def mask_with(self, attention_map: AttentionMap, mask: Any) -> Tensor:
        """The additive mask of ¬N: the map joins the scores (B, H, T, K), before the softmax."""
        queries, (batch, _, keys, _) = self.view.queries, self.value.shape
        dtype = self.value.dtype
        full = spread_map(attention_map, self.places(attention_map), self.view)
        full = for_samples(full, attention_map.samples, batch).to(dtype)
        blocked = torch.finfo(dtype).min
        if mask is None:
            if not self.view.causal or queries == 1:
                return full
            rows = torch.arange(queries, device=full.device)
            see = rows[:, None] >= torch.arange(keys, device=full.device)
            return torch.where(see, full, blocked)
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            raise ValueError(
                "the no_negative ablation needs a (B, 1, T, K) mask: use "
                "attn_implementation='sdpa' or 'eager'"
            )
        mask = mask[..., :keys]
        return torch.where(mask, full, blocked) if mask.dtype == torch.bool else mask + full
