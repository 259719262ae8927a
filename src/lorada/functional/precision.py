"""``wide``: the dtype that small factors are computed in."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """A tensor in float32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
