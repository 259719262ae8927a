"""Shifted sparse attention (S²-Attn) as a mask (Chen et al., "LongLoRA", 2023).

A token attends within its own group of G consecutive tokens. For the last ⌊H/2⌋ heads the groups
begin G/2 tokens earlier, so that they cross the borders of the other heads' groups. They do not
wrap around: their first group has G/2 tokens and the last one the rest. In a decoder no token sees
a later one. In an encoder, which the publication does not treat, a token sees its whole group.

Shapes: B batch, H query heads, T queries, K key slots.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorada.attention.call import AttentionCall, implementation_of
from lorada.attention.forward_inputs import NOTHING_KNOWN, ForwardInputs, ForwardListener
from lorada.attention.positions import token_positions


@dataclass(frozen=True)
class ShiftedGroups:
    """The groups of an attention module; they are used only in training."""

    size: int | None = None  # G; None for a quarter of the padded length of each batch, rounded up
    listener: ForwardListener | None = field(default=None, compare=False, repr=False)

    @property
    def forward_inputs(self) -> ForwardInputs:
        """The inputs of the running forward of the model."""
        return NOTHING_KNOWN if self.listener is None else self.listener.inputs

    def mask(self, call: AttentionCall) -> Tensor:
        """The mask (B, H, T, K) of a call: its own mask, cut to the groups of each head.

        Groups count the tokens of a sequence, so padding and packed sequences do not move them.

        A kernel that takes no mask for each head is refused.
        """
        mask, name = call.mask, implementation_of(call.module)
        flat = mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 4)
        if flat or call.kernel in ("flash", "flex") or "paged" in name:
            raise ValueError(
                f"shifted sparse attention needs a mask for each head, which {name} does not "
                "take: use attn_implementation='sdpa' or 'eager'"
            )
        queries, keys, heads = call.shape.queries, call.shape.keys, call.shape.heads
        table = token_positions(call).table(queries, keys, call.value.device)
        rows, columns = table.rows[:, None, :, None], table.columns[:, None, None, :]
        size = self.size or -(-queries // 4)
        head = torch.arange(heads, device=rows.device).view(1, -1, 1, 1)
        # The first group of a shifted head is ⌊G/2⌋ long.
        before = torch.where(head >= heads - heads // 2, size - size // 2, 0)
        near = (rows + before) // size == (columns + before) // size
        if mask is None:
            near = near & (columns <= rows) if call.shape.causal else near
            assert call.query is not None  # only dispatched attention has groups
            mask = call.query.new_zeros(()) if name == "eager" else near.new_ones(())
        mask = mask[..., :keys] if mask.dim() else mask
        if mask.is_floating_point():
            return torch.where(near, mask, torch.finfo(mask.dtype).min)
        # A row of padding that would see no key keeps its own mask: for a row without keys some
        # kernels return NaN.
        seen = near & mask
        return torch.where(seen.any(-1, keepdim=True), seen, mask)
