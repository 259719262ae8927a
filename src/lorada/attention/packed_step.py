"""``PackedStep``: a step of continuous batching on a CPU, prepared once for all layers.

Some sequences of a step bring a whole prompt, the others one token. Between the maps of two layers,
the weights of the model push all else out of the processor's caches, and a line of Python then
takes several times as long as alone. So a layer finds here whatever does not depend on its map.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, N map length, D head
width, C queries that are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorada.attention import observation
from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import AttentionCall, CallShape, packed_key
from lorada.attention.observation import AnyMap
from lorada.attention.packed_positions import (
    PackedQueries,
    packed_sequences,
    pairs_of,
    queries_alone,
)
from lorada.attention.packed_term import term_of_rows
from lorada.attention.pairs import Pairs, layout_of
from lorada.attention.positions import TokenSpan, can_be_read
from lorada.attention.sliced_term import queries_under_map, sliced_term


@dataclass(frozen=True)
class PackedStep:
    """The queries of a call with packed sequences that a map reaches.

    Attributes:
        shape: sizes of the call.
        alone: the queries whose sequence has no other query: pairs with values where these can be
            summed, whole rows otherwise; None if there are none.
        spans: queries of one sequence that follow each other, and where its tokens lie.
    """

    shape: CallShape
    alone: Pairs | PackedQueries | None
    spans: Sequence[tuple[slice, TokenSpan]]

    @property
    def is_empty(self) -> bool:
        """Whether the map reaches no query."""
        return not self.spans and self.alone is None

    def added(self, output: Tensor, attention_map: AttentionMap, value: Tensor) -> Tensor:
        """``output`` (1, T, H, D), which is Attn·V, plus the term of a map (Eq. 13)."""
        if self.is_empty:
            return output
        term = self.term(attention_map, value)
        # As ``plus_term``, without what only autograd needs.
        return term.add_(output) if term.dtype == output.dtype else (output + term).to(output.dtype)

    def term(self, attention_map: AttentionMap, value: Tensor) -> Tensor:
        """tile(Attn_s)·V of every query, (1, T, H, D) in fp32, from values (1, G, K, D)."""
        if isinstance(self.alone, Pairs):
            term = self.alone.term(attention_map, self.shape, value)
        elif self.alone is not None:
            term = term_of_rows(attention_map, self.alone, self.shape, value)
        else:
            sizes = 1, self.shape.queries, self.shape.heads, value.shape[-1]
            term = value.new_zeros(sizes, dtype=torch.promote_types(value.dtype, torch.float32))
        for queries, span in self.spans:
            term[:, queries] = sliced_term(attention_map, span, self.shape, value)
        return term


def known_step(call: AttentionCall, own: AttentionMap) -> PackedStep | None:
    """The step of continuous batching that a call belongs to; None for any other call.

    The first layer prepares it. The others would find all its parts again, but slowly: see
    ``PackedStep``.
    """
    steps, lengths = call.inputs.steps, call.cu_seq_lens
    if steps is None or lengths is None or call.query is None or not can_be_read(call.value):
        return None
    if _needs_a_table(own):
        return None
    key = packed_key(call.module, call.query, call.value, call.mask, call.kwargs), own.kind
    if key not in steps:
        # What was read is kept, so that no other tensor gets its identity.
        steps[key] = packed_step(call, own), (*lengths, call.position_ids)
    found: PackedStep | None = steps[key][0]
    return found


def step_of_layer_before(
    steps: dict[Any, Any],
    own: AnyMap,
    module: nn.Module,
    query: Tensor,
    value: Tensor,
    mask: Any,
    kwargs: dict[str, Any],
) -> PackedStep | None:
    """What ``known_step`` returned to another layer for the same call; None if it did not.

    That layer has also asked whether numbers can be read. This is asked once more for each layer,
    before there is an ``AttentionCall``, since making one takes as long as all of this.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return None
    if not isinstance(own, AttentionMap) or _needs_a_table(own):
        return None
    found = steps.get((packed_key(module, query, value, mask, kwargs), own.kind))
    return found and found[0]


def _needs_a_table(own: AttentionMap) -> bool:
    """Whether the tokens of a call must be in a table: to be observed, mixed, or cast."""
    mixed = own.samples is not None
    return mixed or bool(observation.observers) or torch.is_autocast_enabled("cpu")


def packed_step(call: AttentionCall, own: AttentionMap) -> PackedStep | None:
    """The step of a call that gives the lengths of its sequences.

    None if positions count slots, or if nothing keeps the sequences apart.
    """
    shape, groups, length = call.shape, call.value.shape[1], own.length
    if own.positions == "raw" or (call.mask is None and call.kernel != "flash"):
        return None
    sequences = packed_sequences(call, length if own.align == "end" else None)
    reached = [s for s in sequences if s.is_alone and 0 <= s.row < length]
    alone: Pairs | PackedQueries | None = None
    layout = layout_of(own, call.value)
    if reached and layout is not None:
        maps, finished = own.factors[0].shape[0], own.baked is not None
        alone = pairs_of(reached, length, shape, groups, maps, finished, layout)
    elif reached:
        alone = queries_alone(reached, length, shape, groups)
    spans = []
    for sequence in sequences:
        under, first = queries_under_map(length, sequence.span), sequence.queries.start
        if under is not None and not sequence.is_alone:
            spans.append((slice(first + under.start, first + under.stop), sequence.span))
    return PackedStep(shape, alone, spans)
