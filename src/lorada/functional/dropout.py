"""Dropout that draws and keeps less than torch's on a CPU, with the same distribution.

    dropout(x) = m ⊙ x / (1 - p)        m_i = 0 with probability p, else 1

There torch draws 64 random bits for each number of x, and keeps m / (1 - p) in the dtype of x for
the backward pass. Here 16 bits are drawn, so p is rounded to a multiple of 2⁻¹⁶, and m is kept, one
byte for each number. On an accelerator torch's own kernel does as much.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 2**16


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        # Each word is four numbers of 16 bits, from -2¹⁵ on.
        drawn = words.random_(-(2**63), None).view(torch.int16)[: x.numel()]
        kept = (drawn >= levels - LEVELS // 2).view(x.shape)
        ctx.save_for_backward(kept)
        ctx.scale = LEVELS / (LEVELS - levels)
        return x * _noise(kept, x.dtype, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return pull * _noise(kept, pull.dtype, ctx.scale), None


def _noise(kept: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """The mask m / (1 - p). As bytes, booleans become numbers in a quarter of the time."""
    return kept.view(torch.uint8).to(dtype).mul_(scale)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``x`` with each number set to 0 with probability p, and the others divided by 1 - p."""
    levels = round(p * LEVELS)
    plain = (
        not training
        or not 0 < levels < LEVELS
        or not x.is_cpu
        or torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
    )
    return F.dropout(x, p, training) if plain else _Dropped.apply(x, levels)


class Dropout(nn.Dropout):
    """``dropout`` in place of torch's module."""

    def forward(self, input: Tensor) -> Tensor:
        """``dropout`` of ``input``."""
        return dropout(input, self.p, self.training)
