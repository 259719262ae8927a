"""Shifted sparse attention (S²-Attn) as a mask (Chen et al., "LongLoRA", 2023).

A token attends within its own group of G consecutive tokens. For the last ⌊H/2⌋ heads the groups
begin G/2 tokens earlier, so that they straddle the borders of the others. Nothing wraps around:
their first group has G/2 tokens and the last what is left. In a decoder no token sees a later one;
an encoder's groups, which are not in the publication, see both ways.

Shapes: B batch, H query heads, T queries, K key slots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorada.attention.call import AttentionCall
from lorada.attention.locate import token_positions


@dataclass(frozen=True)
class ShiftedGroups:
    """The groups of an attention module, which it has only while it trains.

    Attributes:
        size: G, in tokens; None for a quarter of the padded length of each batch, rounded up.
    """

    size: int | None = None

    def mask(self, call: AttentionCall) -> Tensor:
        """The mask (B, H, T, K) of a call: what its own mask shows, within the groups of each head.

        Groups count the tokens of a sequence, so neither padding nor other samples move them.

        Raises:
            ValueError: for a kernel without such masks.
        """
        mask, name = call.mask, call.implementation
        flat = mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 4)
        if flat or call.kernel in ("flash", "flex") or "paged" in name:
            raise ValueError(
                f"shifted sparse attention needs a mask for each head, which {name} does not "
                "take: use attn_implementation='sdpa' or 'eager'"
            )
        queries, keys, causal = call.shape.queries, call.shape.keys, call.shape.causal
        table = token_positions(call).table(queries, keys, call.value.device)
        rows, columns = table.rows[:, None, :, None], table.columns[:, None, None, :]
        near = _in_groups(rows, columns, self.size or -(-queries // 4), call.shape.heads)
        if mask is None:
            near = near & (columns <= rows) if causal else near
            assert call.query is not None  # only dispatched attention has groups
            mask = call.query.new_zeros(()) if name == "eager" else near.new_ones(())
        mask = mask[..., :keys] if mask.dim() else mask
        if mask.is_floating_point():
            return torch.where(near, mask, torch.finfo(mask.dtype).min)
        # Padding that would see nothing keeps its mask: some kernels make a NaN of an empty row.
        seen = near & mask
        return torch.where(seen.any(-1, keepdim=True), seen, mask)


def _in_groups(rows: Tensor, columns: Tensor, size: int, heads: int) -> Tensor:
    """(B, H, T, K) booleans: whether query and key are in one group of a head."""
    head = torch.arange(heads, device=rows.device).view(1, -1, 1, 1)
    # The first group of a shifted head is ⌊G/2⌋ long.
    before = torch.where(head >= heads - heads // 2, size - size // 2, 0)
    near: Tensor = (rows + before) // size == (columns + before) // size
    return near
