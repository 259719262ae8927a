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


@dataclass(frozen=True)
class Layout:
    """How values (B, G, K, D) lie in memory, in rows of D numbers.

    Attributes:
        rows: how many rows there are from the first value to the last.
        sample: rows from a sample to the next.
        head: the same for heads.
        slot: the same for key slots.
    """

    rows: int
    sample: int
    head: int
    slot: int


@dataclass(frozen=True)
class Pairs:
    """Every pair of a query head and a map column that it sees, by query, head and column.

    Attributes:
        values: how the values lie.
        columns: how many columns of rows are read.
        rows: (C,) the map row of each query.
        places: (P,) where the value of the column is, in rows of memory behind the first value.
        entries: (P,) where the entry of the map is, in the flat map or in its flat rows.
        begins: (B·T·H + 1,) the number of the first pair of each head of each query of the call,
            and P at the end.
        read: the maps of all layers, by their identity, and their entries at the pairs.
    """

    values: Layout
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
        width, weights = value.shape[-1], self._weights(attention_map)
        if weights.dtype != value.dtype:
            weights = weights.to(value.dtype)
        # As few lines as can be: between two layers each takes several times as long as alone.
        rows = value.as_strided((self.values.rows, width), (width, 1))
        # ``nn.functional.embedding_bag`` calls this, after checks that take a tenth of the time.
        sums: Tensor = torch.embedding_bag(
            rows, self.places, self.begins, mode=0, per_sample_weights=weights,
            include_last_offset=True,
        )[0]  # fmt: skip
        return sums.view(-1, shape.queries, shape.heads, width)

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


def layout_of(attention_map: AttentionMap, value: Tensor) -> Layout | None:
    """How the values lie, if a term can be summed from ``Pairs``; None if it cannot.

    Half precision would have to be copied as fp32, and a softmax needs whole rows.
    """
    width = value.shape[-1]
    strides = value.stride()
    if attention_map.has_softmax or value.element_size() < 4 or strides[-1] != 1:
        return None
    if any(stride % width for stride in strides[:-1]):
        return None
    last = sum((size - 1) * step for size, step in zip(value.shape, strides, strict=True))
    sample, head, slot = (stride // width for stride in strides[:-1])
    return Layout(last // width + 1, sample, head, slot)


def pairs_of_table(
    attention_map: AttentionMap, table: TokenTable, shape: CallShape, value: Tensor
) -> Pairs | None:
    """The pairs of a batch with one query a row, found once for all layers.

    None if nothing may be read, or if the term cannot be summed from pairs.
    """
    layout = layout_of(attention_map, value) if shape.queries == 1 else None
    if layout is None or table.sequences > 1 or not can_be_read(value):
        return None
    length, maps = attention_map.length, attention_map.factors[0].shape[0]
    finished = attention_map.baked is not None
    sizes = len(value), value.shape[1], maps, finished
    return table.once(
        lambda: _pairs_of_table(table, length, shape, layout, *sizes),
        "pairs", length, shape.heads, shape.causal, shape.window, layout, sizes,
    )  # fmt: skip


def _pairs_of_table(
    table: TokenTable,
    length: int,
    shape: CallShape,
    layout: Layout,
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
    group = head // (shape.heads // groups)
    places = sample * layout.sample + group * layout.head + slots[sample, column] * layout.slot
    row, height = (rows[sample], length) if finished else (sample, batch)
    entries = (head % maps * height + row) * length + column
    counts = seen.sum(-1).expand(-1, shape.heads).flatten()
    begins = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return Pairs(layout, length, rows, places, entries, begins)
