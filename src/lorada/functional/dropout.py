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


def levels_of(p: float) -> int | None:
    """The p in so many ``LEVELS``; None if it is so close to 0 or 1 that nothing is drawn."""
    levels = round(p * LEVELS)
    return levels if 0 < levels < LEVELS else None


def draw(shape: torch.Size, levels: int, device: torch.device) -> Tensor:
    """The mask m, of booleans."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - levels / LEVELS)
    count = shape.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
    # Each word is four numbers of 16 bits, from -2¹⁵ on.
    drawn = words.random_(-(2**63), None).view(torch.int16)[:count]
    return (drawn >= levels - LEVELS // 2).view(shape)


def noise(kept: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """The mask m / (1 - p). As bytes, booleans become numbers in a quarter of the time."""
    return kept.view(torch.uint8).to(dtype).mul_(LEVELS / (LEVELS - levels))


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        kept = draw(x.shape, levels, x.device)
        ctx.save_for_backward(kept)
        ctx.levels = levels
        return x * noise(kept, levels, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return pull * noise(kept, ctx.levels, pull.dtype), None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``x`` with each number set to 0 with probability p, and the others divided by 1 - p."""
    levels = levels_of(p)
    plain = (
        not training
        or levels is None
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
