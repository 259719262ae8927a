"""``with_parts``: an attention function that also uses the adapter parts of the calling module.

The parts of an adapter are children of the attention module that they adapt. ``interface.py`` wraps
every attention function in ``with_parts``, which calls the function unchanged for modules without
parts.

    child ``lmam``           adds the map: O = Attn·V + tile(Attn_s)·V (Eq. 13). The kernel computes
                             the first term and ``add_term`` the second; only the map of the
                             ablation ¬N is given to the kernel, in its mask
    child ``prefix``         puts keys and values before those of the call; maps do not cover them
    attribute ``shifted``    makes attention sparse by a mask while the module trains

Shapes: B batch, H query heads, T queries, D head width.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorada.attention import observation
from lorada.attention.call import AttentionCall, is_packed_or_paged
from lorada.attention.covered_tokens import covered_tokens
from lorada.attention.forward_inputs import NOTHING_KNOWN, ForwardInputs
from lorada.attention.learned_map import LearnedMap
from lorada.attention.map_term import Term, add_term, expand_map
from lorada.attention.observation import Observation
from lorada.attention.prefix_attention import Attend, attend_with_prefixes
from lorada.attention.shifted_sparse import ShiftedGroups
from lorada.functional.precision import nothing_is_recorded, wide_dtype

CHILD = "lmam"
PREFIX_CHILD = "prefix"
SHIFTED = "shifted"  # a plain attribute, since shifted sparse attention has no parameters

NEEDS_MASK = (
    "the no_negative ablation needs a (B, 1, T, K) mask: use attn_implementation='sdpa' or 'eager'"
)


class MapSource(Protocol):
    """The interface of the child ``lmam`` of an attention module."""

    @property
    def forward_inputs(self) -> ForwardInputs:
        """The inputs of the running forward of the model."""

    @property
    def reach(self) -> float:
        """The length of the longest map, in tokens; infinity if a map lies on the last tokens."""

    def maps(self) -> Sequence[LearnedMap]:
        """The maps that are active in this call; empty when the adapter is disabled."""


def with_parts(kernel: Attend) -> Attend:
    """Wrap an attention function so that it also uses the parts of the calling module."""

    @functools.wraps(kernel)
    def attend_with_parts(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        # Read from the dictionaries: ``getattr`` of a missing name is slow on a module.
        source: Any = module._modules.get(CHILD)
        beyond = source is None or _lies_beyond(source, query, key, attention_mask, kwargs)
        maps = [] if beyond else source.maps()
        before: Any = module._modules.get(PREFIX_CHILD)
        prefixes = before.prefixes() if before is not None else []
        groups: ShiftedGroups | None = module.__dict__.get(SHIFTED) if module.training else None
        if not maps and not prefixes and groups is None:
            return kernel(module, query, key, value, attention_mask, **kwargs)
        inputs = getattr(groups if source is None else source, "forward_inputs", NOTHING_KNOWN)
        call = AttentionCall.read(
            module, (query, key, value), attention_mask, kwargs, inputs, prefixes
        )
        return _attend(kernel, call, maps, groups)

    attend_with_parts.adds_map = True  # type: ignore[attr-defined]
    return attend_with_parts


def _lies_beyond(
    source: MapSource, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]
) -> bool:
    """Whether this call decodes one token of each row, all of which lie beyond every map."""
    if query.shape[2] != 1 or torch.compiler.is_compiling() or observation.observers:
        return False
    # A sliding window may have dropped keys, but then the token is even later than the number of
    # keys says. Packed sequences count from 0 again, and a paged cache must reach its error.
    tokens = key.shape[2] if mask is None else source.forward_inputs.fewest_tokens
    return tokens > source.reach and not is_packed_or_paged(kwargs)


def _attend(
    kernel: Attend, call: AttentionCall, maps: Sequence[LearnedMap], groups: ShiftedGroups | None
) -> tuple[Tensor, Tensor | None]:
    """Run one call with its parts."""
    # Only the kernel gets the mask of the groups; the map covers the same tokens as without them.
    mask = call.mask if groups is None else groups.mask(call)
    kwargs = call.kwargs
    if not maps:
        return attend_with_prefixes(kernel, call, mask, kwargs)
    if call.is_paged:
        raise ValueError(
            "a paged cache was passed without its values, which LMAM needs: use "
            "attn_implementation='sdpa' and, for continuous batching, "
            "ContinuousBatchingConfig(auto_switch_to_flash=False)"
        )
    inside = [m for m in maps if m.ablation == "no_negative"]
    for learned_map in inside:
        mask = mask_with_map(mask, learned_map, call)
    if inside:
        kwargs = {**kwargs, "is_causal": False}  # the mask is causal already
    output, weights = attend_with_prefixes(kernel, call, mask, kwargs)
    if inside and observation.observers:
        _report_inside(kernel, call, inside, output)
    beside = [m for m in maps if m.ablation != "no_negative"]
    # The kernel has just made its output, so nobody else can hold it, but for observers.
    in_place = nothing_is_recorded() and not observation.observers
    return add_maps(call, beside, output, in_place=in_place), weights


def add_maps(
    call: AttentionCall, maps: Sequence[LearnedMap], output: Tensor, *, in_place: bool = False
) -> Tensor:
    """``output`` (B, T, H, D), which is Attn·V, plus tile(Attn_s)·V of each map (Eq. 13).

    ``in_place`` may write into ``output``; never with observers. ¬N maps go by ``mask_with_map``.
    """
    result = output
    for learned_map in maps:
        covered = covered_tokens(call, learned_map)  # None if no query lies under the map
        term = None if covered is None else Term(learned_map, covered, call.shape)
        if observation.observers:
            with torch.no_grad():  # observers need no gradients
                zeros = torch.zeros_like(output, dtype=wide_dtype(output))
                term_alone = zeros if term is None else add_term(zeros, term, call.value)
            observation.report(Observation(call, learned_map, output.detach(), term_alone))
        if term is not None:
            result = add_term(result, term, call.value, in_place=in_place)
    return result


def mask_with_map(mask: Tensor | None, learned_map: LearnedMap, call: AttentionCall) -> Tensor:
    """``mask``, which may hold another map, with this one added (¬N): additive, (B, H, T, K)."""
    if call.kernel in ("flash", "flex"):
        raise ValueError(NEEDS_MASK)
    # The kernel adds a mask to the scores, so a map inside the mask is a map before the softmax.
    dtype, keys = call.value.dtype, call.shape.keys
    full = expand_map(learned_map, call).to(dtype)
    hidden = torch.finfo(dtype).min
    if mask is None:
        if not call.shape.causal or call.shape.queries == 1:
            return full
        # A kernel that is given a mask does not apply its own causal mask.
        mask = full.new_ones(1, 1, call.shape.queries, keys, dtype=torch.bool).tril()
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise ValueError(NEEDS_MASK)
    mask = mask[..., :keys]  # the mask of a static cache may be longer
    return torch.where(mask, full, hidden) if mask.dtype == torch.bool else mask + full


def _report_inside(
    kernel: Attend, call: AttentionCall, inside: list[LearnedMap], output: Tensor
) -> None:
    """Report what maps inside the softmax (¬N) changed, by running the kernel without them."""
    causal = call.shape.causal if call.mask is None else None
    kwargs = {**call.kwargs, "is_causal": causal}
    with torch.no_grad():
        plain, _ = attend_with_prefixes(kernel, call, call.mask, kwargs)
        change = (output - plain).float()
    for learned_map in inside:
        observation.report(Observation(call, learned_map, plain, change))
