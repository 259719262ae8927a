"""A cache of per-batch results, keyed by the identity and version of tensors.

Every layer of a model asks the same question about the same mask and positions. The first layer
computes the answer, and the others find it here, also when gradient checkpointing runs them again.
Nothing has to be cleared: an answer goes when its tensors do, and another batch is other tensors.
"""

import operator
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Answer = TypeVar("Answer")

# How many answers a tensor keeps: layers may differ in their windows, and maps in their lengths.
CAPACITY = 8


class TensorMemo:
    """The answers of one pure function of tensors."""

    def __init__(self) -> None:
        self._answers = WeakTensorKeyDictionary()

    def __call__(
        self, read: Mapping[str, Any], others: Hashable, compute: Callable[[], Answer]
    ) -> Answer:
        """The result of ``compute``, or that of an earlier call with the same arguments.

        Args:
            read: what ``compute`` reads, by name: tensors, numbers and None. With anything else
                among them, nothing is cached. The answer, which must hold none of the tensors,
                lives as long as the first of them.
            others: what else the answer depends on.
            compute: the function.
        """
        tensors = {name: x for name, x in read.items() if isinstance(x, Tensor)}
        numbers = {name: x for name, x in read.items() if name not in tensors}
        plain = all(isinstance(x, int | None) for x in numbers.values())
        if not tensors or not plain or not _can_be_cached(tensors.values()):
            return compute()
        first, *remaining = tensors.values()
        # The entry of a tensor must not hold that tensor, or it would never go.
        rest = [None if tensor is first else tensor for tensor in remaining]
        versions = [tensor._version for tensor in tensors.values()]
        question = (tuple(tensors), versions, numbers, others)
        answers = self._answers.setdefault(first, [])
        for known_rest, known_question, answer in answers:
            if known_question == question and all(map(operator.is_, known_rest, rest)):
                found: Answer = answer
                return found
        computed = compute()
        answers.append((rest, question, computed))
        del answers[:-CAPACITY]
        return computed


def _can_be_cached(tensors: Collection[Tensor]) -> bool:
    """Whether a change of these tensors would show, and a result of now may be used later."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return False  # a backward pass cannot use what was made in inference mode
    if any(tensor.is_inference() for tensor in tensors):
        return False
    # A captured CUDA graph runs again over other numbers in the same tensors.
    on_gpu = any(tensor.is_cuda for tensor in tensors)
    return not (on_gpu and torch.cuda.is_current_stream_capturing())
