"""``PackedStep``: a step of continuous batching on a CPU, prepared once for all layers.

Some sequences of a step bring a whole prompt, the others one token. Between the maps of two layers,
the weights of the model push all else out of the processor's caches, and a line of Python then
takes several times as long as alone. So a layer finds here whatever does not depend on its map.

Shapes: B batch, H query heads, G key/value heads, T queries, K key slots, N map length, D head
width, C queries that are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorada.attention import observation
from lorada.attention.attention_map import AttentionMap, take_rows
from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.map_positions import map_positions
from lorada.attention.packed_positions import PackedQueries, Pairs, pairs_of, read_parts
from lorada.attention.positions import TokenSpan, TokenTable
from lorada.attention.sliced_term import queries_under_map, sliced_term
from lorada.functional.product import apply_map


@dataclass(frozen=True)
class PackedStep:
    """The queries of a call with packed sequences that a map reaches.

    Attributes:
        shape: sizes of the call.
        alone: the queries whose sequence has no other query.
        pairs: the same as sums of values; None if values are copied instead.
        spans: queries of one sequence that follow each other, and where its tokens lie.
    """

    shape: CallShape
    alone: PackedQueries
    pairs: Pairs | None
    spans: Sequence[tuple[slice, TokenSpan]]

    @property
    def is_empty(self) -> bool:
        """Whether the map reaches no query."""
        return not self.spans and not len(self.alone.chosen)

    def term(self, attention_map: AttentionMap, value: Tensor) -> Tensor:
        """tile(Attn_s)·V of every query, (1, T, H, D) in fp32, from values (1, G, K, D)."""
        if self.pairs is None:
            term = term_of_rows(attention_map, self.alone, self.shape, value)
        else:
            term = self._sums(attention_map, self.pairs, value)
        for queries, span in self.spans:
            term[:, queries] = sliced_term(attention_map, span, self.shape, value)
        return term

    def _sums(self, attention_map: AttentionMap, pairs: Pairs, value: Tensor) -> Tensor:
        """The term of the queries that are alone, with zeros for other queries.

        Each head of a query gets a sum of values, weighted by entries of the map: an
        ``embedding_bag``, which reads the values where they are. A copy of them would take longer
        than all else.
        """
        map_ = attention_map.baked
        if map_ is None:
            map_ = attention_map.rows(self.alone.rows, self.alone.places.shape[2])
        weights = map_.reshape(-1).index_select(0, pairs.entries)
        values = value.transpose(1, 2).reshape(-1, value.shape[-1]).float()
        # ``nn.functional.embedding_bag`` calls this, after checks that take a tenth of the time.
        sums: Tensor = torch.embedding_bag(
            values, pairs.places, pairs.begins, mode=0, per_sample_weights=weights,
            include_last_offset=True,
        )[0]  # fmt: skip
        return sums.view(1, self.shape.queries, self.shape.heads, -1)


def known_step(call: AttentionCall, own: AttentionMap) -> PackedStep | None:
    """The step of continuous batching that a call belongs to; None for any other call.

    The first layer prepares it. The others would find all its parts again, but slowly: see
    ``PackedStep``.
    """
    steps, lengths = call.inputs.steps, call.cu_seq_lens
    if steps is None or lengths is None or not can_be_read(call.value):
        return None
    if observation.observers or own.samples is not None or torch.is_autocast_enabled("cpu"):
        return None
    shape, read = call.shape, (call.mask, *lengths)
    sizes = shape.queries, shape.keys, shape.heads, call.value.shape[1], call.value.dtype
    key = (*map(id, read), *sizes, shape.causal, shape.window, own.kind)
    if key not in steps:
        step, table = None, map_positions(call, own)
        if isinstance(table, TokenTable):
            step = packed_step(own, table, call.shape, call.value)
        # What was read is kept, so that no other tensor gets its identity.
        steps[key] = read, step
    found: PackedStep | None = steps[key][1]
    return found


def packed_step(
    attention_map: AttentionMap, table: TokenTable, shape: CallShape, value: Tensor
) -> PackedStep | None:
    """The step of a call with packed sequences in one row, behind a cache.

    None for another call, if the table cannot be read, or if the tokens of a sequence with several
    queries do not lie side by side.
    """
    packed = len(value) == 1 and table.sequences > 1 and table.rows is not table.columns
    if not packed or not can_be_read(table.rows):
        return None
    length, groups = attention_map.length, value.shape[1]
    parts = read_parts(table, length, shape, groups)
    if parts is None:
        return None
    alone, found = parts
    pairs = None
    # Half precision has to be copied as fp32, and a softmax needs whole rows.
    if not attention_map.has_softmax and value.element_size() >= 4:
        finished, maps = attention_map.baked is not None, attention_map.factors[0].shape[0]
        pairs = pairs_of(table, alone, length, shape, maps, finished)
    spans = []
    for first, span in found:
        reached = queries_under_map(length, span)
        if reached is not None:
            spans.append((slice(first + reached.start, first + reached.stop), span))
    return PackedStep(shape, alone, pairs, spans)


def term_of_rows(
    attention_map: AttentionMap, found: PackedQueries, shape: CallShape, value: Tensor
) -> Tensor:
    """The term (B, T, H, D) with zeros for other queries. Each query becomes a sample."""
    batch, _, _, width = value.shape
    # One copy of whole rows: an index for each dimension would take ten times as long.
    values = value.transpose(1, 2).reshape(-1, width).index_select(0, found.places.flatten())
    values = values.view(*found.places.shape, width).float()  # (C, G, M, D)
    if attention_map.has_softmax:
        map_ = attention_map.masked(attention_map.dense(), shape, found.real)
        map_ = take_rows(map_, found.rows[:, None])[..., : values.shape[2]]
        map_ = map_ * found.used[:, None, None]
    else:
        map_ = attention_map.rows(found.rows, values.shape[2]).transpose(0, 1)  # (C, S, M)
        map_ = (map_ * found.seen[:, None])[:, :, None]
    term = apply_map(map_, values, shape.heads, shape.matmul)[:, :, 0]
    if len(term) < batch * shape.queries:
        whole = term.new_zeros(batch * shape.queries, *term.shape[1:])
        term = whole.index_copy(0, found.chosen, term)
    return term.view(batch, shape.queries, *term.shape[1:])


def can_be_read(numbers: Tensor) -> bool:
    """Whether numbers are on the CPU, where reading them waits for nothing.

    Not where a graph is recorded, of gradients or for calls with other numbers.
    """
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._is_tracing()
    if recorded or torch._C._are_functorch_transforms_active():
        return False
    return type(numbers) is Tensor and numbers.is_cpu
