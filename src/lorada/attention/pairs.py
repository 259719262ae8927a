"""``Pairs``: the term of single queries as weighted sums of values, read where they lie.

In decoding, each row of a batch or each packed sequence has one query, and each has its tokens at
other slots. A copy of the values in the order of the map would take longer than all else.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, N map
length, D head width, C queries that are computed, P pairs of a query head and a map column.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import CallShape
from lorada.attention.positions import TokenTable, can_be_read
from lorada.functional.maps import visible_pairs

# How many rows of D numbers lie in memory between two samples, two heads and two slots of values.
Steps = tuple[int, int, int]


@dataclass(frozen=True)
class Pairs:
    """Every pair of a query head and a map column that it sees, by query, head and column.

    Attributes:
        columns: how many columns of rows are read.
        rows: (C,) the map row of each query.
        places: (P,) where the value of the column is, in rows of memory behind the first value.
        entries: (P,) where the entry of the map is, in the flat map or in its flat rows.
        begins: (B·T·H + 1,) the number of the first pair of each head of each query of the call,
            and P at the end.
        read: the maps of all layers, by their identity, and their entries at the pairs.
    """

    columns: int
    rows: Tensor
    places: Tensor
    entries: Tensor
    begins: Tensor
    read: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def term(self, attention_map: AttentionMap, shape: CallShape, value: Tensor) -> Tensor:
        """tile(Attn_s)·V of every query, (B, T, H, D), with zeros for queries without pairs.

        Each head of a query gets a sum of values, weighted by entries of the map: an
        ``embedding_bag``.
        """
        rows, weights = _rows_of_memory(value), self._weights(attention_map).to(value.dtype)
        # ``nn.functional.embedding_bag`` calls this, after checks that take a tenth of the time.
        sums: Tensor = torch.embedding_bag(
            rows, self.places, self.begins, mode=0, per_sample_weights=weights,
            include_last_offset=True,
        )[0]  # fmt: skip
        return sums.view(-1, shape.queries, shape.heads, value.shape[-1])

    def _weights(self, attention_map: AttentionMap) -> Tensor:
        """(P,) the entry of the map of each pair; those of all layers are read by the first."""
        if attention_map.layers is None:
            map_ = attention_map.baked
            if map_ is None:
                map_ = attention_map.rows(self.rows, self.columns)
            return map_.take(self.entries)
        whole, number = attention_map.layers
        if id(whole) not in self.read:
            every = whole.flatten(1).gather(1, self.entries.expand(len(whole), -1))
            self.read[id(whole)] = whole, every
        return self.read[id(whole)][1][number]


def steps_of_sums(attention_map: AttentionMap, value: Tensor) -> Steps | None:
    """How the values lie, if a term can be summed from ``Pairs``; None if it cannot.

    Half precision would have to be copied as fp32, and a softmax needs whole rows.
    """
    width = value.shape[-1]
    strides = value.stride()
    if attention_map.has_softmax or value.element_size() < 4 or strides[-1] != 1:
        return None
    if any(stride % width for stride in strides[:-1]):
        return None
    batch, head, slot = (stride // width for stride in strides[:-1])
    return batch, head, slot


def pairs_of_table(
    attention_map: AttentionMap, table: TokenTable, shape: CallShape, value: Tensor
) -> Pairs | None:
    """The pairs of a batch with one query a row, found once for all layers.

    None if nothing may be read, or if the term cannot be summed from pairs.
    """
    steps = steps_of_sums(attention_map, value) if shape.queries == 1 else None
    if steps is None or table.sequences > 1 or not can_be_read(value):
        return None
    length, maps = attention_map.length, attention_map.factors[0].shape[0]
    finished = attention_map.baked is not None
    sizes = len(value), value.shape[1], maps, finished
    return table.once(
        lambda: _pairs_of_table(table, length, shape, steps, *sizes),
        "pairs", length, shape.heads, shape.causal, shape.window, steps, sizes,
    )  # fmt: skip


def _pairs_of_table(
    table: TokenTable,
    length: int,
    shape: CallShape,
    steps: Steps,
    batch: int,
    groups: int,
    maps: int,
    finished: bool,
) -> Pairs:
    rows, inside = table.query_rows(length)
    slots, real = table.key_slots(length)
    seen = real[:, None] & inside[..., None]
    visible = visible_pairs(rows, length, shape.causal, shape.window)
    seen = (seen if visible is None else seen & visible).expand(batch, -1, -1)  # (B, 1, N)
    slots, rows = slots.expand(batch, -1), rows.expand(batch, -1)[:, 0]
    # Every head of a query sees the same columns.
    sample, head, column = seen.expand(-1, shape.heads, -1).nonzero().unbind(1)
    of_sample, of_head, of_slot = steps
    group = head // (shape.heads // groups)
    places = sample * of_sample + group * of_head + slots[sample, column] * of_slot
    row, height = (rows[sample], length) if finished else (sample, batch)
    entries = (head % maps * height + row) * length + column
    counts = seen.sum(-1).expand(-1, shape.heads).flatten()
    begins = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return Pairs(length, rows, places, entries, begins)


def _rows_of_memory(value: Tensor) -> Tensor:
    """Values as rows (·, D) of memory, from the first value to the last; see ``steps_of_sums``."""
    width = value.shape[-1]
    last = sum(
        (size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)
    )
    return value.as_strided((last // width + 1, width), (width, 1))
