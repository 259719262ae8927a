"""Dropout that draws and keeps less than torch's on a CPU, with the same distribution.

    dropout(x) = m ⊙ x / (1 - p)        m_i = 0 with probability p, else 1

There torch draws 64 random bits for each number of x, and keeps m / (1 - p) in the dtype of x for
the backward pass. Here 32 bits are drawn for each number that is dropped. They say how many are
kept before it: k with probability p (1 - p)^k. The places of these numbers are kept, 4 bytes each.
So the time grows with p. On an accelerator torch draws m, a byte for each number.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

Places = np.ndarray[Any, np.dtype[np.integer[Any]]]
# numpy has no bfloat16. A number whose bytes are all 0 is 0 in every dtype.
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def drops(p: float) -> bool:
    """Whether dropout with probability p drops some numbers and keeps some."""
    return 0 < p < 1


def draw(x: Tensor, p: float) -> Tensor:
    """Which numbers of ``x`` are dropped, as it is kept: their places on a CPU, else a mask."""
    if not x.is_cpu:
        return x.new_empty(x.shape, dtype=torch.bool).bernoulli_(p)
    count = x.numel()
    if isinstance(x, FakeTensor):
        return x.new_empty(round(p * count), dtype=torch.int32)
    places = _places(count, p)
    return torch.from_numpy(places if count > 2**31 else places.astype(np.int32))


def _places(count: int, p: float) -> Places:
    """Of so many numbers those that are dropped, in order."""
    # numpy's generator takes half as long as torch's, which gives its seed.
    drawn = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_()))
    factor = np.float32(1 / np.log1p(-p))
    # Mostly enough; else more are drawn.
    many = int(count * p + 4 * np.sqrt(count * p * (1 - p))) + 8
    found, last = [], -1
    while last < count:
        words = drawn.random_raw(-(-many // 2)).view(np.uint32).astype(np.float32)
        uniform = (words + np.float32(0.5)) * np.float32(2**-32)  # in (0, 1]
        between = np.minimum(np.log(uniform) * factor, count)  # which may be beyond all integers
        steps = between.astype(np.int64) + 1
        places = torch.from_numpy(steps).cumsum(0).numpy() + last  # numpy's takes 4 times as long
        found.append(places)
        last = int(places[-1])
    places = found[0] if len(found) == 1 else np.concatenate(found)
    return places[: np.searchsorted(places, count)]


def drop_(x: Tensor, dropped: Tensor) -> Tensor:
    """``x``, contiguous, after the numbers that ``draw`` gave are set to 0 in place."""
    if not x.is_cpu:
        return x.masked_fill_(dropped, 0)
    if not isinstance(x, FakeTensor):
        numbers = x.detach().view(-1).view(INTEGERS[x.element_size()]).numpy()
        numbers[dropped.numpy().astype(np.int64)] = 0  # with int32 it takes 3 times as long
    return x


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        dropped = draw(x, p)
        ctx.save_for_backward(dropped)
        ctx.gain = 1 / (1 - p)
        return drop_((x * ctx.gain).contiguous(), dropped)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor, None]:
        (dropped,) = ctx.saved_tensors
        return drop_((pull * ctx.gain).contiguous(), dropped), None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``x`` with each number set to 0 with probability p, and the others divided by 1 - p."""
    plain = (
        not training
        or not drops(p)
        or not x.is_cpu
        or torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
    )
    return F.dropout(x, p, training) if plain else _Dropped.apply(x, p)


class Dropout(nn.Dropout):
    """``dropout`` in place of torch's module."""

    def forward(self, input: Tensor) -> Tensor:
        """``dropout`` of ``input``."""
        return dropout(input, self.p, self.training)
