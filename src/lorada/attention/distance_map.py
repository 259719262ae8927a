"""``DistanceMap``: the map by distance of one layer and call (``functional/distance.py``).

It reaches every visible pair of query and key, however long the sequence is. Two things say which
these are: the mask that the model made, and the rule (tokens of the same sequence, the causal order
and the sliding window). In almost every call they agree. Two routes to the product:

1. Whole sequences under the rule, in blocks, at a cost linear in the tokens; where there is
   padding, the values are first gathered into the order of the tokens.
2. In all other cases, such as behind a cache, the map is made, (S, T, K) for each sample.

Shapes: B batch, H query heads, G key/value heads, S map heads, T queries, K key slots, W taps,
D head width.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from lorada.attention.add_term import Term
from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.forward_inputs import is_recorded
from lorada.attention.positions import NO_TOKEN, TokenPositions, TokenSpan, TokenTable
from lorada.attention.under_map import UnderMap, map_positions
from lorada.functional.distance import distance_product, distance_weights
from lorada.functional.precision import no_autocast, wide, wide_dtype
from lorada.functional.product import apply_map


@dataclass(frozen=True)
class VisiblePairs:
    """The pairs of query and key of one call that see each other.

    Attributes:
        table: the number of each query and key in its sequence.
        seen: (B or 1, T, K) booleans; padding sees nothing, whatever a mask shows it.
    """

    table: TokenTable
    seen: Tensor


def visible(call: AttentionCall, *, as_pairs: bool = False) -> UnderMap | VisiblePairs:
    """What the map of a call reaches, found once for all layers.

    All keys in the order of their sequences, if each row is one sequence under the rule and every
    key slot is also a query; otherwise, and with ``as_pairs``, the visible pairs.
    """
    return call.once(lambda: _visible(call, as_pairs), "visible", as_pairs)


def _visible(call: AttentionCall, as_pairs: bool) -> UnderMap | VisiblePairs:
    positions, shape, mask = map_positions(call, None), call.shape, call.mask
    if isinstance(mask, Tensor) and mask.dim() == 2:
        mask = None  # it says which slots hold tokens, as the positions do; the kernel has the rule
    seen = None if mask is None else call.visible_keys()
    if seen is not None and seen.shape[1] != shape.queries:  # likewise for a mask (B, 1, 1, K)
        seen = None
    in_order = None if as_pairs else whole_sequences(positions, shape)
    if in_order is not None and (seen is None or _follows_rule(seen, positions, shape)):
        return in_order
    table = positions.table(shape.queries, shape.keys, call.value.device)
    seen = rule(table, shape) if seen is None else seen & table.real_queries()[..., None]
    return VisiblePairs(table, seen)


def whole_sequences(positions: TokenPositions, shape: CallShape) -> UnderMap | None:
    """All keys in the order of their sequences, if each row is one sequence of T = K tokens."""
    if shape.queries != shape.keys:
        return None
    if isinstance(positions, TokenSpan):
        return UnderMap(slice(0, shape.keys), shape.keys) if positions.first == 0 else None
    if not positions.is_whole or positions.sequences > 1:
        return None
    slots = positions.key_slots(shape.keys)
    return UnderMap(slots, shape.keys, queries=slots.targets())


def rule(table: TokenTable, shape: CallShape) -> Tensor:
    """(B or 1, T, K) booleans: tokens of the same sequence, in causal order, within the window."""
    rows, columns = table.rows[:, :, None], table.columns[:, None, :]
    seen = (columns != NO_TOKEN) & (rows != NO_TOKEN)
    if table.row_owner is not None and table.column_owner is not None:
        seen = seen & (table.row_owner[:, :, None] == table.column_owner[:, None, :])
    if shape.causal:
        seen = seen & (columns <= rows)
    if shape.window is not None:
        seen = seen & ((columns - rows).abs() < shape.window)
    return seen


def _follows_rule(seen: Tensor, positions: TokenPositions, shape: CallShape) -> bool:
    """Whether a mask (B, T, K) shows every token the keys that the rule shows it."""
    if is_recorded(seen):  # the answer is on the device
        return False
    table = positions.table(shape.queries, shape.keys, seen.device)
    padding = ~table.real_queries()[..., None]
    return bool(((rule(table, shape) == seen) | padding).all())


@dataclass(frozen=True)
class DistanceMap:
    """The taps of one map and its settings. Everything is computed in fp32 or wider.

    Attributes:
        factors: the taps (S, W) alone.
        inverse_scale: the map is divided by it.
        ablation: None; the ablations of Table 9 are about the paper's map.
    """

    factors: tuple[Tensor]
    inverse_scale: float

    ablation: ClassVar[None] = None

    def term_of(self, call: AttentionCall) -> Term:
        """tile(map)·V of a call, still to be computed."""
        reached = visible(call)
        queries = reached.queries if isinstance(reached, UnderMap) else None
        return Term(partial(self.term, call.shape, reached), queries)

    def term(self, shape: CallShape, reached: UnderMap | VisiblePairs, value: Tensor) -> Tensor:
        """tile(map)·V (B, T, H, D) of a call, from values (B, G, K, D); see ``visible``."""
        with no_autocast(value.device):
            taps = self._taps(value)
            if isinstance(reached, UnderMap):
                values, causal, window = reached.values(value), shape.causal, shape.window
                term = distance_product(taps, values, shape.heads, causal=causal, window=window)
            else:
                map_ = _map(taps, reached, shape)
                # A map that all samples share has no dimension for them.
                map_ = map_[0] if map_.shape[0] == 1 else map_
                term = apply_map(map_, wide(value), shape.heads)
            return term.transpose(1, 2)

    def weights(self, call: AttentionCall) -> Tensor:
        """The map in the shape of the attention map, (B or 1, H, T, K), zero where not visible."""
        pairs = visible(call, as_pairs=True)
        assert isinstance(pairs, VisiblePairs)
        with no_autocast(call.value.device):
            map_ = _map(self._taps(call.value), pairs, call.shape)
            return map_.repeat(1, call.shape.heads // map_.shape[1], 1, 1)

    def _taps(self, value: Tensor) -> Tensor:
        return self.factors[0].to(wide_dtype(value)) / self.inverse_scale


def _map(taps: Tensor, pairs: VisiblePairs, shape: CallShape) -> Tensor:
    """The map (B or 1, S, T, K) of all visible pairs."""
    table = pairs.table
    return distance_weights(taps, table.rows, table.columns, shape.causal, pairs.seen)
