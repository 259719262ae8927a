"""Shifted sparse attention (S²-Attn) as a mask (Chen et al., "LongLoRA", 2023).

A token attends within its own group of G consecutive tokens. For the last ⌊H/2⌋ heads the groups
begin G/2 tokens earlier, so that they straddle the borders of the others. Nothing wraps around:
their first group has G/2 tokens and the last what is left. In a decoder no token sees a later one;
an encoder's groups, which are not of the publication, see both ways.

Shapes: B batch, H query heads, T queries, K key slots.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorada.attention.positions import locate


@dataclass(frozen=True)
class ShiftedGroups:
    """The groups of an attention module, at work while it trains.

    Attributes:
        size: G, in tokens; None for a quarter of the padded length of each batch, rounded up.
    """

    size: int | None = None

    def mask(
        self,
        kernel: str,
        query: Tensor,
        key: Tensor,
        mask: Any,
        kwargs: dict[str, Any],
        *,
        causal: bool = True,
    ) -> Tensor:
        """The mask (B, H, T, K) of a call: what ``mask`` shows, within the groups of each head.

        Groups count the real tokens of a sequence, so neither pads nor other samples move them.

        Raises:
            ValueError: for a kernel without such masks.
        """
        flat = mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 4)
        if flat or any(name in kernel for name in ("flash", "flex", "paged")):
            raise ValueError(
                f"shifted sparse attention needs a mask for each head, which {kernel} does not "
                "take: use attn_implementation='sdpa' or 'eager'"
            )
        heads, queries, keys = query.shape[1], query.shape[2], key.shape[2]
        window, positions = kwargs.get("sliding_window"), kwargs.get("position_ids")
        found = locate(queries, keys, mask, positions, length=queries, window=window, causal=causal)
        table = found.table(queries, keys, query.device)
        rows, columns = table.rows[:, None, :, None], table.columns[:, None, None, :]
        near = _in_groups(rows, columns, self.size or -(-queries // 4), heads)
        if mask is None:
            near = near & (columns <= rows) if causal else near
            mask = query.new_zeros(()) if kernel == "eager" else near.new_ones(())
        mask = mask[..., :keys] if mask.dim() else mask
        if mask.is_floating_point():
            return torch.where(near, mask, torch.finfo(mask.dtype).min)
        # A pad that would see nothing sees what it did: some kernels make a NaN of an empty row.
        seen = near & mask
        return torch.where(seen.any(-1, keepdim=True), seen, mask)


def _in_groups(rows: Tensor, columns: Tensor, size: int, heads: int) -> Tensor:
    """(B, H, T, K) booleans: whether query and key are in one group of a head."""
    head = torch.arange(heads, device=rows.device).view(1, -1, 1, 1)
    # The first group of a shifted head is ⌊G/2⌋ long.
    before = torch.where(head >= heads - heads // 2, size - size // 2, 0)
    near: Tensor = (rows + before) // size == (columns + before) // size
    return near
