"""Selective activation checkpointing: computes again what is larger than what it is made from.

Within a layer of a transformers model autograd keeps neither

- the outputs of norms and of activation functions,
- the outputs of linear layers that are wider than their input (the first of a feed-forward block),
- nor the product of an activation and its gate.

The backward pass computes them again, from what is kept anyway. A feed-forward block with a gate
keeps its input alone, instead of four tensors that are several times as wide. All values are the
same as without, bit for bit: the modules run again, with the random numbers they had.

This works in any model. It reads modules, not the operations in them: torch's own selective
checkpointing looks at every operation in Python, which takes half as long again as the step.
"""

import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import get_device_states, set_device_states
from transformers.pytorch_utils import Conv1D

ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")  # where they are defined


class _Kept:
    """A tensor that is kept."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach()
        self._version = tensor._version

    def claim(self) -> None:
        """Nothing: it stays."""

    def value(self) -> Tensor:
        """The tensor, which must not have been changed."""
        if self._tensor._version != self._version:
            raise RuntimeError(
                "a tensor that the backward pass needs was changed in place; "
                "train with activation_checkpointing=off"
            )
        return self._tensor


class _Again:
    """A tensor that is not kept. It is computed when it is read first, and held until the last."""

    def __init__(
        self,
        compute: Callable[..., Tensor],
        inputs: "list[_Kept | _View]",
        before: "_Before | None" = None,
    ) -> None:
        self._compute = compute
        self._inputs = inputs
        self._before = before
        self._claims = 0
        self._reads = 0
        self._result: Tensor | None = None

    def claim(self) -> None:
        """Say that it will be read once more."""
        if not self._claims:
            for source in self._inputs:
                source.claim()
        self._claims += 1

    def value(self) -> Tensor:
        """The tensor, contiguous."""
        result = self._result
        if result is None:
            inputs = [source.value() for source in self._inputs]
            with torch.no_grad(), self._before or nullcontext():
                result = self._result = self._compute(*inputs).contiguous()
        self._reads += 1
        if self._reads >= self._claims:  # a graph that is retained reads all again
            self._result, self._reads = None, 0
        return result


class _View:
    """A tensor in the storage of one that is computed again."""

    def __init__(self, tensor: Tensor, again: _Again) -> None:
        self._again = again
        self._place = tensor.size(), tensor.stride(), tensor.storage_offset()

    def claim(self) -> None:
        """Say that it will be read once more."""
        self._again.claim()

    def value(self) -> Tensor:
        """The tensor."""
        return self._again.value().as_strided(*self._place)


class _Before:
    """The random numbers and the autocast with which a module ran, as a context.

    Args:
        x: the module's input.
        draws: whether the module draws random numbers.
    """

    def __init__(self, x: Tensor, draws: bool) -> None:
        self._kind = kind = x.device.type
        self._cast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        self._here = torch.get_rng_state() if draws else None
        self._elsewhere = get_device_states(x) if draws else ((), [])
        self._stack = ExitStack()

    def __enter__(self) -> None:
        enabled, dtype = self._cast
        self._stack.enter_context(torch.autocast(self._kind, enabled=enabled, dtype=dtype))
        if self._here is not None:
            devices, states = self._elsewhere
            fork = torch.random.fork_rng(devices, device_type=self._kind)
            self._stack.enter_context(fork)
            torch.set_rng_state(self._here)
            if devices:
                set_device_states(devices, states, device_type=self._kind)

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


class _Recorder(threading.local):
    """Knows, while a layer runs, which tensors can be computed again.

    Each thread has its own state, as several GPUs without processes of their own run in threads.
    """

    def __init__(self) -> None:
        self._contexts: list[saved_tensors_hooks | None] = []
        # Outputs of modules by storage; inputs and outputs by their place in the graph. Both are
        # for the layer that runs.
        self._outputs: dict[int, tuple[weakref.ref[Tensor], int, _Again]] = {}
        self._sources: dict[tuple[Any, int], _Kept | _View] = {}
        self._before: _Before | None = None  # of the module that runs

    def __reduce__(self) -> Any:
        return _Recorder, ()  # a copied model has its own

    def begin(self, layer: nn.Module, _: Any) -> None:
        """Before a layer: let autograd ask here what to keep."""
        if torch.compiler.is_compiling():
            return
        acts = torch.is_grad_enabled() and layer.training
        context = saved_tensors_hooks(self._pack, lambda packed: packed.value()) if acts else None
        self._contexts.append(context)
        if context is not None:
            context.__enter__()

    def end(self, layer: nn.Module, _: Any, output: Any) -> None:
        """After a layer, or an error in it."""
        if torch.compiler.is_compiling() or not self._contexts:
            return
        context = self._contexts.pop()
        if context is not None:
            context.__exit__()
        if not self._contexts:
            self._outputs.clear()
            self._sources.clear()

    def before(self, module: nn.Module, args: Any) -> None:
        """Before a norm, an activation function or a linear layer."""
        acts = self._contexts and self._contexts[-1] is not None
        if not acts or not args or not isinstance(args[0], Tensor):
            return
        x = args[0]
        self._before = _Before(x, draws=isinstance(module, BaseTunerLayer))
        node = x.grad_fn
        if node is None:
            return
        if node.name() == "MulBackward0" and _is_linear(module):
            factors = [self._sources.get(source) for source in node.next_functions]
            if len(factors) == 2 and None not in factors:
                self._register(x, _Again(torch.mul, factors))  # type: ignore[arg-type]
        self._sources.setdefault((node, x.output_nr), self._packed(x))

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """After a norm, an activation function or a linear layer."""
        before, self._before = self._before, None
        if before is None or kwargs or len(args) != 1 or not isinstance(output, Tensor):
            return
        (x,) = args
        if _is_linear(module) and output.numel() <= x.numel():
            return
        self._register(output, _Again(module.forward, [self._packed(x)], before))

    def _register(self, output: Tensor, again: _Again) -> _View | None:
        """Note how ``output`` can be computed again; None if it does not fill its storage."""
        storage = output.untyped_storage()
        if not output.is_contiguous() or storage.nbytes() != output.numel() * output.element_size():
            return None
        self._outputs[storage._cdata] = weakref.ref(output), output._version, again
        view = _View(output, again)
        if output.grad_fn is not None:
            self._sources[output.grad_fn, output.output_nr] = view
        return view

    def _packed(self, tensor: Tensor) -> _Kept | _View:
        """A tensor as it is kept, or how it can be computed again."""
        if tensor.layout != torch.strided:
            return _Kept(tensor)
        found = self._outputs.get(tensor.untyped_storage()._cdata)
        if found is not None:
            seen, version, again = found
            output = seen()
            if output is not None and output._version == version:  # still what the module gave
                return _View(tensor, again)
        return self._cast(tensor) or _Kept(tensor)

    def _cast(self, tensor: Tensor) -> _View | None:
        """A module's input in another dtype, as norms compute in; None for any other tensor."""
        node = tensor.grad_fn
        if node is None or node.name() != "ToCopyBackward0" or tensor._version:
            return None
        source = self._sources.get(node.next_functions[0])
        if source is None:
            return None
        cast = partial(Tensor.to, device=tensor.device, dtype=tensor.dtype)
        return self._register(tensor, _Again(cast, [source]))

    def _pack(self, tensor: Tensor) -> _Kept | _View:
        packed = self._packed(tensor)
        packed.claim()
        return packed


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, adapted or not."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return isinstance(base, nn.Linear | Conv1D)


def _is_cheap(module: nn.Module) -> bool:
    """Whether a module is a norm or an activation function."""
    kind = type(module)
    if next(module.children(), None) is not None:
        return False
    return kind.__name__.endswith("Norm") or kind.__module__ in ACTIVATIONS


def checkpoint_selectively(model: nn.Module) -> None:
    """Let the layers of a model keep less, while it trains."""
    recorder = _Recorder()
    inside: set[nn.Module] = set()  # what an adapted linear layer is made of
    watched: set[nn.Module] = set()
    for modules in list(model.modules()):
        for layer in modules if isinstance(modules, nn.ModuleList) else ():
            layer.register_forward_pre_hook(recorder.begin)
            for module in layer.modules():
                linear = _is_linear(module)
                if linear and module not in inside:
                    inside.update(set(module.modules()) - {module})
                if module not in inside | watched and (linear or _is_cheap(module)):
                    watched.add(module)
                    module.register_forward_pre_hook(recorder.before)
                    # First, so that it sees what ``forward`` gave, before other hooks change it.
                    module.register_forward_hook(recorder.after, prepend=True, with_kwargs=True)
            layer.register_forward_hook(recorder.end, always_call=True)
