"""Choosing between texts by their likelihood: the loss that trains it, and the scores.

    s_c = mean over the tokens of candidate c of log p(token | prompt, the tokens before it)
    loss = cross-entropy of softmax(s) against the right candidate

Source: the classification objective of QuanTA (Chen et al., 2024) for commonsense questions.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer

from lorada.tasks.encode import IGNORED


def mean_log_likelihoods(logits: Tensor, labels: Tensor) -> Tensor:
    """s_c of each sequence.

    Args:
        logits: (C, T, vocabulary), of the last T tokens.
        labels: (C, T), ids of the candidates' tokens and ``IGNORED`` elsewhere.

    Returns:
        (C,) in fp32.
    """
    targets = labels[:, 1:]
    counted = targets != IGNORED
    log_p = torch.log_softmax(logits[:, :-1].float(), -1)
    chosen = log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (chosen * counted).sum(-1) / counted.sum(-1)


def choice_loss(scores: Tensor, groups: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy over rows.

    Args:
        scores: (C,), the candidates of all rows one after another.
        groups: (B,), how many candidates each row has.
        answers: (B,), index of the right one.
    """
    rows = scores.split(groups.tolist())
    losses = [F.cross_entropy(s[None], a[None]) for s, a in zip(rows, answers, strict=True)]
    return torch.stack(losses).mean()


def sequence_scores(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """s_c of candidates that stand whole behind their prompts, padded on the left.

    Args:
        model: the language model.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, (C, T).
    """
    labels = batch["labels"]
    # Only the end of each sequence is scored, and logits are what fills the memory.
    counted = int((labels != IGNORED).sum(-1).max()) + 1
    takes = inspect.signature(_inner(model).forward).parameters
    extra: dict[str, Any] = {}
    if "position_ids" in takes:
        extra["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in takes:
        extra["logits_to_keep"] = counted
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **extra)
    return mean_log_likelihoods(output.logits[:, -counted:], labels[:, -counted:])


def _inner(model: Any) -> nn.Module:
    """The transformers model inside of a PEFT model or a wrapper of several processes."""
    while hasattr(model, "module"):
        model = model.module
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


class ChoiceTrainer(Trainer):
    """A Trainer for batches of candidates; everything but the loss is the Trainer's own."""

    loss_is_scaled_for_ga = False  # a mean over the rows of a batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross-entropy of the candidates' scores."""
        scores = sequence_scores(model, inputs)
        loss = choice_loss(scores, inputs["groups"], inputs["answers"])
        return (loss, {"scores": scores}) if return_outputs else loss


@torch.no_grad()
def cached_scores(
    model: nn.Module, prompts: list[list[int]], candidates: list[list[list[int]]], pad: int
) -> list[list[float]]:
    """s_c of the candidates of some rows; every prompt is read once and its cache shared.

    The same as ``sequence_scores`` for a model whose output does not depend on what comes later.

    Args:
        model: the language model.
        prompts: ids by row.
        candidates: ids by row and candidate.
        pad: id that fills shorter sequences.
    """
    device = next(model.parameters()).device
    takes = inspect.signature(_inner(model).forward).parameters
    last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    placed = "position_ids" in takes

    longest = max(len(ids) for ids in prompts)
    read = torch.tensor([[pad] * (longest - len(i)) + i for i in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in prompts], device=device)
    where = (mask.cumsum(-1) - 1).clamp(min=0)
    first = {"position_ids": where} if placed else {}
    output = model(input_ids=read, attention_mask=mask, use_cache=True, **last, **first)

    flat = [ids for row in candidates for ids in row]
    owner = [number for number, row in enumerate(candidates) for _ in row]
    of = torch.tensor(owner, device=device)
    length = max(len(ids) for ids in flat)
    ids = torch.tensor([i + [pad] * (length - len(i)) for i in flat], device=device)
    real = torch.tensor([[1] * len(i) + [0] * (length - len(i)) for i in flat], device=device)
    before = output.logits[of, -1:]
    logits = before
    if length > 1:
        cache = output.past_key_values
        cache.batch_select_indices(of)
        steps = torch.arange(length, device=device)[None]
        second = {"position_ids": where[of, -1:] + 1 + steps} if placed else {}
        rest = model(
            input_ids=ids,
            attention_mask=torch.cat([mask[of], real], -1),
            past_key_values=cache,
            use_cache=True,
            **second,
        )
        logits = torch.cat([before, rest.logits[:, :-1]], 1)
    labels = ids.masked_fill(real == 0, IGNORED)
    # ``mean_log_likelihoods`` takes the logits one place before the token they predict.
    shifted = torch.cat([torch.full_like(labels[:, :1], IGNORED), labels], -1)
    scores = mean_log_likelihoods(F.pad(logits, (0, 0, 0, 1)), shifted)
    return list(_by_row(scores.tolist(), candidates))


def _by_row(scores: list[float], candidates: list[list[list[int]]]) -> Iterator[list[float]]:
    start = 0
    for row in candidates:
        yield scores[start : start + len(row)]
        start += len(row)
