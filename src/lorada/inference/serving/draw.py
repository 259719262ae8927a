"""Draws each token by its request's seed and its position, whatever else is in the batch.

    token = the first t with P(1) + … + P(t) > u(seed, position), u in [0, 1)

Shapes: B requests, V tokens of the vocabulary.
"""

from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

BITS = 23  # of u: so many that fp32 holds u, and u times a sum near 1 stays below the sum


class Draw(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """The last step of choosing a token: it leaves the one that is drawn, with all probability."""

    supported_kwargs: ClassVar[dict[str, type]] = {"seed": int}
    ignored_kwargs = ()

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Any number will do for places without a request."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """The u of each request's next token (B,), kept as int32 as transformers keeps all."""
        states = [request.state for request in requests_with_new_token]
        seeds = (f"{one.logit_processor_kwargs['seed']} {one.position_offset}" for one in states)
        drawn = [Random(seed).getrandbits(BITS) / 2**BITS for seed in seeds]
        return torch.tensor(drawn, dtype=torch.float32).view(torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Scores (B, V) of which only the drawn token's is not −∞."""
        drawn = tensor_arg[: len(scores), None].view(torch.float32)
        sums = scores.softmax(-1).cumsum(-1)
        token = torch.searchsorted(sums, drawn * sums[:, -1:], right=True)
        token = token.clamp(max=scores.shape[-1] - 1)  # of scores that are no numbers
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


def draw_by_seed(processors: ContinuousBatchingLogitsProcessorList) -> None:
    """Add ``Draw`` to what chooses the tokens of a batch, which has no way of its own to add it."""
    processors.logits_processor.append(Draw())
    processors.tensors_required += 1
    processors._retrieve_processors_kwargs()
