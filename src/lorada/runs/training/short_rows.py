"""Attention over short rows in bfloat16 on a CPU: plain products, which are faster there.

torch's fused kernel takes several times as long for its backward pass in bfloat16 as plain products
take, until rows are so long that the map of their tokens costs more (docs/performance.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

LONGEST = 128  # tokens


def are_short(inputs: dict[str, Any], dtype: torch.dtype) -> bool:
    """Whether plain products are faster for a batch of a training in ``dtype``."""
    tensors = [tensor for tensor in inputs.values() if isinstance(tensor, Tensor)]
    here = all(tensor.is_cpu for tensor in tensors)
    longest = max((tensor.shape[1] for tensor in tensors if tensor.dim() > 1), default=0)
    return here and dtype == torch.bfloat16 and longest <= LONGEST


@contextmanager
def plain_attention(acts: bool) -> Iterator[None]:
    """Compute ``scaled_dot_product_attention`` by plain products, if it ``acts``.

    The softmax's input is rounded to bfloat16, as in transformers' eager attention.
    """
    if not acts:
        yield
        return
    rounds = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # of the CPU too
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(rounds)
