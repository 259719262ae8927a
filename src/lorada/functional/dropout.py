"""Dropout that draws and keeps less than torch's on a CPU, with the same distribution.

    dropout(x) = m ⊙ x / (1 - p)        m_i = 0 with probability p, else 1

There torch draws 64 random bits for each number of x, and keeps m / (1 - p) in the dtype of x for
the backward pass. Here a number takes 8 bits and one in 256 takes 8 more, so p is rounded to a
multiple of 2⁻¹⁶. A bit of m is kept for each number. On an accelerator torch's own kernel does as
much.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

LEVELS = 2**16


def levels_of(p: float) -> int | None:
    """The p in so many ``LEVELS``; None if it is so close to 0 or 1 that nothing is drawn."""
    levels = round(p * LEVELS)
    return levels if 0 < levels < LEVELS else None


def gain_of(levels: int) -> float:
    """The factor 1 / (1 - p)."""
    return LEVELS / (LEVELS - levels)


def draw(x: Tensor, levels: int) -> Tensor:
    """The mask m for the numbers of ``x``, as it is kept: on a CPU a bit for each, else a byte."""
    count = x.numel()
    if not x.is_cpu:
        return x.new_empty(x.shape, dtype=torch.bool).bernoulli_(1 - levels / LEVELS)
    if isinstance(x, FakeTensor):
        return x.new_empty(-(-count // 8), dtype=torch.uint8)
    # A number is dropped if its 16 bits are less than ``levels``. The first 8 mostly tell.
    high, low = divmod(levels, 256)
    # numpy's generator takes half as long as torch's, which gives its seed.
    drawn = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_()))
    first = _bytes(drawn, count)
    kept = first > high
    (open_,) = np.nonzero(first == high)
    kept[open_] = _bytes(drawn, len(open_)) >= low
    return torch.from_numpy(np.packbits(kept))


def _bytes(drawn: np.random.SFC64, count: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    words: np.ndarray[Any, np.dtype[np.uint64]] = drawn.random_raw(-(-count // 8))
    return words.view(np.uint8)[:count]


def mask_of(kept: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask m as zeros and ones, from what ``draw`` gave for a tensor of the shape of ``x``."""
    if not x.is_cpu:
        # As bytes, booleans become numbers in a quarter of the time.
        return kept.view(torch.uint8).to(dtype)
    if isinstance(kept, FakeTensor):
        return x.new_empty(x.shape, dtype=dtype)
    bits = np.unpackbits(kept.numpy(), count=x.numel())
    return torch.from_numpy(bits).view(x.shape).to(dtype)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        kept = draw(x, levels)
        ctx.save_for_backward(kept)
        ctx.levels = levels
        return mask_of(kept, x, x.dtype).mul_(gain_of(levels)).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return mask_of(kept, pull, pull.dtype).mul_(gain_of(ctx.levels)).mul_(pull), None


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
