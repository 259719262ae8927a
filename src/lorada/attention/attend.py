"""``with_parts``: an attention function that also uses the adapter parts of the calling module.

The parts of an adapter are children of the attention module that they adapt. ``interface.py`` wraps
every attention function in ``with_parts``, which calls the function unchanged for modules without
parts.

    child ``lmam``           adds the map: O = Attn·V + tile(Attn_s)·V (Eq. 13). The kernel computes
                             the first term and ``add_term`` the second; only the map of the
                             ablation ¬N is given to the kernel, in its mask
    child ``prefix``         puts keys and values before those of the call; maps do not cover them
    attribute ``shifted``    makes attention sparse by a mask while the module trains
    attribute ``read_query`` is a function that gets the queries, for gains that depend on them

Shapes: B batch, H query heads, T queries, D head width.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorada.attention import observation
from lorada.attention.add_term import add_form_term, add_term
from lorada.attention.attention_map import AttentionMap, fitted
from lorada.attention.call import AttentionCall, is_packed_or_paged
from lorada.attention.dense_map import mask_with_map
from lorada.attention.form_map import FormMap, FormTerm
from lorada.attention.forward_inputs import NOTHING_KNOWN, ForwardInputs
from lorada.attention.grouped_heads import with_grouped_heads
from lorada.attention.map_positions import map_positions
from lorada.attention.map_term import map_term
from lorada.attention.observation import AnyMap, Observation
from lorada.attention.packed_attention import Attend, in_parts
from lorada.attention.packed_step import known_step, step_of_layer_before
from lorada.attention.positions import TokenPositions
from lorada.attention.prefix import with_prefixes
from lorada.attention.shifted_sparse import ShiftedGroups
from lorada.attention.visible import visible_pairs
from lorada.functional.precision import wide

CHILD = "lmam"
PREFIX_CHILD = "prefix"
SHIFTED = "shifted"  # a plain attribute, since shifted sparse attention has no parameters
READER = "read_query"  # likewise: gains have their parameters at the output projection


class MapSource(Protocol):
    """The interface of the child ``lmam`` of an attention module."""

    @property
    def forward_inputs(self) -> ForwardInputs:
        """The inputs of the running forward of the model."""

    @property
    def reach(self) -> float:
        """The length of the longest map, in tokens; infinity if a map lies on the last tokens."""

    def maps(self) -> Sequence[AnyMap]:
        """The maps that are active in this call; empty when the adapter is disabled."""


def with_parts(kernel: Attend) -> Attend:
    """Wrap an attention function so that it also uses the parts of the calling module."""
    attend = in_parts(computed := with_grouped_heads(kernel))

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
        read_query = module.__dict__.get(READER)
        if read_query is not None:
            read_query(query)
        source: Any = module._modules.get(CHILD)
        beyond = source is None or _lies_beyond(source, query, key, attention_mask, kwargs)
        maps: list[Any] = [] if beyond else [fitted(own, value) for own in source.maps()]
        before: Any = module._modules.get(PREFIX_CHILD)
        prefixes = before.prefixes() if before is not None else []
        groups: ShiftedGroups | None = module.__dict__.get(SHIFTED) if module.training else None
        if not maps and not prefixes and groups is None:
            return attend(module, query, key, value, attention_mask, **kwargs)
        inputs = NOTHING_KNOWN if source is None else source.forward_inputs
        if inputs.steps and len(maps) == 1 and not prefixes and groups is None:
            known = inputs.steps, maps[0], module, query, value, attention_mask, kwargs
            if (step := step_of_layer_before(*known)) is not None:
                output, weights = attend(module, query, key, value, attention_mask, **kwargs)
                return step.added(output, maps[0], value), weights
        call = AttentionCall.read(
            module, query, key, value, attention_mask, kwargs, inputs, prefixes
        )
        # The lengths of sequences do not count a prefix.
        return _attend(computed if prefixes else attend, call, maps, groups)

    attend_with_parts.adds_map = True  # type: ignore[attr-defined]
    return attend_with_parts


def _lies_beyond(
    source: MapSource, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]
) -> bool:
    """Whether this call decodes one token that by its shapes lies beyond every map."""
    if mask is not None or query.shape[2] != 1 or torch.compiler.is_compiling():
        return False
    if observation.observers:
        return False
    # A sliding window may have dropped keys, but then the token is even later than the number of
    # keys says. Packed sequences count from 0 again, and a paged cache must reach its error.
    return key.shape[2] > source.reach and not is_packed_or_paged(kwargs)


def _attend(
    attend: Attend, call: AttentionCall, maps: Sequence[AnyMap], groups: ShiftedGroups | None
) -> tuple[Tensor, Tensor | None]:
    """Run one call with its parts."""
    # Only the kernel gets the mask of the groups; the map covers the same tokens as without them.
    mask = call.mask if groups is None else groups.mask(call)
    kwargs = call.kwargs
    run = with_prefixes(attend, call) if call.prefixes else attend
    if not maps:
        return run(call.module, call.query, call.key, call.value, mask, **kwargs)
    if call.is_paged:
        raise ValueError(
            "a paged cache was passed without its values, which LMAM needs: use "
            "attn_implementation='sdpa' for continuous batching"
        )
    inside = [m for m in maps if isinstance(m, AttentionMap) and m.ablation == "no_negative"]
    for attention_map in inside:
        mask = mask_with_map(mask, attention_map, map_positions(call, attention_map), call)
    if inside:
        kwargs = {**kwargs, "is_causal": False}  # the mask is causal already
    output, weights = run(call.module, call.query, call.key, call.value, mask, **kwargs)
    if inside and observation.observers:
        _report_inside(run, call, inside, output)
    beside = [m for m in maps if m.ablation != "no_negative"]
    return add_maps(call, beside, output), weights


def add_maps(call: AttentionCall, maps: Sequence[AnyMap], output: Tensor) -> Tensor:
    """``output`` (B, T, H, D), which is Attn·V, plus tile(Attn_s)·V of each map (Eq. 13)."""
    result = output
    for own in maps:
        if isinstance(own, AttentionMap) and (step := known_step(call, own)) is not None:
            result = step.added(result, own, call.value)
            continue
        positions = map_positions(call, own)
        if observation.observers:
            with torch.no_grad():  # observers need no gradients
                term = _term_of(own, call, positions)
            if term is None:
                term = wide(torch.zeros_like(output))
            observation.report(Observation(call, own, positions, output.detach(), term))
        if isinstance(own, FormMap):
            result = add_form_term(result, own, visible_pairs(call, positions), own.tensors(call))
        else:
            result = add_term(result, own, positions, call.shape, call.value)
    return result


def _term_of(own: AnyMap, call: AttentionCall, positions: TokenPositions) -> Tensor | None:
    """tile(map)·V of every query, (B, T, H, D) in fp32; None if the map reaches none."""
    if isinstance(own, FormMap):
        term = FormTerm(own, visible_pairs(call, positions))
        return term(torch.matmul, *own.tensors(call), *own.factors)
    return map_term(own, positions, call.shape, call.value)


def _report_inside(
    run: Attend, call: AttentionCall, inside: list[AttentionMap], output: Tensor
) -> None:
    """Report what maps inside the softmax (¬N) changed, by running the kernel without them."""
    causal = call.shape.causal if call.mask is None else None
    kwargs = {**call.kwargs, "is_causal": causal}
    with torch.no_grad():
        plain = run(call.module, call.query, call.key, call.value, call.mask, **kwargs)[0]
        change = wide(output - plain)
    for attention_map in inside:
        positions = map_positions(call, attention_map)
        observation.report(Observation(call, attention_map, positions, plain, change))
