"""The dtype that small factors are computed in, without keeping wide copies for backward passes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available
from torch.utils.checkpoint import checkpoint


def wide_dtype(x: Tensor) -> torch.dtype:
    """float32, or the dtype of a tensor if that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """A tensor in float32, or in its own dtype if that is wider."""
    return x.to(wide_dtype(x))


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context without autocast on a device; the meta device never has any."""
    # Most calls run without autocast, and switching it off takes longer than to ask.
    if not is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_transformed() -> bool:
    """Whether the compiler or a transform of functions runs, which decide what to keep."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def nothing_is_recorded() -> bool:
    """Whether no graph is recorded, of gradients or for calls with other numbers."""
    return not (torch.is_grad_enabled() or is_transformed() or torch._C._is_tracing())


def recomputed(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``compute(x)``, of which only ``x`` is kept: the backward pass computes the rest again."""
    if is_transformed() or not torch.is_grad_enabled():
        return compute(x)
    result: Tensor = checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False)
    return result
