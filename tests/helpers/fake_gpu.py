"""A GPU where there is none: models and batches of fake CUDA tensors, and what the host reads.

A fake tensor of torch has a shape, a dtype and a device, but no numbers. torch refuses operations
that mix devices as it would on a GPU. ``FakeGpu`` also refuses those in which the host waits.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import transformers.masking_utils
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lorada
from lorada.attention import forward_inputs

aten = torch.ops.aten
GPU = torch.device("cuda:0")
# Autograd in C++ asks the device of each tensor for a stream, and torch without CUDA has none for
# it. So C++ is told another device that is neither CPU nor meta and needs no streams.
TOLD_TO_AUTOGRAD = torch.device("lazy:0")
# The folders that these are imported from. The name of a folder says nothing: a clone of this
# repository is called lorada too, and has tests and an environment with every other package in it.
PACKAGES = [Path(package.__file__).parent for package in (lorada, transformers, peft)]

# Operations whose result, or the size of it, the host needs.
READING = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select,
    aten.bincount, aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


# Operations that start nothing on a GPU, beside all that only look at a tensor in another way.
FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "lift_fresh",
    "_unsafe_view", "_reshape_alias", "device", "promote_types", "result_type",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU would compute."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        self.count += not (func.is_view or func.overloadpacket.__name__ in FREE)
        return func(*args, **(kwargs or {}))


class HostRead(AssertionError):
    """The host waits for the GPU where no table says that it may."""


class Fp64(AssertionError):
    """A tensor in fp64 on the device, which Apple's and some of Intel's do not have."""


class FakeGpu(TorchDispatchMode):
    """Sees every operation; raises ``HostRead`` where the host waits, and ``Fp64``.

    ``allowed`` has the reads that may be, by ``package/file.py:function``, and the number that each
    reads, as a fake tensor has none; None where it needs no number. Of booleans whose places are
    read, all are true. ``reads`` counts them.
    """

    sent = -1  # the number that the GPU sends without being waited for; -1: it has not arrived

    def __init__(self, allowed: Mapping[str, Any]) -> None:
        super().__init__()
        self._allowed = allowed
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on fake tensors."""
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:  # only C++ asks in this way
            return TOLD_TO_AUTOGRAD if on_gpu(args[0]) else args[0].fake_device
        if kwargs.get("device") == TOLD_TO_AUTOGRAD:
            kwargs["device"] = GPU
        if not waits(func, args, kwargs):
            result = func(*args, **kwargs)
            for made in tree_leaves(result):
                if on_gpu(made) and made.dtype == torch.float64:
                    raise Fp64(f"{func} in {reader()} makes fp64 on a device that may lack it")
            return result
        place = reader()
        if place.startswith("transformers/masking_utils.py:"):  # it may: it finds pads
            return False
        if place not in self._allowed:
            raise HostRead(f"{func} in {place} makes the host wait for the GPU")
        self.reads[place] += 1
        if func is aten.nonzero.default:
            return args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.long)
        answer = self._allowed[place]
        return func(*args, **kwargs) if answer is None else answer


def waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host waits for the GPU in an operation."""
    kind = func.overloadpacket
    if kind is aten._to_copy:
        target = kwargs.get("device")
        return on_gpu(args[0]) and target is not None and target.type == "cpu"
    if kind is aten.copy_:
        return on_gpu(args[1]) and not on_gpu(args[0])
    if kind in INDEXING:  # the host needs to know how many entries a boolean mask chooses
        return any(on_gpu(index) and index.dtype == torch.bool for index in args[1])
    if func is aten.repeat_interleave.Tensor:
        return on_gpu(args[0]) and kwargs.get("output_size") is None
    return kind in READING and any(map(on_gpu, tree_leaves(args)))


def on_gpu(x: Any) -> bool:
    return isinstance(x, FakeTensor) and x.fake_device.type == GPU.type


def reader() -> str:
    """The innermost running function of lorada, transformers or PEFT, with its file."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        for package in PACKAGES:
            if file.is_relative_to(package):
                return f"{file.relative_to(package.parent).as_posix()}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "no package"


@contextmanager
def fake_gpu(allowed: Mapping[str, Any]) -> Iterator[FakeGpu]:
    """Inside, tensors are fake, and ``GPU`` is a device to make them on."""
    with pytest.MonkeyPatch.context() as patch:
        # It asks C++, which is told another device.
        patch.setattr(FakeTensor, "is_cuda", property(on_gpu), raising=False)
        # torch without CUDA raises here. Nothing is captured.
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        # transformers takes fake tensors for a graph that is traced, and then reads no mask.
        patch.setattr(transformers.masking_utils, "is_tracing", lambda *_: False)
        with FakeTensorMode(), FakeGpu(allowed) as gpu:
            patch.setattr(forward_inputs, "sent_later", lambda number: gpu.sent)
            yield gpu


def move(model: nn.Module) -> None:
    """Put a model's parameters and buffers on ``GPU``; other tensors that it has stay behind.

    ``model.to`` would do the same, but needs CUDA.
    """
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                new = nn.Parameter(_on_gpu(weight), requires_grad=weight.requires_grad)
                module._parameters[name] = made.setdefault(id(weight), new)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _on_gpu(buffer)


def _on_gpu(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=GPU)
