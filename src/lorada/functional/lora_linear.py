"""A frozen linear layer with LoRA's update, as one function (Hu et al. 2022, Eq. 3).

    y = W x + c + s · B A dropout(x)

As operations of their own, autograd keeps dropout(x) for every adapted layer, a tensor as large as
x. Here x is kept, which is one tensor for all layers that read it, and the places of what dropout
set to 0. The last product adds the update to W x + c, with no tensors in between.
In inference, many tokens are multiplied with W + s · B A, which is computed for each call.

If x has bfloat16 and A and B have fp32, training multiplies in bfloat16, as autocast does, and sums
in fp32 inside of each product. The weights and their gradients stay in fp32. Casting x and y to
fp32 and back, at each layer, would take more time than the layer itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorada.functional.dropout import draw, drop_


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    p: float = 0.0,
    training: bool = False,
) -> Tensor:
    """A linear layer with LoRA's update, which can be differentiated once.

    Args:
        x: (..., d), in the dtype of ``weight``.
        weight: W, (e, d); it gets no gradient.
        bias: c, (e,), or none; it gets no gradient.
        a: (r, d), in the dtype of x or a more precise one. Then the update is computed and added
            in that dtype, and the sum is rounded; but see above for bfloat16.
        b: (e, r), in the dtype of ``a``.
        scale: s.
        p: the probability that dropout sets a number to 0, less than 1.
        training: whether dropout acts. If not, and there are no gradients, the form with the
            fewest multiplications is chosen.

    Returns:
        (..., e), in the dtype of x.
    """
    if not training:
        p = 0.0
    scale /= 1 - p  # so that dropout only sets numbers to 0
    if torch.is_grad_enabled():
        result: Tensor = _LoraLinear.apply(x, weight, bias, a, b, scale, p)
        return result
    if not training and x.dtype == a.dtype and _are_many(x, weight):
        return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)
    return _forward(x, weight, bias, a, b, scale, p)[0]


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        bias, a, b, ctx.scale, p = rest
        dtype = _dtype_of_products(x, a)
        a, b = a.to(dtype), b.to(dtype)
        y, inner, dropped = _forward(x, weight, bias, a, b, ctx.scale, p)
        ctx.save_for_backward(x, weight, a, b, inner, dropped)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, inner, dropped = ctx.saved_tensors
        pulls, rows = pull.reshape(-1, pull.shape[-1]), x.reshape(-1, x.shape[-1])
        precise = pulls.to(a.dtype)
        by_x, _, _, by_a, by_b, _, _ = ctx.needs_input_grad
        by_inner = torch.mm(precise, b).mul_(ctx.scale)
        for_b = torch.mm(precise.t(), inner).mul_(ctx.scale) if by_b else None
        for_a = torch.mm(by_inner.t(), _without(rows, dropped, a.dtype)) if by_a else None
        for_x = None
        if by_x:
            for_x = torch.mm(pulls, weight)
            if dropped is not None:
                for_x += drop_(torch.mm(by_inner, a), dropped)
            elif for_x.dtype == a.dtype:
                for_x.addmm_(by_inner, a)
            else:
                for_x += torch.mm(by_inner, a)
            for_x = for_x.view_as(x)
        # Autograd casts the gradients of A and B to the dtype of these.
        return for_x, None, None, for_a, for_b, None, None


def _dtype_of_products(x: Tensor, a: Tensor) -> torch.dtype:
    """The dtype that A dropout(x) and its product with B are computed in."""
    rounded = x.dtype == torch.bfloat16 and a.dtype == torch.float32
    return x.dtype if rounded else a.dtype


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    p: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The layer's output, A dropout(x) in rows, and what is dropped of x as ``draw`` gives it."""
    rows = x.reshape(-1, x.shape[-1])
    dropped = draw(rows, p) if p else None
    # In the shape of x at once: layers around this one may change it in place, but not a view.
    y = F.linear(rows.view(x.shape), weight, bias)
    inner = torch.mm(_without(rows, dropped, a.dtype), a.t())
    total = y.to(a.dtype)
    total.view(-1, y.shape[-1]).addmm_(inner, b.t(), alpha=scale)
    return total.to(y.dtype), inner, dropped


def _are_many(x: Tensor, weight: Tensor) -> bool:
    """Whether B A takes fewer multiplications than A x and B (A x) for all tokens."""
    outputs, inputs = weight.shape
    return x.numel() // inputs * (outputs + inputs) > outputs * inputs


def _without(x: Tensor, dropped: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``, with 0 for what is dropped of it, if anything is."""
    if dropped is None:
        return x.to(dtype)
    return drop_(x.to(dtype, copy=True, memory_format=torch.contiguous_format), dropped)
