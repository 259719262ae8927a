"""The Trainer for rows with candidate answers.

    loss = cross-entropy of softmax(s) against the right candidate

where s are the candidates' scores of ``training/models/candidate_scores.py``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from lorada.training.models.candidate_scores import (
    cached_scores,
    likeliest,
    sequence_scores,
    shares_prompts,
)
from lorada.training.trainer import RunTrainer


def choice_loss(scores: Tensor, groups: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy over rows.

    Args:
        scores: (C,), scores of the candidates of all rows in order.
        groups: (B,), how many candidates each row has.
        answers: (B,), index of the right candidate.
    """
    rows = scores.split(groups.tolist())
    losses = [F.cross_entropy(s[None], a[None]) for s, a in zip(rows, answers, strict=True)]
    return torch.stack(losses).mean()


class ChoiceTrainer(RunTrainer):
    """A Trainer for batches of candidates; it also measures accuracy on held-out rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._right: list[Tensor] = []  # by held-out batch: whether each row's choice is right

    def batch_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """Cross-entropy of the candidates' scores."""
        scores = (cached_scores if shares_prompts(model) else sequence_scores)(model, inputs)
        if not model.training:
            chosen = torch.tensor(likeliest(scores, inputs["groups"]), device=scores.device)
            right = chosen == inputs["answers"].to(scores.device)
            self._right.append(self.accelerator.gather_for_metrics(right))
        return choice_loss(scores, inputs["groups"], inputs["answers"]), {"scores": scores}

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The held-out loss, and the ``accuracy`` of the likeliest candidates in percent."""
        self._right = []
        output: EvalLoopOutput = super().evaluation_loop(
            *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        share = torch.cat(self._right).float().mean().item()
        output.metrics[f"{metric_key_prefix}_accuracy"] = 100 * share
        return output
