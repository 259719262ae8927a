"""Choosing between texts by their likelihood: the loss that trains it, and the scores.

    s_c = mean over the tokens of candidate c of log p(token | prompt, the tokens before it)
    loss = cross-entropy of softmax(s) against the right candidate

Source: the classification objective of QuanTA (Chen et al., 2024) for commonsense questions.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers.trainer_utils import EvalLoopOutput

from lorada.attention.attend import SHIFTED
from lorada.runs.training.mean_loss import MeanTrainer
from lorada.tasks.tokenize import IGNORED
from lorada.tuners.lmam import map_configs


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


def likeliest(scores: Tensor, groups: Tensor) -> list[int]:
    """The index of each row's best candidate; ``scores`` and ``groups`` as in ``choice_loss``."""
    return [int(row.argmax()) for row in scores.split(groups.tolist())]


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


def cached_scores(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The same as ``sequence_scores``, with every prompt read once and its cache shared.

    Not for a model in which a token changes what was read before it: see ``shares_prompts``.

    Args:
        model: the language model.
        batch: as there, and ``groups`` (B,), how many candidates each row has.
    """
    prompts, candidates = _apart(batch)
    mask, real = prompts[1], candidates[1]
    device, length = mask.device, real.shape[1]
    takes = inspect.signature(_inner(model).forward).parameters
    last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    placed = "position_ids" in takes
    held = "cache" if "cache" in takes else "past_key_values"  # as transformers called it

    where = (mask.cumsum(-1) - 1).clamp(min=0)
    first = {"position_ids": where} if placed else {}
    output = model(input_ids=prompts[0], attention_mask=mask, use_cache=True, **last, **first)
    of = torch.arange(len(mask), device=device).repeat_interleave(batch["groups"].to(device))
    logits = output.logits[of, -1:]
    if length > 1:
        cache = output[held]
        cache.batch_select_indices(of)
        steps = torch.arange(length, device=device)[None]
        second = {"position_ids": where[of, -1:] + 1 + steps} if placed else {}
        rest = model(
            input_ids=candidates[0],
            attention_mask=torch.cat([mask[of], real], -1),
            use_cache=True,
            **{held: cache},
            **second,
        )
        logits = torch.cat([logits, rest.logits[:, :-1]], 1)
    labels = candidates[0].masked_fill(real == 0, IGNORED)
    # ``mean_log_likelihoods`` takes the logits one place before the token they predict.
    shifted = torch.cat([torch.full_like(labels[:, :1], IGNORED), labels], -1)
    return mean_log_likelihoods(F.pad(logits, (0, 0, 0, 1)), shifted)


def _apart(batch: dict[str, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Ids and mask of the prompts (B, P), padded left, and of the candidates (C, L), right."""
    ids, scored = batch["input_ids"], batch["labels"] != IGNORED
    lengths = scored.sum(-1)
    slots = torch.arange(int(lengths.max()), device=ids.device)
    real = slots < lengths[:, None]
    places = (ids.shape[1] - lengths[:, None] + slots).clamp(max=ids.shape[1] - 1)
    candidates = ids.gather(1, places).masked_fill(~real, 0), real.long()

    groups = batch["groups"].to(ids.device)
    one = groups.cumsum(0) - groups  # a row's first candidate stands behind its prompt
    prompted = batch["attention_mask"][one].bool() & ~scored[one]
    counts = prompted.sum(-1)
    slots = torch.arange(int(counts.max()), device=ids.device).flip(0)
    real = slots < counts[:, None]
    places = (ids.shape[1] - lengths[one][:, None] - 1 - slots).clamp(min=0)
    return (ids[one].gather(1, places).masked_fill(~real, 0), real.long()), candidates


def needs_whole(model: nn.Module) -> bool:
    """Whether a map changes rows once more tokens follow, or counts pads: no cache is shared."""
    return any(part.align == "end" or part.positions == "raw" for part in map_configs(model))


def shares_prompts(model: nn.Module) -> bool:
    """Whether a model may train by ``cached_scores``, which reads fewer tokens.

    Gradient checkpointing keeps no cache, LongLoRA's groups are of whole sequences, and a model
    that is shared by several processes expects one forward for each backward.
    """
    whole = hasattr(model, "module") or isinstance(model, FSDPModule) or needs_whole(model)
    return not whole and not any(
        getattr(m, "gradient_checkpointing", False) or SHIFTED in vars(m) for m in model.modules()
    )


class ChoiceTrainer(MeanTrainer):
    """A Trainer for batches of candidates, which also measures how often it chooses right."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._right: list[Tensor] = []  # of held-out rows, batch by batch

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
        """The held-out loss and the ``accuracy`` of the likeliest candidates, in percent."""
        self._right = []
        output: EvalLoopOutput = super().evaluation_loop(
            *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        share = torch.cat(self._right).float().mean().item()
        output.metrics[f"{metric_key_prefix}_accuracy"] = 100 * share
        return output
