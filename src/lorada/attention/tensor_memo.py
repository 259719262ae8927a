"""What was computed from a batch's tensors, kept for as long as they live and stay as they are.

Every layer of a model asks the same questions of the same mask and positions. The first one's
answer serves them all, and the recomputation of gradient checkpointing too; there is no moment at
which it would have to be forgotten, because another batch is other tensors.
"""

import operator
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Answer = TypeVar("Answer")

KEPT = 8  # answers for each tensor: layers may differ in their windows and maps in their lengths


class Remembered:
    """The answers of one pure function of tensors."""

    def __init__(self) -> None:
        self._kept = WeakTensorKeyDictionary()

    def __call__(
        self, read: Mapping[str, Any], others: Hashable, compute: Callable[[], Answer]
    ) -> Answer:
        """What ``compute`` gives, from an earlier call with these tensors if there was one.

        Args:
            read: what it reads, by role: tensors, of which the answer must hold no part, numbers
                and None. The answer goes when the first tensor goes; with anything else among
                them, nothing is remembered.
            others: what else it depends on.
            compute: the function.
        """
        tensors = {role: x for role, x in read.items() if isinstance(x, Tensor)}
        numbers = {role: x for role, x in read.items() if role not in tensors}
        plain = all(isinstance(x, int | None) for x in numbers.values())
        if not tensors or not plain or not _stay_known(tensors.values()):
            return compute()
        first, *others_read = tensors.values()
        # The first must not hold itself, which may have a second role.
        rest = [None if tensor is first else tensor for tensor in others_read]
        versions = [tensor._version for tensor in tensors.values()]
        question = (tuple(tensors), versions, numbers, others)
        answers = self._kept.setdefault(first, [])
        for known_rest, known_question, answer in answers:
            if known_question == question and all(map(operator.is_, known_rest, rest)):
                found: Answer = answer
                return found
        computed = compute()
        answers.append((rest, question, computed))
        del answers[:-KEPT]
        return computed


def _stay_known(tensors: Collection[Tensor]) -> bool:
    """Whether a tensor that changes says so, and what is computed now is computed for good."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return False  # what is made in inference mode is of no use to a backward pass
    if any(tensor.is_inference() for tensor in tensors):
        return False
    # A captured graph runs again over other numbers in the same tensors.
    on_gpu = any(tensor.is_cuda for tensor in tensors)
    return not (on_gpu and torch.cuda.is_current_stream_capturing())
