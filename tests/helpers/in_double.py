"""fp64 whatever the code asks for, in which two forms of one computation are compared."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, autograd
from torch.overrides import TorchFunctionMode


@contextmanager
def in_double() -> Iterator[None]:
    """Compute in fp64 what models and adapters would compute in fp32.

    Some do so by name (a softmax or a norm in fp32 whatever the model, the factors of a map), and
    would round one form of a computation to other numbers than another.
    """
    default = torch.get_default_dtype()
    with (
        # The mode is off inside the functions that it sees, and in other threads.
        mock.patch.object(autograd, "_engine_run_backward", wide(autograd._engine_run_backward)),
        mock.patch.object(threading.Thread, "run", wide(threading.Thread.run)),
        _Wide(),
    ):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def wide(function: Callable) -> Callable:
    """A function whose calls compute in fp64."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with _Wide():
            return function(*args, **kwargs)

    return call


class _Wide(TorchFunctionMode):
    BYTES = (Tensor.view, torch.frombuffer)  # a dtype there is how to read them

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.float:
            func = Tensor.double
        elif func is Tensor.unflatten:  # in Python, where torch.compile cannot follow
            func = torch.unflatten
        elif func is Tensor.view and torch.int32 in (*args[1:], *(kwargs or {}).values()):
            # Continuous batching hands fp32 on in the bytes of whole numbers.
            whole = not args[0].is_floating_point()
            args = (args[0] if whole else args[0].to(torch.float32), *args[1:])
        elif func not in self.BYTES:
            if len(args) > 1:
                args = [torch.float64 if arg is torch.float32 else arg for arg in args]
            if kwargs:
                kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **(kwargs or {}))
