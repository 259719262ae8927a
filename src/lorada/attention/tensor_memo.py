"""A cache of per-batch results, keyed by the identity and version of tensors.

Every layer of a model computes the same thing from the same mask and positions. The first layer
stores the result here and the others read it, also when gradient checkpointing runs them again.
Nothing has to be cleared: a result is deleted with its tensors, and each batch has new tensors.
"""

import operator
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Result = TypeVar("Result")

# Results per tensor. One is not enough: layers differ in their windows, and maps in their lengths.
CAPACITY = 8


class TensorMemo:
    """A cache for one pure function of tensors."""

    def __init__(self) -> None:
        self._results = WeakTensorKeyDictionary()

    def __call__(
        self, read: Mapping[str, Any], others: Hashable, compute: Callable[[], Result]
    ) -> Result:
        """The result of ``compute``, or that of an earlier call with the same arguments.

        Args:
            read: the inputs of ``compute`` by name: tensors, numbers and None. With any other type
                nothing is cached. The result lives as long as the first tensor, and must not hold
                any of the tensors.
            others: all else that the result depends on.
            compute: the function.
        """
        tensors, numbers = [], []
        for name, x in read.items():
            if isinstance(x, Tensor):
                tensors.append(x)
            elif x is None or isinstance(x, int):
                numbers.append((name, x))
            else:
                return compute()
        if not tensors or not _can_be_cached(tensors):
            return compute()
        first, *remaining = tensors
        # The entry of a tensor must not hold that tensor, or neither would ever be freed.
        rest = [None if tensor is first else tensor for tensor in remaining]
        # Which names are not numbers says which are tensors.
        key = ([tensor._version for tensor in tensors], numbers, others)
        entries = self._results.setdefault(first, [])
        for entry_rest, entry_key, result in entries:
            if entry_key == key and all(map(operator.is_, entry_rest, rest)):
                found: Result = result
                return found
        computed = compute()
        entries.append((rest, key, computed))
        del entries[:-CAPACITY]
        return computed


def _can_be_cached(tensors: Collection[Tensor]) -> bool:
    """Whether these tensors have version counters, and a result may be used in a later call."""
    # Dynamo cannot trace this cache. An export without it runs this code once, for all layers.
    if torch.compiler.is_dynamo_compiling() or torch.is_inference_mode_enabled():
        return False  # a backward pass cannot use tensors made in inference mode
    if any(tensor.is_inference() for tensor in tensors):
        return False
    # A captured CUDA graph runs again with other numbers in the same tensors.
    on_gpu = any(tensor.is_cuda for tensor in tensors)
    return not (on_gpu and torch.cuda.is_current_stream_capturing())
