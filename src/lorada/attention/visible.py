"""``VisiblePairs``: which keys each query of an attention call may see.

The maps by distance and by content act on every visible pair of query and key. Two things say which
these are: the mask that the model made, and the rule (tokens of the same sequence, the causal order
and the sliding window). In almost every call they agree. A call on whole sequences in which they do
is ``ordered``, and its maps are computed without a matrix of pairs.

Shapes: B batch, T queries, K key slots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorada.attention.call import AttentionCall, CallShape
from lorada.attention.locate import remembered_for
from lorada.attention.positions import NO_TOKEN, TokenPositions, TokenSpan, TokenTable
from lorada.attention.tensor_memo import TensorMemo

_memo = TensorMemo()


@dataclass(frozen=True)
class VisiblePairs:
    """The visible pairs of one call.

    Attributes:
        positions: the number of each query and key in its sequence.
        shape: the sizes of the call.
        mask: (B, T, K) booleans of the model's mask; None if the rule alone decides.
        ordered: whether the rule alone decides, each row is one sequence, and every key slot is
            also a query, in the same order.
    """

    positions: TokenPositions
    shape: CallShape
    mask: Tensor | None
    ordered: bool

    @property
    def sees_all_before(self) -> bool:
        """Whether ``ordered`` pairs lack none for a sliding window."""
        window = self.shape.window
        return self.ordered and (window is None or window >= self.shape.keys)

    def table(self, device: torch.device) -> TokenTable:
        """The positions as a table."""
        return self.positions.table(self.shape.queries, self.shape.keys, device)

    def pairs(self, device: torch.device) -> Tensor:
        """(B or 1, T, K) booleans; padding sees nothing, whatever a mask shows it."""
        table = self.table(device)
        if self.mask is None:
            return rule(table, self.shape)
        return self.mask & table.real_queries()[..., None]


def visible_pairs(call: AttentionCall, positions: TokenPositions) -> VisiblePairs:
    """The visible pairs of a call; ``positions`` are those of its tokens."""
    shape, mask = call.shape, call.mask
    whole = shape.queries == shape.keys and _one_sequence(positions)
    # A mask (B, K) says which slots hold tokens, as the positions do, and the kernel has the rule.
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return VisiblePairs(positions, shape, None, whole)
    seen = call.visible_keys()
    if seen.shape[1] != shape.queries:  # likewise for a mask (B, 1, 1, K)
        return VisiblePairs(positions, shape, None, whole)
    ordered = whole and remembered_for(call, _memo, lambda: _follows_rule(seen, positions, shape))
    return VisiblePairs(positions, shape, None if ordered else seen, ordered)


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


def _one_sequence(positions: TokenPositions) -> bool:
    """Whether the rows of T = K tokens are one sequence each, whose queries are its keys."""
    if isinstance(positions, TokenSpan):
        return positions.first == positions.start == 0
    return positions.rows is positions.columns and positions.sequences == 1


def _follows_rule(seen: Tensor, positions: TokenPositions, shape: CallShape) -> bool:
    """Whether a mask (B, T, K) shows every token the keys that the rule shows it."""
    # The answer is on the device. A compiled graph and a captured one cannot branch on it.
    if torch.compiler.is_compiling():
        return False
    if seen.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    table = positions.table(shape.queries, shape.keys, seen.device)
    padding = ~table.real_queries()[..., None]
    return bool(((rule(table, shape) == seen) | padding).all())
